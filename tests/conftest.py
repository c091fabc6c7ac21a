"""What all tests share: a short private KOS_HOME, a real cluster on this machine, and the list of skipped tests.

Rules: nothing here leaves a process or a folder behind, also when a test fails. A skip without a reason is an error of the
test; every skip is listed with its reason as the last block of the output, whatever came before it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A private folder with a path short enough for UNIX sockets (pytest's own `tmp_path` is not)."""
    folder = Path(tempfile.mkdtemp(prefix="kos-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Print every skipped test with its reason, after all other blocks."""
    yield
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
