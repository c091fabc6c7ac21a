"""What all tests share: a KOS_HOME of their own, short folders for sockets, and what is told at the end of a run.

Rules: no test sees the user's clusters. Folders made here are removed, also when a test fails. What a test recorded of
its run, as fresh seeds, is told whether it passed or not. Every skip is listed with its reason as the last block of the
output, whatever came before it.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from kos_cluster.services.engines import lazily

BROWSER = "tests/browser/"

lazily.put_here()  # before a test imports jsonschema

# How long an example takes says only how busy the machine is.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True, scope="session")
def _own_home() -> Iterator[None]:
    """Point KOS_HOME at an empty folder, and forget the cluster, token or task of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="kos-") as folder:
        for name in [name for name in os.environ if name.startswith("KOS_")]:
            patch.delenv(name)
        patch.setenv("KOS_HOME", folder)
        yield


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A test that leaves SIGINT ignored spoils those after it: what they start inherits that."""
    before = signal.getsignal(signal.SIGINT)
    yield
    after = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert after == before, f"the test has left {after} for SIGINT"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A private folder with a path short enough for UNIX sockets (pytest's own `tmp_path` is not)."""
    folder = Path(tempfile.mkdtemp(prefix="kos-"))
    yield folder
    shutil.rmtree(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files of tests are spread over the processes; those that share a browser go to the same one."""
    if config.getvalue("dist") != "loadfile":
        return None

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return BROWSER if nodeid.startswith(BROWSER) else str(super()._split_scope(nodeid))

    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that two processes that share them end at about the same time."""
    items.sort(key=lambda item: item.path.parent.name != "e2e")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Print what tests recorded, and every skipped test with its reason, after all other blocks."""
    yield
    reports = [report for some in terminalreporter.stats.values() for report in some]
    recorded = [tuple(told) for report in reports for told in getattr(report, "user_properties", ())]
    if recorded:
        terminalreporter.section("recorded")
        for name, value in dict.fromkeys(recorded):
            terminalreporter.line(f"{name}: {value}")
    by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        by_reason[_reason(report)].append(report.nodeid)
    terminalreporter.section(f"skipped: {sum(map(len, by_reason.values()))}")
    for reason, tests in sorted(by_reason.items()):
        terminalreporter.line(reason or "NO REASON GIVEN")
        for test in tests:
            terminalreporter.line(f"    {test}")


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
