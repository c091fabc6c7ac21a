"""Where the cases are that others wrote: `$KOS_CASES`, else `shared/cases` in the folder beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when pytest loads this file, because the tests themselves run without the user's KOS_ variables.
CASES = Path(os.environ.get("KOS_CASES") or Path(__file__).parents[3] / "shared" / "cases")


@pytest.fixture(scope="session")
def cases() -> Path:
    if not CASES.is_dir():
        pytest.skip("the cases that others wrote are not here; set KOS_CASES to their folder")
    return CASES
