"""The node daemons of this machine: how they are started, and waited for.

Theory of operation. A daemon is started detached, in a session of its own, with `KOS_RUN` set to its run folder, by
which `sweeping` finds it and whatever it starts. It writes ready.json into that folder when it can take work.

Rules: a node's `NodeStart` is written before its first start, so it can be started again as it was. Every wait ends.
Nodes are started and stopped under one lock a home.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from kos_cluster.core.capacity import Declared
from kos_cluster.errors import KosError, PortTakenError, RevokedError, StateError
from kos_cluster.home import ClusterHome, Home, Ready, private_folder, write_private
from kos_cluster.node.turning import removed
from kos_cluster.services.sweeping import alive, sweep

DEFAULT_PROFILE = "lan"
READY_TIMEOUT_S = 30.0  # from start to ready.json; a cold disk takes long to import
READY_POLL_S = 0.005
TOGETHER_LIMIT = 8  # daemons that start at a time: more on few cores would only keep each other from being ready
LOCK_TIMEOUT_S = 60.0
LOCK_POLL_S = 0.05
LOG_TAIL_LINES = 8
LOG_TAIL_BYTES = 8 << 10


class NodeStart(msgspec.Struct, frozen=True):
    """How a node of this machine is started. Kept beside its credentials."""

    host: str
    port: int
    advertise: str = ""  # the address that others reach it at; empty: `host`
    bootstrap: list[str] = []  # HOST:PORT of control ports of other nodes; empty: this node founds the cluster
    profile: str = DEFAULT_PROFILE  # how fast failures are detected
    slots: int = 0  # 0: one a core
    beacon: bool = True
    declared: Declared = Declared()
    share: tuple[int, int] = (1, 1)  # K of N nodes that divide this machine's memory and GPUs

    def arguments(self) -> list[str]:
        words = ["--listen", f"{self.host}:{self.port}"]
        words += ["--advertise", self.advertise] if self.advertise else []
        words += [word for address in self.bootstrap for word in ("--bootstrap", address)]
        words += ["--profile", self.profile]
        words += ["--slots", str(self.slots)] if self.slots else []
        words += ["--share", "{}/{}".format(*self.share)]
        words += [f"--label={name}={value}" for name, value in self.declared.labels.items()]
        words += [f"--resource={name}={count}" for name, count in self.declared.resources.items()]
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
    run = private_folder(cluster.run(node))
    words = [sys.executable, "-P", "-m", "kos_cluster.node", "--cluster", cluster.name, "--node", node]
    dropped = {"KOS_TOKEN", "KOS_NODE", "KOS_OWNER", "KOS_TASK", "KOS_ATTEMPT"}  # of whoever starts it, perhaps a task
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

    Raises PortTakenError, RevokedError, or StateError with the last lines of the log, when one ends first or takes too
    long.
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
            time.sleep(READY_POLL_S)
    for process in started.values():  # reaped when it ends, should this process outlive it
        threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return ready


def start_all(cluster: ClusterHome, nodes: Sequence[str]) -> None:
    """Start these nodes, some at a time, and wait until they can take work. When one fails, all of them end again."""
    try:
        for first in range(0, len(nodes), TOGETHER_LIMIT):
            wait_ready(cluster, {node: start(cluster, node) for node in nodes[first : first + TOGETHER_LIMIT]})
    except BaseException:
        sweep(cluster, nodes)
        raise


def resume(cluster: ClusterHome) -> list[str]:
    """Start those of this machine's nodes that do not run, as they ran before; gives their names."""
    stopped = [node for node in cluster.read().nodes if alive(cluster, node) is None]
    start_all(cluster, stopped)
    return stopped


@contextlib.contextmanager
def changing(home: Home) -> Iterator[None]:
    """Hold this home's lock for starting and stopping nodes. Raises StateError when another command keeps it."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with open(private_folder(home.path) / "lock", "ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StateError(
                        f"Another command has been busy with the nodes in {home.path} for {LOCK_TIMEOUT_S:.0f} s.",
                        "Wait for it, or end it.",
                    ) from None
            time.sleep(LOCK_POLL_S)
        yield


def _failure(cluster: ClusterHome, node: str, code: int) -> KosError:
    if code == RevokedError.exit_code:
        return removed(node, cluster.name)
    if code == PortTakenError.exit_code:
        start = read_start(cluster, node)
        return PortTakenError(
            f"Node {node} cannot listen on ports {start.port} and {start.port + 1} of {start.host}: one is in use.",
            "End what uses it; or leave the cluster and join again with another --listen.",
        )
    return StateError(f"Node {node} ended at its start (exit code {code}). {_tail(cluster, node)}")


def _tail(cluster: ClusterHome, node: str) -> str:
    """The last lines of a daemon's log, as the end of a sentence."""
    path = cluster.run(node) / "log"
    lines = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").splitlines() if path.exists() else []
    if not lines:
        return "Its log is empty."
    return "The end of its log:\n" + "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])
