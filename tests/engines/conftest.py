"""A cluster of three nodes with room for engines, and what is looked at of an engine from outside."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kos_cluster.cli import main as command
from kos_cluster.services import embedded
from kos_cluster.services.engines import control
from kos_cluster.services.engines.engine import Connection
from kos_cluster.services.engines.spec import Record
from tests.kernel.kernels import Kernel, ok
from tests.mesh.conftest import Mesh

NODES = 3
WORKERS = 3
SLOTS = 4  # of each node: more than this machine has cores


class EngineMesh(Mesh):
    """A cluster whose `kos` can be typed."""

    def _up(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "slots_a_node", lambda count: SLOTS)
            super()._up()

    def kos(self, *words: str) -> tuple[int, str, str]:
        """Type a command; its exit code and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        code = command.run(words, out, err)
        assert "error in KOS itself" not in err.getvalue(), err.getvalue()
        return code, out.getvalue(), err.getvalue()

    def ok(self, *words: str) -> str:
        code, out, err = self.kos(*words)
        assert code == 0, f"kos {' '.join(words)}: {out}{err}"
        return out

    def engine_processes(self) -> list[psutil.Process]:
        """Those of ranks, each with what it has started: their folders bear their numbers."""
        found: list[psutil.Process] = []
        for folder in self.engine_files():
            with suppress(psutil.NoSuchProcess):  # one that ends now
                rank = psutil.Process(int(folder.name.rpartition("-")[2]))
                found += [rank, *rank.children(recursive=True)]
        return found

    def rank_of(self, pid: int) -> int:
        """The process of the rank that has started this one."""
        ranks = {int(folder.name.rpartition("-")[2]) for folder in self.engine_files()}
        while pid not in ranks:
            pid = psutil.Process(pid).ppid()
        return pid

    def supervisors(self, record: Record) -> list[int]:
        """The processes that look at an engine's head and are no part of it: one, as soon as it does."""
        port = int(record.address.head.rpartition(":")[2])
        ranks = {process.pid for process in self.engine_processes()}
        nodes = [psutil.Process(node["pid"]) for node in self.cluster.nodes()]
        others = {child.pid for node in nodes for child in node.children(recursive=True)} - ranks
        return [pid for pid in others if _linked(pid, port)]

    def engine_files(self) -> list[Path]:
        """The folders of ranks that are there."""
        return list(Path(os.environ["KOS_HOME"]).rglob("workspaces/engine-*"))


def _linked(pid: int, port: int) -> bool:
    with suppress(psutil.Error):
        return any(link.raddr and link.raddr.port == port for link in psutil.Process(pid).net_connections("inet"))
    return False


def listens_everywhere(process: psutil.Process) -> list[str]:
    """What of a process listens on all addresses of its machine."""
    with suppress(psutil.Error):
        open_ = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
        return [f"{process.pid} on {each.laddr}" for each in open_ if each.laddr.ip in ("0.0.0.0", "::")]
    return []


@pytest.fixture(scope="module")
def mesh() -> Iterator[EngineMesh]:
    """Shared by the tests of a module; those that kill a node heal it."""
    made = EngineMesh(NODES)
    yield made
    made.down()


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, mesh: EngineMesh) -> Record:
    """The engine of a module's KIND, started with its WORDS."""
    kind, words = request.module.KIND, request.module.WORDS
    said = mesh.ok("engine", "start", kind, "--workers", str(WORKERS), *words)
    assert said.startswith(f"Engine {kind} serves with {WORKERS} workers; its head is on node")
    return control.find(mesh.cluster, kind)


@pytest.fixture(scope="module")
def connection(mesh: EngineMesh, engine: Record) -> Iterator[Connection]:
    """A connection to it."""
    opened = control.open_engine(mesh.cluster, engine.name)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def notebook(mesh: EngineMesh) -> Iterator[Kernel]:
    """A kernel in that cluster, with the extension loaded."""
    started = Kernel({})
    try:
        ok(started.run("%load_ext kos_kernel"))
        yield started
    finally:
        started.stop()
