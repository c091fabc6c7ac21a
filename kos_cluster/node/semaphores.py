"""The semaphores of multiprocessing that a killed worker leaves under a name in /dev/shm.

Theory of operation. Under the start methods "spawn" and "forkserver" a Lock, Queue or Event keeps its name until its
process ends in order, or Python's resource tracker sees that it has ended. A worker that is killed takes with it all
that it has started, the tracker too. So who starts such processes in a worker for long has the names bear the worker's
number, which those processes inherit; the fork server removes them when the worker has ended, however it has ended.
Where that was killed too, with the whole node, the next start of the node does, or its removal.

Rules: other names are not touched. multiprocessing is imported by `name_by_worker` alone: as it notes the folder that
it is imported in, for the processes that are started later, a fork server must not.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path("/dev/shm")


def name_by_worker() -> None:
    """Have the semaphores of this worker, and of those that it starts, bear its number."""
    import multiprocessing.process

    config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]  # there is no public way
    config["semprefix"] = f"/{_prefix(os.getpid())}"


def remove_of(worker: int) -> None:
    """Remove those of a worker that has ended."""
    for path in FOLDER.glob(f"sem.{_prefix(worker)}-*"):
        path.unlink(missing_ok=True)


def remove_left(workspaces: Path) -> None:
    """Remove those of workers that were killed together with their fork server, and had a folder of their own here."""
    for folder in workspaces.glob("*-*"):
        number = folder.name.rpartition("-")[2]
        if number.isdecimal() and not Path("/proc", number).exists():
            remove_of(int(number))


def _prefix(worker: int) -> str:
    return f"kos-{worker}"
