"""Tasks that would last for ten minutes, submitted by a kernel: what runs them, and that nothing of it is left."""

from __future__ import annotations

import os
import time
from pathlib import Path

BEGUN_WITHIN_S = 60.0
GONE_WITHIN_S = 30.0  # a cancelled worker that does not end by itself is killed after a few seconds
SETUP = """
import os, time
import kos_cluster as kos
def work(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)
cluster = kos.connect()
"""


def code(path: Path, then: str) -> str:
    """A cell that may submit `work(path)`, which writes its process into the file."""
    return f"{SETUP}path = {str(path)!r}\n{then}"


def processes(path: Path, tasks: int) -> set[int]:
    """Those that so many tasks run in, once all have begun."""
    deadline = time.monotonic() + BEGUN_WITHIN_S
    while not path.exists() or len(path.read_text().split()) < tasks:
        assert time.monotonic() < deadline, "the tasks do not begin"
        time.sleep(0.01)
    return {int(pid) for pid in path.read_text().split()}


def wait_gone(pids: set[int], within_s: float = GONE_WITHIN_S) -> None:
    """Return when none of the processes is there."""
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"a task goes on: {left}"
        time.sleep(0.01)
