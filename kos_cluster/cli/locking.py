"""`kos lock NAME -- command`: run a command while holding a lock of the whole cluster; `kos locks` lists them.

Rules: the command finds the lock's name and its fencing token in KOS_LOCK and KOS_LOCK_TOKEN. It never runs on without
the lock: when the lease is lost, or this command is interrupted or terminated, it and what it has started get SIGTERM,
and SIGKILL `GRACE_S` later. Its exit code is ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import psutil

from kos_cluster.cli import sigterm
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, ago
from kos_cluster.errors import UsageError
from kos_cluster.tasks.locking import Lock

GRACE_S = 5.0  # between SIGTERM and SIGKILL
POLL_S = 0.05  # between two looks at the lease
LOCK_COLUMNS = (
    Column("LOCK"),
    Column("HOLDER"),
    Column("TOKEN", right=True),
    Column("SINCE", right=True),
    Column("WAITING", right=True),
)
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_SIGNAL = 128  # plus the signal's number, as shells tell it


class _Terminated(BaseException):
    """SIGTERM has come."""


def lock_(parsed: argparse.Namespace, console: Console) -> int:
    """Wait for the lock, run the command, give the lock up."""
    if not parsed.argv:
        raise UsageError("No command was given.", f"Type: kos lock {parsed.name} -- command.")
    if shutil.which(parsed.argv[0]) is None:
        raise UsageError(f"There is no command {parsed.argv[0]!r} to run.", "Check how it is written, and PATH.")
    import kos_cluster as kos

    wait_s = 0.0 if parsed.no_wait else parsed.wait
    try:
        with (
            sigterm.handled(_terminated),
            kos.connect(parsed.cluster).lock(parsed.name, ttl=parsed.ttl, wait=wait_s) as lock,
        ):
            return _run(parsed.argv, lock, console)
    except _Terminated:
        return EXIT_TERMINATED


def locks_(parsed: argparse.Namespace, console: Console) -> int:
    """List the locks that are held."""
    import kos_cluster as kos

    locks = kos.connect(parsed.cluster).locks()
    if parsed.json:
        console.json(locks)
    else:
        now = time.time()
        rows = [
            [lock.name, lock.holder, str(lock.token), ago(max(0.0, now - lock.since_s)), str(lock.waiting)]
            for lock in locks
        ]
        console.listing(locks, LOCK_COLUMNS, rows)
    return 0


def _run(argv: Sequence[str], lock: Lock, console: Console) -> int:
    """Run the command until it ends, or the lock is lost; its exit code."""
    environ = os.environ | {"KOS_LOCK": lock.name, "KOS_LOCK_TOKEN": str(lock.token)}
    process = None
    try:
        with _held_back() as come:
            process = subprocess.Popen(argv, env=environ)
        for number in come:
            signal.raise_signal(number)
        while process.poll() is None and lock.held:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
    except BaseException:
        if process is not None:
            _stop(process)
        raise
    if process.returncode is None:
        console.note(f"kos: {lock.lost} The command is stopped.")
        _stop(process)
    code = process.wait()
    return code if code >= 0 else EXIT_SIGNAL - code


@contextlib.contextmanager
def _held_back() -> Iterator[list[int]]:
    """Note the signals that come: one in the middle of starting the command would leave it behind, unknown to us."""
    come: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda number, frame: come.append(number)) for number in numbers}
    try:
        yield come
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the command and everything that it has started: SIGTERM, and SIGKILL for those that do not follow."""
    running = _family(process.pid)
    for each in running:
        with suppress(psutil.NoSuchProcess):
            each.terminate()
    _, left = psutil.wait_procs(running, timeout=GRACE_S)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; none when it has ended."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated
