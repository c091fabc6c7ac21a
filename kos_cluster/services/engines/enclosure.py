"""A command that never outlives the process that started it, with whatever it starts.

Theory of operation. The command runs beneath a warden: a process of this module that has asked Linux to become the
parent of all its orphaned descendants. It ends when the process that made the enclosure ends, however that ends
(a pidfd tells), when it is told to (SIGTERM), or when the command ends: then it kills all that is beneath it, in
whatever process group or session that is, removes the enclosure's folder, and ends itself. When the warden itself is
killed, who made the enclosure kills its process group.

Rules. The warden leads a process group of its own, so signals to a rank's group do not end it before its work is done.
It imports nothing of an engine.

Limits: `GRACE_S` for a command that is asked to end.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kos_cluster.tasks import processes

GRACE_S = 2.0  # for a command to end by itself
CLOSE_TIMEOUT_S = 10.0  # for the warden to have killed all
LOG = "output"  # in the folder: what the command and all beneath it wrote
TAIL_BYTES = 32_000  # Ray adds the ends of logs to what it says of an end


class Enclosure:
    """One command with its descendants, and a folder of theirs."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / LOG
        with self._log.open("wb") as log:
            self._warden = subprocess.Popen(
                [sys.executable, "-m", __name__, str(os.getpid()), str(folder), *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """The warden's: all that the command has started is beneath it."""
        return self._warden.pid

    @property
    def ended(self) -> bool:
        return self._warden.poll() is not None

    @property
    def said(self) -> str:
        """The end of what it wrote, until the folder is removed."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """End it all; returns when nothing is left."""
        if not self.ended:
            self._warden.terminate()
        try:
            self._warden.wait(CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._warden.kill()
            self._warden.wait()
        processes.kill_group(self._warden.pid)  # where the warden was killed


def _watch(keeper: int, folder: Path, command: Sequence[str]) -> None:
    """The warden. `keeper` is the process that must live on."""
    processes.adopt_orphans()
    heard, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        life = os.pidfd_open(keeper)
    except ProcessLookupError:
        return
    if os.getppid() != keeper:  # it ended before that
        return
    poll = select.poll()
    poll.register(life, select.POLLIN)
    poll.register(heard, select.POLLIN)
    started = subprocess.Popen(command)
    while not asked:
        ready = {fd for fd, _ in poll.poll()}
        if life in ready:
            break
        os.read(heard, 4096)
        if _reaped(started.pid):
            break
    else:
        _ask(started.pid)
    processes.kill_and_reap_all()
    shutil.rmtree(folder, ignore_errors=True)


def _ask(pid: int) -> None:
    """Ask the command to end, and wait a little."""
    os.kill(pid, signal.SIGTERM)
    until_s = time.monotonic() + GRACE_S
    while time.monotonic() < until_s and not _reaped(pid):
        time.sleep(0.02)


def _reaped(command: int) -> bool:
    """Reap all who have ended; whether the command has."""
    ended = False
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return ended
        ended = ended or pid == command


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
