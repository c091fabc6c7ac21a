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
from tests.mesh.conftest import Mesh

NODES = 3
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

    def processes(self) -> list[psutil.Process]:
        """All that the nodes have started, but their fork servers and what stands ready for tasks."""
        found = []
        for node in self.cluster.nodes():
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(node["pid"]).children(recursive=True)
        return found

    def engine_processes(self) -> list[psutil.Process]:
        """Those of ranks, each with what it has started: their folders bear their numbers."""
        ranks = [psutil.Process(int(folder.name.rpartition("-")[2])) for folder in self.engine_files()]
        return [*ranks, *(child for rank in ranks for child in rank.children(recursive=True))]

    def engine_files(self) -> list[Path]:
        """The folders of ranks that are there."""
        return list(Path(os.environ["KOS_HOME"]).rglob("workspaces/engine-*"))


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
