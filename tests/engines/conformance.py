"""What every engine must do, as a class of tests: over the interface alone, `services.engines.engine`, and by `work`.

How a third engine is added. Write `services/engines/KIND.py` with an ENGINE, name the kind in `kinds.KINDS`, give it an
extra of its name in pyproject.toml, and run this suite by a module of its own:

    from tests.engines.conformance import EngineConformance

    KIND = "kind"
    WORDS = ("--memory", "1G")  # of `kos engine start`; --allow-plaintext belongs here, if it is needed

    class TestKind(EngineConformance): ...

All tests of a module share one cluster of three nodes and one engine of three workers; those here change their number,
and the last one stops the engine. So what only one engine has (its dataframes, its actors) is tested before them, with
the fixtures `engine` and `connection`. A module in another folder imports all the fixtures of `conftest`.
"""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from contextlib import suppress
from typing import Any

import psutil
import pytest

from kos_cluster.errors import AuthError, EngineError, PlacementError, TaskLostError, UnreachableError
from kos_cluster.services.engines import control
from kos_cluster.services.engines.engine import Connection, Task
from kos_cluster.services.engines.kinds import engine_of
from kos_cluster.services.engines.spec import Record
from tests.engines.conftest import WORKERS, EngineMesh, listens_everywhere
from tests.engines.work import Work
from tests.mesh.conftest import until

RESULT_S = 20.0  # for one call
SHARED = "/dev/shm/"


