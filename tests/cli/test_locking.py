"""`kos lock` and the command that it runs, when a signal comes at a bad moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.cli import locking
from kos_cluster.cli.console import Console


class Held:
    """A lock that is held."""

    name, token, held, lost = "deploy", 7, True, ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_command_starts_does_not_leave_it_behind(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        """The command runs already, and the signal comes before this is known."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            os.kill(os.getpid(), number)

    here = SimpleNamespace(Popen=Interrupted, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(locking, "subprocess", here)
    before = signal.signal(signal.SIGTERM, locking._terminated)
    try:
        with pytest.raises((locking._Terminated, KeyboardInterrupt)):
            locking._run(["sleep", "60"], Held(), Console(sys.stdout, sys.stderr))
    finally:
        signal.signal(signal.SIGTERM, before)
    (process,) = started
    assert process.poll() is not None
