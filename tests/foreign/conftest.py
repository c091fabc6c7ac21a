"""Where the cases are that others wrote: `$KOS_CASES`, else `shared/cases` in the folder beside the checkout.

Suites of others that drive a cluster share one of two nodes. Tests that are marked `whole` run in `make foreign` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.services import demo
from kos_cluster.tasks.cluster import disconnect

# Read when pytest loads this file, because the tests themselves run without the user's KOS_ variables.
WHOLE = "pytestmark = [pytest.mark.whole,"  # in files that are so as a whole
CASES = Path(os.environ.get("KOS_CASES") or Path(__file__).parents[3] / "shared" / "cases")


def pytest_configure(config: pytest.Config) -> None:
    for name in ("thread_unsafe", "no_cover"):
        config.addinivalue_line("markers", f"{name}: of joblib's own")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where no test of a file would run, it is not imported: that takes every process of the suite seconds."""
    wanted = config.option.markexpr != "not whole" or collection_path.suffix != ".py"
    return None if wanted or WHOLE not in collection_path.read_text() else True


@pytest.fixture(scope="session")
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("the cases that others wrote are not here; set KOS_CASES to their folder")
    return CASES


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """The cluster that this process connects to meanwhile."""
    with demo.temporary_home(), demo.local_cluster(2):
        yield
        disconnect()
