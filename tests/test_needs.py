"""What the machine lacks ends as a skip on a desk, and as a failure in continuous integration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.outcomes import Failed, Skipped

from tests import needs

ROOT = Path(__file__).parents[1]
NEED_MORE = ("tests/e2e/test_cluster.py", "tests/browser/test_kernel_on_node.py")
PICKED = "test_two_hosts_find_each_other_by_beacon or test_it_starts_on_a_node"


@pytest.mark.parametrize(
    ("asked", "root", "outcome"), [("1", True, Failed), ("1", False, Skipped), ("", True, Skipped)]
)
def test_only_root_where_it_is_asked_for_fails(
    monkeypatch: pytest.MonkeyPatch, asked: str, root: bool, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv(needs.REQUIRE, asked)
    monkeypatch.setattr(needs, "_is_root", lambda: root)
    with pytest.raises(outcome, match="there is no browser"):
        needs.missing("there is no browser")


def test_without_chromium_and_ip_their_tests_do_not_pass_silently() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NEED_MORE, "-k", PICKED],
        cwd=ROOT,
        env={**os.environ, "PATH": "", needs.REQUIRE: "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ended = "errors" if os.geteuid() == 0 else "skipped"
    assert f"2 {ended}" in done.stdout, done.stdout
    assert "there is no ip command" in done.stdout and "no Chromium on this machine" in done.stdout
