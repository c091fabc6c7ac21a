"""A cluster of real daemons on loopback in a folder of its own, whose nodes can be killed and started again.

Rules: whatever happens, every process of it is ended and its folder removed when the `with` block is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kos_cluster.home import ClusterHome, Home
from kos_cluster.services import daemons, embedded, sweeping

_FOLDER_PREFIX = "kb-"  # short, for the sockets in it
_ELECTED = re.compile(r"Term (\d+): this node is leader")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for homes; whatever runs from them is ended, and the folder removed."""
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX))
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            for name in Home(path).clusters():
                sweeping.sweep(ClusterHome(Home(path), name))
        shutil.rmtree(folder)


@contextlib.contextmanager
def fleet(nodes: int, profile: str = daemons.DEFAULT_PROFILE, slots: int | None = None) -> Iterator[Fleet]:
    """A cluster of so many nodes, as `kos up` makes it; with `slots` each."""
    with scratch() as folder:
        home = Home(folder / "home")
        up = embedded.up(home, nodes, profile, slots=slots)
        try:
            yield Fleet(up.cluster, up.nodes)
        finally:
            embedded.down(up.cluster)


class Fleet:
    """The daemons of one cluster, by node name."""

    def __init__(self, cluster: ClusterHome, nodes: list[str]) -> None:
        self.cluster = cluster
        self.nodes = nodes

    @property
    def environ(self) -> dict[str, str]:
        """For a process that works on it."""
        return {**os.environ, "KOS_HOME": str(self.cluster.home.path), "KOS_CLUSTER": self.cluster.name}

    def pid(self, node: str) -> int:
        """The daemon's. Raises KeyError when it does not run."""
        ready = sweeping.alive(self.cluster, node)
        if ready is None:
            raise KeyError(node)
        return ready.pid

    def name(self, id_: str) -> str:
        """The node of that id. Raises KeyError."""
        for node in self.nodes:
            ready = self.cluster.ready(node)
            if ready is not None and ready.id == id_:
                return node
        raise KeyError(id_)

    def kill(self, node: str) -> None:
        """SIGKILL."""
        os.kill(self.pid(node), signal.SIGKILL)

    def start(self, node: str) -> None:
        """Start a daemon that was killed, and wait until it can take work."""
        daemons.wait_ready(self.cluster, {node: daemons.start(self.cluster, node)})

    def log(self, node: str) -> str:
        """What the daemon has written so far."""
        return (self.cluster.run(node) / "log").read_text(errors="replace")

    def coordinator(self) -> str:
        """The node that was elected last, by the logs; for when asking would be a disturbance. Raises KeyError."""
        terms = {node: max(elections(self.log(node)), default=0) for node in self.nodes}
        node = max(self.nodes, key=terms.__getitem__)
        if not terms[node]:
            raise KeyError("no coordinator")
        return node


def elections(log: str) -> list[int]:
    """The terms in which the node that wrote this log was elected."""
    return [int(term) for term in _ELECTED.findall(log)]
