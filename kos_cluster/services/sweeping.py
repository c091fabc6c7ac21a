"""Ending the nodes of this machine, and what they leave behind.

Theory of operation. A daemon has `KOS_RUN`, its run folder, in its environment. Its workers inherit that, and so does
what they start, whoever dies first: so a process belongs to a node when `KOS_RUN` in its /proc/PID/environ is the
node's run folder.

Rules: no pid from a file is signalled before that check. A process that belongs to no node here is never touched.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from kos_cluster.errors import StateError
from kos_cluster.home import ClusterHome, Ready
from kos_cluster.tasks import semaphores

STOP_TIMEOUT_S = 5.0  # between SIGTERM and SIGKILL
KILL_TIMEOUT_S = 5.0  # between SIGKILL and giving up
SWEEP_ROUNDS_LIMIT = 20  # a fork bomb outruns any sweep


def alive(cluster: ClusterHome, node: str) -> Ready | None:
    """What the node's daemon wrote when it became ready, if it still runs."""
    ready = cluster.ready(node)
    return ready if ready is not None and _belongs(ready.pid, cluster.run(node)) else None


def node_folders(cluster: ClusterHome) -> list[str]:
    """The nodes of the cluster that have run on this machine."""
    run = cluster.path / "run"
    return sorted(entry.name for entry in run.iterdir()) if run.is_dir() else []


def stop(cluster: ClusterHome, nodes: Iterable[str]) -> list[str]:
    """End these daemons: SIGTERM, and SIGKILL for those that do not follow. Gives the names of those that ran."""
    running = {node: ready.pid for node in nodes if (ready := alive(cluster, node)) is not None}
    _signal(running.values(), signal.SIGTERM)
    left = _wait_gone(running.values(), STOP_TIMEOUT_S)
    _signal(left, signal.SIGKILL)
    _wait_gone(left, KILL_TIMEOUT_S)
    return sorted(running)


def sweep(cluster: ClusterHome, nodes: Sequence[str] | None = None) -> int:
    """Kill every process that belongs to these nodes (default: to all on this machine), and remove their run folders.

    Gives how many processes there were. Raises StateError when some cannot be ended.
    """
    folders = [cluster.path / "run"] if nodes is None else [cluster.run(node) for node in nodes]
    swept: set[int] = set()
    for _ in range(SWEEP_ROUNDS_LIMIT):
        found = belonging(folders)
        if not found:
            semaphores.remove_orphans()  # of workers whose fork server was killed, too
            for folder in folders:
                if folder.exists():
                    shutil.rmtree(folder)
            return len(swept)
        swept.update(found)
        _kill_groups(found)
        _wait_gone(found, KILL_TIMEOUT_S)
    raise StateError(
        f"Processes of cluster {cluster.name} do not end: {', '.join(map(str, sorted(belonging(folders))))}.",
        "End them by hand, then type 'kos down' again.",
    )


def belonging(folders: Sequence[Path]) -> list[int]:
    """Processes of this user, this one apart, that belong to a node whose run folder is, or is in, one of these."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in pids if pid != os.getpid() and any(_belongs(pid, folder) for folder in folders)]


def _belongs(pid: int, folder: Path) -> bool:
    prefix = b"KOS_RUN=" + os.fsencode(folder) + b"/"
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended meanwhile, or another user's
        return False
    return any((entry + b"/").startswith(prefix) for entry in environ.split(b"\0"))


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill_groups(pids: Sequence[int]) -> None:
    """SIGKILL these processes, with the whole group of each that leads one: others' groups may hold other programs."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            kill = os.killpg if os.getpgid(pid) == pid else os.kill
            kill(pid, signal.SIGKILL)


def _wait_gone(pids: Iterable[int], timeout_s: float) -> list[int]:
    """Wait for processes to end; those that have not. A zombie has ended."""
    deadline = time.monotonic() + timeout_s
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.append(pid)
        finally:
            os.close(descriptor)
    return left