class EngineConformance(Work):
    """Subclass it in a module that says which KIND. What people run on it through KOS comes first."""

    def test_it_is_listed(self, mesh: EngineMesh, engine: Record) -> None:
        listed = mesh.ok("engine", "list")
        assert engine.name in listed
        assert f"{WORKERS}/{WORKERS}" in listed
        jobs = {job.name: job for job in mesh.cluster.jobs()}
        assert jobs[f"engine {engine.name} ({engine.kind})"].job == engine.job
        assert jobs[f"engine {engine.name}"].total == 1 + WORKERS
        assert f"Engine {engine.name} ({engine.kind}) is serving" in mesh.ok("engine", "status", engine.name)

    def test_a_call_gives_its_result(self, connection: Connection) -> None:
        assert connection.submit(lambda task: 6 * 7).result(RESULT_S) == 42

    def test_a_call_raises_its_own_exception(self, connection: Connection) -> None:
        with pytest.raises(KeyError, match="nothing of that name"):
            connection.submit(_fails).result(RESULT_S)

    def test_what_a_call_says_comes_in_order_and_before_its_result(self, connection: Connection) -> None:
        said: list[tuple[str, str]] = []
        future = connection.submit(_counts, write=lambda stream, text: said.append((stream, text)))
        assert future.result(RESULT_S) == "done"
        assert said == [("stdout", str(number)) for number in range(50)]

    def test_a_call_that_runs_is_stopped(self, connection: Connection, tmp_path: Any) -> None:
        begun, stopped = tmp_path / "begun", tmp_path / "stopped"

        def waits(task: Task) -> None:
            begun.touch()
            if task.stopped.wait(60):
                stopped.touch()

        future = connection.submit(waits)
        until(begun.exists, "the call runs")
        assert future.cancel()
        until(stopped.exists, "the call was told to stop")

    def test_a_call_that_waits_is_not_run(self, connection: Connection, tmp_path: Any) -> None:
        hold, ran = tmp_path / "hold", tmp_path / "ran"
        busy = [connection.submit(_holds(str(hold))) for _ in range(2 * WORKERS)]
        waiting = connection.submit(lambda task: ran.touch())
        assert waiting.cancel()
        until(lambda: _open(connection) == len(busy), "it is cancelled")
        hold.touch()
        for future in busy:
            future.result(RESULT_S)
        assert connection.submit(lambda task: 1).result(RESULT_S) == 1
        assert not ran.exists()

    def test_its_standing_is_told(
        self, mesh: EngineMesh, engine: Record, connection: Connection, tmp_path: Any
    ) -> None:
        hold = tmp_path / "hold"
        futures = [connection.submit(_holds(str(hold))) for _ in range(4 * WORKERS)]
        until(lambda: _open(connection) == len(futures), "all calls are counted")
        assert len(connection.standing().workers) == WORKERS
        until(lambda: _row(mesh, engine.kind).running + _row(mesh, engine.kind).waiting == len(futures), "and listed")
        hold.touch()
        for future in futures:
            future.result(RESULT_S)

    def test_a_call_is_lost_with_its_worker_when_it_may_not_run_again(self, connection: Connection) -> None:
        with pytest.raises(TaskLostError):
            connection.submit(_dies).result(RESULT_S)
        until(lambda: len(connection.standing().workers) == WORKERS, "the engine has brought its worker back")

    def test_a_call_runs_again_as_often_as_it_may(self, connection: Connection, tmp_path: Any) -> None:
        marks = tmp_path / "marks"

        def dies_once(task: Task) -> str:
            with marks.open("a") as file:
                file.write("x")
            if len(marks.read_text()) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return "alive"

        assert connection.submit(dies_once, retries=1).result(RESULT_S) == "alive"
        until(lambda: len(connection.standing().workers) == WORKERS, "the engine has brought its worker back")

    def test_strangers_are_refused(self, mesh: EngineMesh, engine: Record) -> None:
        """Those who have a certificate of another engine, and those who have none of the cluster's at all."""
        other = mesh.cluster.engine_keys("0" * 16, "127.0.0.1")
        own = mesh.cluster.engine_keys(engine.id, "127.0.0.1")
        mixed = type(own)(own.authority, other.certificate, other.key, own.secret)
        for credentials in (other, mixed):
            with pytest.raises((AuthError, UnreachableError)):
                engine_of(engine.kind).connect(engine.address, credentials)

    def test_nothing_listens_on_all_addresses(self, mesh: EngineMesh, engine: Record, connection: Connection) -> None:
        processes = mesh.engine_processes()
        assert len(processes) >= WORKERS
        assert not [told for process in processes for told in listens_everywhere(process)]

    def test_its_dashboard_is_reached_through_the_nodes_port(self, mesh: EngineMesh, engine: Record) -> None:
        assert engine.address.dashboard
        with mesh.cluster.forward_port(engine.node, engine.address.dashboard) as forwarded:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{forwarded.port}/", timeout=10)
            assert answer.status == 200

    def test_it_grows_and_shrinks(self, mesh: EngineMesh, engine: Record, connection: Connection) -> None:
        assert mesh.ok("engine", "scale", engine.kind, str(WORKERS + 1)) == f"Engine {engine.kind} has 4 workers.\n"
        assert len(connection.standing().workers) == WORKERS + 1
        assert mesh.ok("engine", "scale", engine.kind, "2") == f"Engine {engine.kind} has 2 workers.\n"
        assert len(connection.standing().workers) == 2
        assert connection.submit(lambda task: 1).result(RESULT_S) == 1

    def test_more_workers_than_ever_fit_are_refused_with_numbers(self, mesh: EngineMesh, engine: Record) -> None:
        code, _, err = mesh.kos("engine", "scale", engine.kind, "99")
        assert code == PlacementError.exit_code
        assert "99 workers of 1 slot each do not fit beside the head: the cluster holds 12 such ranks at most" in err
        assert _row(mesh, engine.kind).wanted == 2

    def test_a_lost_rank_is_replaced(self, mesh: EngineMesh, engine: Record, connection: Connection) -> None:
        """The process of a rank itself, with all that it has started: the engine has nothing left to bring back."""
        pid = mesh.rank_of(connection.submit(lambda task: os.getpid()).result(RESULT_S))
        shared = shared_by(pid)
        os.kill(pid, signal.SIGKILL)
        until(lambda: "SIGKILL" in _row(mesh, engine.kind).why, "the loss is told")
        until(lambda: len(connection.standing().workers) == 2, "another has come")
        until(lambda: not still_shared(shared), "nothing of it is left in shared memory")

    def test_nothing_is_left_when_it_is_stopped(self, mesh: EngineMesh, engine: Record, connection: Connection) -> None:
        before = mesh.engine_processes()
        assert before
        shared = set().union(*(shared_by(process.pid) for process in before))
        assert mesh.engine_files()
        assert mesh.ok("engine", "stop", engine.kind) == f"Engine {engine.kind} is stopped.\n"
        until(lambda: not any(map(psutil.Process.is_running, before)), "its processes have ended")
        until(lambda: not mesh.engine_files(), "its files are gone")
        until(lambda: not still_shared(shared), "nothing of it is left in shared memory")
        assert not [name for name in mesh.cluster.registers() if name.startswith("engine.")]
        with pytest.raises(EngineError, match="none is started"):
            control.find(mesh.cluster, engine.kind)


def shared_by(pid: int) -> set[int]:
    """What a process shares with others under a name, as semaphores: inodes, as they have another name at first."""
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/maps") as maps:
        return {int(fields[4]) for fields in map(str.split, maps) if fields[5:] and fields[5].startswith(SHARED)}
    return set()


def still_shared(inodes: set[int]) -> bool:
    return any(each.inode() in inodes for each in os.scandir(SHARED))


def _fails(task: Task) -> None:
    raise KeyError("nothing of that name")


def _counts(task: Task) -> str:
    for number in range(50):
        task.write("stdout", str(number))
    return "done"


def _dies(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _holds(path: str) -> Any:
    """A call that waits for a file, without a busy processor."""

    def holds(task: Task) -> None:
        while not os.path.exists(path):
            time.sleep(0.02)

    return holds


def _open(connection: Connection) -> int:
    standing = connection.standing()
    return standing.waiting + standing.running


def _row(mesh: EngineMesh, name: str) -> Record:
    return control.find(mesh.cluster, name)
