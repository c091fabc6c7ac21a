"""The node daemons of this machine: starting them, waiting for them, stopping them, and sweeping up what they leave.

Theory of operation. A daemon is started detached, in a session of its own, with `KOS_RUN` set to its run folder. Its
workers inherit that, and so does what they start, whoever dies first: so a process belongs to a node when `KOS_RUN` in
its /proc/PID/environ is the node's run folder. Pids are taken from ready.json only after that check.

Rules: a node's `NodeStart` is written before its first start, so it can be started again as it was. Every wait ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from kos_cluster.errors import PortTakenError, StateError
from kos_cluster.home import ClusterHome, Ready, private_folder, write_private

READY_TIMEOUT_S = 30.0  # from start to ready.json; a cold disk takes long to import
STOP_TIMEOUT_S = 5.0  # between SIGTERM and SIGKILL
KILL_TIMEOUT_S = 5.0  # between SIGKILL and giving up
SWEEP_ROUNDS_LIMIT = 20  # a fork bomb outruns any sweep
POLL_S = 0.005
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 8 << 10


class NodeStart(msgspec.Struct, frozen=True):
    """How a node of this machine is started. Kept beside its credentials."""

    host: str
    port: int
    advertise: str = ""  # the address that others reach it at; empty: `host`
    keeper: str = ""  # HOST:PORT of the registry's keeper; empty: this node is
    slots: int = 0  # 0: one a core
    beacon: bool = True

    def arguments(self) -> list[str]:
        words = ["--listen", f"{self.host}:{self.port}"]
        for option, value in (("--advertise", self.advertise), ("--keeper", self.keeper)):
            words += [option, value] if value else []
        words += ["--slots", str(self.slots)] if self.slots else []
        return words if self.beacon else [*words, "--no-beacon"]


def write_start(cluster: ClusterHome, node: str, start: NodeStart) -> None:
    """Keep how a node is started."""
    private_folder(cluster.node(node))
    write_private(cluster.node(node) / "start.json", msgspec.json.encode(start))


def read_start(cluster: ClusterHome, node: str) -> NodeStart:
    """Raises StateError when it is missing or damaged."""
    path = cluster.node(node) / "start.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeStart)
    except (OSError, msgspec.DecodeError) as error:
        raise StateError(
            f"How node {node} is started cannot be read from {path} ({error}).",
            f"Remove {cluster.path} and join the cluster again.",
        ) from None


def command(cluster: ClusterHome, node: str) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of a node's daemon. Makes its run folder."""
    cluster.socket_path(node)  # refuses a path that is too long before anything is started
    run = private_folder(cluster.run(node))
    words = [sys.executable, "-P", "-m", "kos_cluster.node", "--cluster", cluster.name, "--node", node]
    dropped = ("KOS_TOKEN", "KOS_NODE", "KOS_TASK", "KOS_ATTEMPT")  # of the one who starts it, who may be in a task
    environ = {name: value for name, value in os.environ.items() if name not in dropped}
    environ |= {"KOS_HOME": str(cluster.home.path), "KOS_CLUSTER": cluster.name, "KOS_RUN": str(run)}
    return words + read_start(cluster, node).arguments(), environ


def start(cluster: ClusterHome, node: str) -> subprocess.Popen[bytes]:
    """Start a node's daemon, detached; its output goes to its log."""
    words, environ = command(cluster, node)
    run = cluster.run(node)
    (run / "ready.json").unlink(missing_ok=True)
    with open(run / "log", "ab") as log:
        return subprocess.Popen(
            words, cwd=run, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def wait_ready(cluster: ClusterHome, started: Mapping[str, subprocess.Popen[bytes]]) -> dict[str, Ready]:
    """Wait until these daemons can take work.

    Raises PortTakenError, or StateError with the last lines of the log, when one ends first or takes too long.
    """
    deadline = time.monotonic() + READY_TIMEOUT_S
    ready: dict[str, Ready] = {}
    while len(ready) < len(started):
        for node, process in started.items():
            code = process.poll()
            if code is not None:
                raise _failure(cluster, node, code)
            written = cluster.ready(node)
            if written is not None and written.pid == process.pid:
                ready[node] = written
        if time.monotonic() > deadline:
            late = next(node for node in started if node not in ready)
            raise StateError(f"Node {late} was not ready after {READY_TIMEOUT_S:.0f} s. {_tail(cluster, late)}")
        if len(ready) < len(started):
            time.sleep(POLL_S)
    for process in started.values():  # reaped when it ends, should this process outlive it
        threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return ready


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


def _kill_groups(pids: Iterable[int]) -> None:
    """SIGKILL the groups of these processes; never our own group, where they die alone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(pid)
            if group == os.getpgrp():
                os.kill(pid, signal.SIGKILL)
            else:
                os.killpg(group, signal.SIGKILL)


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


def _failure(cluster: ClusterHome, node: str, code: int) -> PortTakenError | StateError:
    kind = PortTakenError if code == PortTakenError.exit_code else StateError
    return kind(f"Node {node} ended at its start (exit code {code}). {_tail(cluster, node)}")


def _tail(cluster: ClusterHome, node: str) -> str:
    """The last lines of a daemon's log, as the end of a sentence."""
    path = cluster.run(node) / "log"
    lines = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").splitlines() if path.exists() else []
    if not lines:
        return "Its log is empty."
    return "The end of its log:\n" + "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
