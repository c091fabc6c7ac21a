"""Real embedded clusters, and programs that use them in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kos_cluster as kos
from kos_cluster.core.capacity import Declared
from kos_cluster.core.records import MemberState
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.net import wire
from kos_cluster.services import embedded
from tests.engines.stand_in import StandIn, on_stand_in

WAIT_S = 30.0
DECLARED = Declared({"site": "here"}, {"licence": 1})  # of each node


def until(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for a condition, looked at often."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


class Mesh:
    """An embedded cluster of this test's own, with a connection to it."""

    def __init__(self, nodes: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kos-"))
        self.home = Home(self.folder / "home")
        self.count = nodes
        self._programs: list[subprocess.Popen[str]] = []
        self._up()
        self._home_before = os.environ["KOS_HOME"]
        os.environ["KOS_HOME"] = str(self.home.path)
        self.cluster = kos.connect()

    def _up(self) -> None:
        embedded.up(self.home, self.count, declared=DECLARED)

    def heal(self) -> None:
        """Start again what has died, and wait until the connection sees it."""
        self._up()
        until(lambda: len(self.cluster.packages()) >= 0 and self.alive() == self.count, "all nodes alive")
        until(lambda: self.seen_alive() == [self.count] * self.count, "each node knows that all others are")

    def seen_alive(self) -> list[int]:
        """How many nodes are alive in the eyes of each one that answers."""
        told = self.cluster._mesh.request_all(wire.Nodes(), wire.SyncData).values()
        return [sum(member.state is MemberState.ALIVE for member in data.members or ()) for data in told]

    def alive(self) -> int:
        return sum(node["state"] == "alive" for node in self.cluster.nodes())

    def pid(self, node: str) -> int:
        return next(row["pid"] for row in self.cluster.nodes() if row["name"] == node)

    def program(self, source: str, home: Path | None = None) -> subprocess.Popen[str]:
        """Run a program that uses this cluster in a process of its own, as the user whose KOS_HOME is `home`."""
        path = self.folder / f"program{time.monotonic_ns()}.py"
        path.write_text(textwrap.dedent(source))
        program = subprocess.Popen(
            [sys.executable, str(path)],
            env={**os.environ, "KOS_HOME": str(home or self.home.path)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._programs.append(program)
        return program

    def down(self) -> None:
        for program in self._programs:  # also those of tests that failed
            program.kill()
            program.communicate()
        self.cluster.close()
        os.environ["KOS_HOME"] = self._home_before
        embedded.down(ClusterHome(self.home, EMBEDDED_NAME))
        shutil.rmtree(self.folder)


@pytest.fixture(scope="package")
def mesh() -> Iterator[Mesh]:
    """Two nodes; tests that kill something heal it."""
    mesh = Mesh(2)
    yield mesh
    mesh.down()


@pytest.fixture(scope="package")
def engine(mesh: Mesh) -> Iterator[StandIn]:
    """Threads of this process, in the place of any engine that is asked for."""
    with on_stand_in(mesh.cluster) as connection:
        yield connection
