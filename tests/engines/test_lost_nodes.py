"""The whole node of an engine's head is lost, with the daemon and all its processes: told in time, and served again.

The work of KOS's own that runs meanwhile also fills the nodes, so that each test knows where the engine's parts are.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from kos_cluster.core.records import Member
from kos_cluster.services.engines import control
from kos_cluster.services.engines.spec import Record, State
from kos_cluster.tasks import detached
from tests.engines.conformance import shared_by, still_shared
from tests.engines.conftest import SLOTS, EngineMesh
from tests.mesh.conftest import until

REPORT_S = 5.0  # in which the loss of a head is to be told, from the kill on
RESULT_S = 20.0
HELD_BYTES = 3 << 20
WORKERS = 1
CPUS = 2  # of each rank: both fill a node


class Work:
    """KOS's own: it holds slots of a node until it is let go, and is done as if nothing had been."""

    def __init__(self, mesh: EngineMesh, node: str, slots: int) -> None:
        self.gate = mesh.folder / f"gate-{time.monotonic_ns()}"
        self.results = mesh.cluster.map(_held, [str(self.gate)] * slots, on=node)
        self._mesh, self.job = mesh, self.results.futures[0].task.partition(".")[0]
        until(lambda: self._running() == slots, f"it runs on {node}")

    def let_go(self) -> None:
        """Each task has a result, of its only attempt."""
        self.gate.touch()
        assert set(self.results) == {"held"}
        stories = self._mesh.cluster.stories(self.job)
        assert [len(story.attempts) for story in stories] == [1] * len(self.results.futures)

    def _running(self) -> int:
        return sum(job.running for job in self._mesh.cluster.own_jobs() if job.job == self.job)


class Cast:
    """The nodes by what they are here."""

    def __init__(self, mesh: EngineMesh) -> None:
        nodes = sorted(mesh.cluster.nodes(), key=lambda node: (not node["coordinator"], node["id"]))
        self.ids = [node["id"] for node in nodes]
        self.first, self.second, self.third = (node["name"] for node in nodes)


@pytest.mark.timeout(300)  # three starts of Dask; on a machine that has other work, too
def test_with_its_supervisor_driver_and_coordinator_and_then_alone(
    mesh: EngineMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = Cast(mesh)
    _kept_by(monkeypatch, cast.ids[1], cast.ids[2])
    gate = mesh.folder / "gate"
    own = mesh.cluster.detach(_held, [str(gate)] * (SLOTS - 1), on=cast.second)  # that node drives it, too
    lets_in_supervisor, lets_in_ranks = Work(mesh, cast.second, 1), Work(mesh, cast.third, SLOTS)
    until(lambda: own.state().driver_name == cast.second, "it is driven")

    _kept_by(monkeypatch, cast.ids[0], cast.ids[1])
    mesh.ok("engine", "start", "dask", "--workers", str(WORKERS), "--cpus", str(CPUS), "--restarts", "2")
    record = dask(mesh)
    places = record.node, mesh.cluster.attach(record.job).state().driver_name, _node_of(mesh, record.job)
    assert places == (cast.first, cast.first, cast.first)
    _hold(mesh)
    lets_in_supervisor.let_go()

    assert len(mesh.engine_files()) == 1 + WORKERS
    shared = _shared_by_ranks(mesh)
    processes = kill(mesh, cast.first)
    _told_in_time(mesh, cast.first)
    until(lambda: dask(mesh).life == 2, "a supervisor has taken over")
    lets_in_ranks.let_go()
    assert _serves_again(mesh, life=2).node == cast.third
    assert not [process for process in processes if process.is_running()]
    assert _node_of(mesh, record.job) == cast.second

    mesh.heal()
    assert not list(mesh.home.cluster().run(cast.first).rglob("engine-*")), "what lay on the dead node is gone"
    _hold(mesh)
    shared |= _shared_by_ranks(mesh)
    processes = kill(mesh, cast.third)
    _told_in_time(mesh, cast.third)
    assert _serves_again(mesh, life=3).node == cast.first
    assert not [process for process in processes if process.is_running()]

    assert mesh.ok("engine", "stop", "dask") == "Engine dask is stopped.\n"
    mesh.heal()
    assert not mesh.cluster.registers()
    until(lambda: not mesh.engine_files(), "its files are gone")
    until(lambda: not still_shared(shared), "nothing of it is left in shared memory")
    gate.touch()
    assert own.results(RESULT_S) == ["held"] * (SLOTS - 1)
    assert [len(story.attempts) for story in mesh.cluster.stories(own.id)] == [1] * (SLOTS - 1)


def _shared_by_ranks(mesh: EngineMesh) -> set[int]:
    shared: set[int] = set().union(*(shared_by(process.pid) for process in mesh.engine_processes()))
    assert shared
    return shared


def dask(mesh: EngineMesh) -> Record:
    return control.find(mesh.cluster, "dask")


def kill(mesh: EngineMesh, node: str) -> list[psutil.Process]:
    """End a daemon and all that it has started, at once; what that was."""
    daemon = psutil.Process(mesh.pid(node))
    processes = [daemon, *daemon.children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them sees another one end
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # it was about to end
                process.send_signal(number)
    return processes


def _told_in_time(mesh: EngineMesh, node: str) -> None:
    """Whoever looks is told what was lost with this node, a moment after its kill."""
    begun_s = time.monotonic()
    for words in (("engine", "status", "dask"), ("engine", "list"), ("ps",)):
        until(lambda words=words: _says(mesh, words, node), f"kos {' '.join(words)} tells of {node}")  # type: ignore[misc]
        took_s = time.monotonic() - begun_s
        print(f"kos {' '.join(words)} told of {node} {took_s:.1f} s after its kill")
        assert took_s < REPORT_S


def _says(mesh: EngineMesh, words: tuple[str, ...], node: str) -> bool:
    code, out, err = mesh.kos(*words)
    lost = rf"\b{node}\b.*lost.*: 0 tasks that waited or ran, and {HELD_BYTES / (1 << 20)} MiB of results"
    return code == 0 and re.search(lost, out + err) is not None


def _serves_again(mesh: EngineMesh, life: int) -> Record:
    until(lambda: (dask(mesh).state, dask(mesh).life) == (State.SERVING, life), "it serves again")
    assert mesh.cluster.engine("dask").submit(pow, 2, 5).result(RESULT_S) == 32
    return dask(mesh)


def _hold(mesh: EngineMesh) -> None:
    """Something to lose, of which the supervisor knows."""
    held = mesh.cluster.engine("dask").submit(bytes, HELD_BYTES, pure=False)
    assert len(held.result(RESULT_S)) == HELD_BYTES
    until(lambda: dask(mesh).held_bytes >= HELD_BYTES, "the supervisor has seen what is held")
    _kept.append(held)


_kept: list[Any] = []  # Dask drops what nobody holds


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    _kept.clear()


def _kept_by(monkeypatch: pytest.MonkeyPatch, *ids: str) -> None:
    """Have these nodes keep the work of detached jobs; the one that drives the fewest jobs drives it then."""

    def holders(hash_: str, members: list[Member]) -> list[Member]:
        by_id = {member.id: member for member in members}
        return [by_id[id_] for id_ in ids]

    monkeypatch.setattr(detached, "holders_of", holders)


def _node_of(mesh: EngineMesh, job: str) -> str:
    """Where the only task of a job runs."""
    (story,) = mesh.cluster.stories(job)
    return story.attempts[-1].node


def _held(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.05)
    return "held"
