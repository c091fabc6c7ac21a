"""The semaphores of multiprocessing that a killed worker leaves under a name in /dev/shm.

Theory of operation. Under the start methods "spawn" and "forkserver" a Lock, Queue or Event keeps its name until its
process ends in order, or Python's resource tracker sees that it has ended. A worker that is killed takes with it all
that it has started, the tracker too. So in a worker, and in what that starts, the names bear the worker's number. The
fork server removes them when the worker has ended, however it has ended, and when it begins those of workers whose fork
server was killed, too.

Rules: other names are not touched, nor those of another user or namespace of processes. multiprocessing is not imported
here: as it notes the folder that it is imported in, for the processes that are started later, a fork server must not.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kos_cluster.tasks.afterloading import after_loading

FOLDER = Path("/dev/shm")


def name_by_worker() -> None:
    """Have the semaphores of this worker, and of those that it starts, bear its number."""
    after_loading("multiprocessing.process", functools.partial(_name, os.getpid()))


def remove_of(worker: int | str) -> None:
    """Remove those of a worker that has ended."""
    for path in _of(worker):
        path.unlink(missing_ok=True)


def remove_orphans() -> None:
    """Remove those of all workers that have ended."""
    workers = {path.name.removeprefix(f"sem.{_prefix()}").partition("-")[0] for path in _of("*")}
    for worker in workers:
        if not Path("/proc", worker, "exe").exists():  # nor has one that waits to be reaped
            remove_of(worker)


def _name(worker: int) -> None:
    from multiprocessing.process import current_process

    config = current_process()._config  # type: ignore[attr-defined]  # there is no public way
    config["semprefix"] = f"/{_prefix()}{worker}"


def _of(worker: int | str) -> Iterator[Path]:
    for path in FOLDER.glob(f"sem.{_prefix()}{worker}-*"):
        with suppress(FileNotFoundError):  # another has removed it meanwhile
            status = path.lstat()
            if status.st_uid == os.getuid() and stat.S_ISREG(status.st_mode):
                yield path


@functools.cache
def _prefix() -> str:
    """Of all workers in this namespace of processes."""
    return f"kos-{os.stat('/proc/self/ns/pid').st_ino}-"
