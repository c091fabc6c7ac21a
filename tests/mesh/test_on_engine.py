"""What runs on an engine means the same as on the mesh. Threads of this process play the engine's part."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import kos_cluster as kos
from kos_cluster.core.records import JobSummary
from kos_cluster.errors import PlacementError, StateError, TaskLostError, TaskTimeoutError, UsageError
from kos_cluster.services.engines import control, launching, references
from kos_cluster.services.engines import owner as owners
from kos_cluster.services.engines.launching import Launcher, Owners
from kos_cluster.services.engines.spec import Record, State
from kos_cluster.tasks import mesh as tasks_mesh
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.failures import RemoteTraceback
from tests.engines.stand_in import NODE, StandIn
from tests.mesh.conftest import Mesh, until


@pytest.fixture
def on(mesh: Mesh, engine: StandIn) -> Iterator[Launcher]:
    """What a test leaves running, as it failed, does not keep the next one waiting."""
    launcher = mesh.cluster.on_engine("stand-in")
    yield launcher
    for table in list(launcher._owner._active):
        if table.job is not None:
            table.job.cancel()


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, task: str, stream: str, data: bytes) -> None:
        self.told.append((task.partition(".")[2], stream, data.decode()))

    def display(self, task: str, content: dict[str, Any]) -> None:
        self.told.append((task.partition(".")[2], content))

    def progress(self, summary: JobSummary, waits: str) -> None:
        self.told.append(("progress", summary, waits))

    def finished(self, summary: JobSummary) -> None:
        self.told.append(("finished", summary))


def _by_value() -> Callable[[str], str]:
    """A task that ends when the file is there. It travels whole: no worker has to load this module first."""

    def waits_for(path: str) -> str:
        begun = Path(f"{path}.{os.getpid()}")  # several may wait for one file
        begun.write_text(str(os.getpid()))
        begun.rename(f"{path}.begun")
        while not Path(path).exists():
            time.sleep(0.005)
        return path

    return waits_for


waits_for = _by_value()
LAUNCHER = launching.launcher  # before any stand-in takes its place


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_a_call_runs_in_a_worker_of_the_node_beneath_the_engine(on: Launcher):
    def told(x: int) -> tuple[int, str, int, str]:
        return x, os.environ["KOS_NODE"], os.getpid(), os.environ["KOS_TASK"]

    results = on.map(told, [1, 2])
    values = list(results)
    assert [value[0] for value in values] == [1, 2]
    assert {value[1] for value in values} == {NODE} and os.getpid() not in {value[2] for value in values}
    assert [value[3] for value in values] == [f"{results.job}.0", f"{results.job}.1"]


def test_output_and_displays_come_in_their_order_under_the_task_that_made_them(on: Launcher):
    def speak(n: int) -> None:
        from kos_cluster.tasks import context

        print("é" * 40_000, flush=True)
        os.system("echo from a process")
        context.display({"data": {"text/plain": f"{n}\n" * 100_000}})  # which an engine may cut into pieces
        sys.stderr.write("at the end")

    sink = Sink()
    list(on.map(speak, [7], sink=sink))
    (shown,) = [content for _, content in [row for row in sink.told if len(row) == 2]]
    assert shown == {"data": {"text/plain": "7\n" * 100_000}}
    position = sink.told.index(("0", shown))
    assert "".join(text for _, _, text in sink.told[:position]) == "é" * 40_000 + "\nfrom a process\n"
    assert sink.told[position + 1 :] == [("0", "stderr", "at the end")]


def test_a_failure_is_its_own_type_with_the_traceback_of_the_node_and_tells_of_others(on: Launcher):
    results = on.map(lambda x: 1 // x, [0, 0, 1])
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert f"node {NODE}, task {results.job}.0, attempt 1" in str(caught.value.__cause__)
    until(lambda: results.failures(), "the other failure has come")
    assert [type(other) for other in results.failures()] == [ZeroDivisionError]


def test_cancelling_stops_what_runs_and_sends_nothing_more(on: Launcher, tmp_path: Path):
    results = on.map(waits_for, [str(tmp_path / str(n)) for n in range(5)])
    until(lambda: len(list(tmp_path.glob("*.begun"))) == 2, "two run, for so many workers there are")
    pids = [int(path.read_text()) for path in tmp_path.glob("*.begun")]
    results.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)
    until(lambda: list(on.map(abs, [-1])) == [1], "the engine's threads are free again")
    assert len(list(tmp_path.glob("*.begun"))) == 2
    until(lambda: all(map(gone, pids)), "their workers have ended")


def test_a_worker_that_dies_is_replaced_as_often_as_retries_allow(on: Launcher, tmp_path: Path):
    def dies(path: str) -> str:
        with open(path, "a") as file:
            file.write("x")
        if os.environ["KOS_ATTEMPT"] == "1":
            os.kill(os.getpid(), 9)
        return os.environ["KOS_ATTEMPT"]

    results = on.map(dies, [str(tmp_path / "again")], retries=1)
    (future,) = results.futures
    assert future.result(timeout=30) == "2" and (tmp_path / "again").read_text() == "xx"
    assert [attempt.end for attempt in future.story().attempts] == ["worker-lost", "done"]
    with pytest.raises(TaskLostError, match=r"on node1 died \(1 attempt; SIGKILL"):
        list(on.map(dies, [str(tmp_path / "once")], retries=0))
    assert (tmp_path / "once").read_text() == "x"


def test_a_call_over_its_timeout_is_stopped(on: Launcher, tmp_path: Path):
    def lasts(path: str) -> None:
        Path(f"{path}.new").write_text(str(os.getpid()))
        os.rename(f"{path}.new", path)
        while True:
            time.sleep(0.01)

    with pytest.raises(TaskTimeoutError, match="ran longer than its timeout on node1"):
        list(on.map(lasts, [str(tmp_path / "pid")], timeout=1.0))
    until(lambda: gone(int((tmp_path / "pid").read_text())), "its worker has ended")


def test_large_functions_and_arguments_travel_once_to_a_node_and_not_through_the_engine(on: Launcher, engine: StandIn):
    table = os.urandom(2 << 20)
    engine.submitted.clear()
    assert list(on.map(lambda n: len(table) + n, range(3))) == [(2 << 20) + n for n in range(3)]
    (size,) = on.map(len, [bytes(3 << 20)])
    assert size == 3 << 20 and max(engine.submitted) < 4096
    (array,) = on.map(numpy.zeros, [1 << 18])
    array[0] = 1  # it is the reader's own
    assert array.nbytes == 2 << 20


def test_a_block_is_opened_where_it_is_and_read_only(on: Launcher, mesh: Mesh):
    numbers = mesh.cluster.put(numpy.arange(1 << 17))

    def looked_at(array: numpy.ndarray) -> tuple[int, bool, bool]:
        address = array.__array_interface__["data"][0]
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        at = next(m for m in maps if int(m[0].split("-")[0], 16) <= address < int(m[0].split("-")[1], 16))
        return int(array[-1]), array.flags.writeable, "memfd:kos-block" in " ".join(at)

    assert list(on.map(looked_at, [numbers])) == [((1 << 17) - 1, False, True)]


def test_what_an_engine_cannot_honour_is_refused_before_anything_is_sent(on: Launcher, engine: StandIn):
    engine.submitted.clear()
    for option, value in {
        "memory": "1G",
        "on": "node1",
        "gpus": 1,
        "resources": {"licence": 1},
        "labels": "site=here",
        "away_from": "node1",
        "spread": True,
        "pack": True,
        "near": "other",
        "apart": "other",
        "speculate": True,
        "priority": 1,
    }.items():
        with pytest.raises(UsageError, match=f"places its tasks itself, so it does not take the option '{option}'"):
            on.map(abs, [1], **{option: value})
    with pytest.raises(PlacementError, match=r"A task needs 2 slots, and each worker of .* has 1\. .*--cpus 2"):
        on.map(abs, [1], cpus=2)
    with pytest.raises(UsageError, match="takes no futures"):
        on.map(abs, [kos.connect().submit(abs, 1)])
    assert not engine.submitted


def test_modules_of_the_submitter_travel(on: Launcher, mesh: Mesh, monkeypatch: pytest.MonkeyPatch):
    (mesh.folder / "for_engines.py").write_text("def seven():\n    return 7\n")
    monkeypatch.syspath_prepend(str(mesh.folder))
    import for_engines  # type: ignore[import-not-found]

    assert list(on.map(lambda _: for_engines.seven(), [0])) == [7]


def test_tasks_submit_tasks(on: Launcher):
    assert list(on.map(lambda n: sum(kos.connect().map(abs, range(n))), [5])) == [10]


def test_an_initializer_runs_once_in_each_worker_of_its_executor_alone(engine: StandIn, mesh: Mesh):
    def begin(word: str) -> None:
        os.environ["BEGUN"] = os.environ.get("BEGUN", "") + word

    def told(_: int) -> str:
        time.sleep(0.01)
        return os.environ.get("BEGUN", "")

    with kos.Executor(initializer=begin, initargs=("yes",), engine="stand-in") as executor:
        assert set(executor.map(told, range(8))) == {"yes"}
    with kos.Executor(engine="stand-in") as executor:
        assert executor.submit(told, 0).result(timeout=30) == ""
        with pytest.raises(concurrent.futures.TimeoutError):
            list(executor.map(time.sleep, [60], timeout=0.1))


def test_what_lasts_shows_its_progress(on: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(owners, "PROGRESS_AFTER_S", 0.0)
    sink = Sink()
    results = on.map(waits_for, [str(tmp_path / "a"), str(tmp_path / "b")], sink=sink, name="mine")
    (tmp_path / "a").touch()
    until(lambda: any(row[0] == "progress" and row[1].done == 1 for row in sink.told), "one is done")
    shown = next(row[1] for row in sink.told if row[0] == "progress" and row[1].done)
    assert (shown.name, shown.total, shown.running, shown.nodes) == ("mine", 2, 1, (NODE,))
    assert "1 on their way" in repr(results)
    (tmp_path / "b").touch()
    list(results)
    until(lambda: sink.told[-1][0] == "finished", "its end is told")


def test_many_calls_are_not_all_with_the_engine_at_once(on: Launcher, engine: StandIn, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(owners, "OUT_LIMIT", 4)
    engine.submitted.clear()
    results = on.map(waits_for, [str(tmp_path / "gate")] * 20)
    until(lambda: (tmp_path / "gate.begun").exists(), "it has begun")
    assert len(engine.submitted) == 4
    (tmp_path / "gate").touch()
    assert len(list(results)) == 20


def test_what_runs_on_an_engine_ends_with_its_connection_and_the_next_has_its_own(
    mesh: Mesh, engine: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = Record("night", "any", "id", "job", State.SERVING, 1, 1, 0, 0, False, 0.0)
    opened: list[StandIn] = []

    def open_engine(*_: Any) -> StandIn:
        opened.append(StandIn())
        return opened[-1]

    monkeypatch.setattr(control, "find", lambda *_: record)
    monkeypatch.setattr(control, "open_engine", open_engine)
    monkeypatch.setattr(launching, "launcher", LAUNCHER)
    for _ in range(2):
        connected = tasks_mesh.Mesh(mesh.home.cluster())
        connected.start()
        with Cluster(connected) as cluster:
            assert list(cluster.on_engine("night").map(len, [bytes(300_000)])) == [300_000]
            runs = cluster.on_engine("night").map(waits_for, [str(tmp_path / "gate")])
            until(lambda: (tmp_path / "gate.begun").exists(), "it runs")
            pid = int((tmp_path / "gate.begun").read_text())
        with pytest.raises(concurrent.futures.CancelledError):
            next(runs)
        until(functools.partial(gone, pid), "its worker has ended")
        (tmp_path / "gate.begun").unlink()
    assert [connection.usable for connection in opened] == [False, False]  # one a connection, and left
    opened_again = Owners(mesh.cluster, mesh.cluster._mesh)
    try:
        first = opened_again.of("night")
        opened[-1].usable = False
        assert opened_again.of("night") is not first
        assert first.closed
    finally:
        opened_again.close()
    with pytest.raises(StateError, match="is closed"):
        opened_again.of("night")


def test_the_block_of_a_result_is_kept_by_the_connection_whose_result_it_is(mesh: Mesh):
    connected = tasks_mesh.Mesh(mesh.home.cluster())
    connected.start()
    with Cluster(connected) as other:
        made = other.submit(numpy.ones, 1 << 18)
        block = references.block_of_result(made)
        del made
        connected.run_there(connected.blocks._tell_now())  # what nobody needs is dropped
        assert block.node_name in ("node1", "node2") and block.get().sum() == 1 << 18
