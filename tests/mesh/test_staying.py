"""Results that stay where they were made: who reads them, where, how long they live, and how lost ones come back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from kos_cluster import errors
from kos_cluster.core.records import AttemptEnd
from kos_cluster.tasks.futures import Future
from tests.mesh.conftest import Mesh, until

MIB = 1 << 20
WAIT_S = 60.0


def made(size: int, *_: object) -> np.ndarray:
    return np.full(size, 7.0)


def blocks(mesh: Mesh) -> dict[str, int]:
    """How many blocks each node has."""
    return {name: usage.blocks for name, usage in mesh.cluster.memory().items()}


def wait_until_empty(mesh: Mesh) -> None:
    gc.collect()
    until(lambda: not any(blocks(mesh).values()), "no arena holds anything", WAIT_S)


def stays(
    mesh: Mesh, size: int = MIB, on: str | None = "node2", **options: object
) -> concurrent.futures.Future[np.ndarray]:
    """The future of a result that is done, and that nobody has read."""
    future: Future = mesh.cluster.submit(made, size, on=on, **options)
    concurrent.futures.wait([future], WAIT_S)
    return future


def test_a_large_result_stays_and_is_read_privately(mesh: Mesh) -> None:
    wait_until_empty(mesh)
    future = stays(mesh)
    assert blocks(mesh) == {"node1": 0, "node2": 1}, "it has not come to who submitted it"
    value = future.result()
    assert float(value.sum()) == 7.0 * MIB
    assert value.flags.writeable and not value.flags.owndata, "it is mapped"
    value[0] = 1.0
    first = mesh.cluster.submit(lambda array: float(array[0]), future, on="node2")
    assert first.result(WAIT_S) == 7.0, "what the task has made is what others are passed"
    del future, first
    gc.collect()
    until(lambda: sum(blocks(mesh).values()) == 1, "the node that nobody reads from has dropped it", WAIT_S)
    assert float(value[1]) == 7.0, "it is there while it is read"
    del value
    wait_until_empty(mesh)


def test_a_task_takes_it_from_where_it_is(mesh: Mesh) -> None:
    future = stays(mesh)

    def doubled(array: np.ndarray) -> tuple[str, float]:
        array *= 2.0
        return os.environ["KOS_NODE"], float(array.sum())

    for _ in range(2):  # each has it for itself
        assert mesh.cluster.submit(doubled, future, on="node2").result(WAIT_S) == ("node2", 14.0 * MIB)
    assert blocks(mesh) == {"node1": 0, "node2": 1}, "it has not passed by its owner"
    assert mesh.cluster.submit(doubled, future, on="node1").result(WAIT_S) == ("node1", 14.0 * MIB)
    del future
    wait_until_empty(mesh)


def test_whatever_takes_results_reads_those_that_stay(mesh: Mesh) -> None:
    results = mesh.cluster.map(made, [MIB] * 3, range(3))
    assert [float(value.sum()) for value in results] == [7.0 * MIB] * 3
    assert len(stays(mesh, MIB, name="not an array").result()) == MIB
    text = mesh.cluster.submit(lambda: "x" * 3 * MIB, on="node2").result(WAIT_S)
    assert text == "x" * 3 * MIB, "what is no buffer is copied out"

    async def awaited() -> float:
        return float((await mesh.cluster.submit(made, MIB)).sum())

    assert asyncio.run(awaited()) == 7.0 * MIB
    told: list[float] = []
    called = threading.Event()

    def tell(future: concurrent.futures.Future[np.ndarray]) -> None:
        told.append(float(future.result().sum()))
        called.set()

    mesh.cluster.submit(made, MIB).add_done_callback(tell)
    assert called.wait(WAIT_S) and told == [7.0 * MIB]
    del results
    wait_until_empty(mesh)


def test_a_client_on_a_machine_without_a_node_gets_a_copy(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    future = stays(mesh)
    monkeypatch.setattr(mesh.cluster._mesh.blocks, "_here", lambda: None)
    value = future.result()
    value[0] = 1.0
    assert float(value.sum()) == 7.0 * (MIB - 1) + 1.0
    assert blocks(mesh) == {"node1": 0, "node2": 1}
    del future
    wait_until_empty(mesh)


def test_a_node_without_room_is_passed_by(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    future = stays(mesh)

    def full(*_: object, **__: object) -> memoryview:
        raise errors.ArenaFullError("The arena of node node1 has no room.")

    monkeypatch.setattr("kos_cluster.tasks.ownblocks.mapped", full)
    assert float(future.result().sum()) == 7.0 * MIB
    del future
    wait_until_empty(mesh)


def test_results_of_tasks_that_are_cancelled_go(mesh: Mesh, tmp_path: Path) -> None:
    def slow(path: str) -> bytes:
        import time

        Path(path).touch()
        try:
            time.sleep(60)
        finally:
            return bytes(2 << 20)  # noqa: B012 (it is done all the same)

    future = mesh.cluster.submit(slow, str(tmp_path / "runs"), on="node2")
    until((tmp_path / "runs").exists, "it runs", WAIT_S)
    assert future.cancel()
    wait_until_empty(mesh)


def test_a_connection_that_is_closed_has_dropped_what_was_not_taken(mesh: Mesh) -> None:
    program = mesh.program(
        """
        import numpy as np, kos_cluster as kos, concurrent.futures
        cluster = kos.connect()
        future = cluster.submit(np.ones, 1 << 20)
        concurrent.futures.wait([future])
        cluster.close()
        try:
            future.result()
        except kos.errors.BlockLostError as error:
            print(error)
        """
    )
    out, err = program.communicate(timeout=90)
    assert "was dropped when the connection was closed. Take results before you close the connection." in out, err


# ---- losses


def kill(mesh: Mesh) -> None:
    """Kill the second node; it is gone then, so that it can be started again."""
    pid = mesh.pid("node2")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(pid), "it is gone", WAIT_S)


def ends(mesh: Mesh, task: str) -> list[AttemptEnd]:
    job, _, index = task.partition(".")
    (story,) = mesh.cluster.own_stories(job, [int(index)])
    return [attempt.end for attempt in story.attempts]


def test_a_result_whose_only_copy_is_lost_is_made_again_elsewhere(mesh: Mesh, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def waits(path: str) -> None:
        import time

        Path(path + ".runs").touch()
        while not os.path.exists(path):
            time.sleep(0.01)

    blocker = mesh.cluster.submit(waits, str(gate), on="node1")
    until(Path(f"{gate}.runs").exists, "the other node is busy", WAIT_S)
    read, taken = stays(mesh, on=None), stays(mesh, 2 * MIB, on=None)
    assert blocks(mesh) == {"node1": 0, "node2": 2}
    gate.touch()
    blocker.result(WAIT_S)
    kill(mesh)
    assert mesh.cluster.submit(lambda array: float(array.sum()), taken).result(WAIT_S) == 14.0 * MIB
    assert float(read.result().sum()) == 7.0 * MIB
    for future in (read, taken):
        assert ends(mesh, future.task) == [AttemptEnd.RESULT_LOST, AttemptEnd.DONE]
    assert blocks(mesh) == {"node1": 2}
    mesh.heal()
    del read, taken, future
    wait_until_empty(mesh)


def test_what_it_was_made_of_is_made_again_too_and_what_cannot_be_says_why(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def shrinks(path: Path) -> bytes:
        if path.exists():
            return b"small"
        path.touch()
        return bytes(MIB)

    first, once = stays(mesh), stays(mesh, retries=0)
    small = mesh.cluster.submit(shrinks, tmp_path / "made", on="node2")
    twice = mesh.cluster.submit(lambda array: array * 2, first, on="node2")
    concurrent.futures.wait([small, twice], WAIT_S)
    task = first.task
    del first
    gc.collect()
    until(lambda: blocks(mesh)["node2"] == 3, "what nobody holds is dropped", WAIT_S)
    monkeypatch.setenv("KOS_NODE", "node2")
    ref = mesh.cluster.put(np.zeros(MIB))
    assert ref.node_name == "node2"
    kill(mesh)
    until(lambda: len(mesh.cluster._mesh.linked()) == 1, "the connection has noticed", WAIT_S)
    for wait in (twice.result, twice.exception):
        with pytest.raises(TimeoutError, match=f"The result of task {twice.task} is lost, and has not been made again"):
            wait(0.1)  # its node may never be there again
    mesh.heal()
    assert float(twice.result().sum()) == 14.0 * MIB
    assert ends(mesh, twice.task) == [AttemptEnd.RESULT_LOST, AttemptEnd.INPUT_LOST, AttemptEnd.DONE]
    assert ends(mesh, task) == [AttemptEnd.RESULT_LOST, AttemptEnd.DONE]
    never = rf"The result of task {once.task} is lost .*cannot be made again: its retries, 0, are used up"
    with pytest.raises(errors.BlockLostError, match=never):
        once.result()
    assert isinstance(once.exception(), errors.BlockLostError)
    with pytest.raises(
        errors.InputFailedError, match=f"was not run: it needs the result of task {once.task}"
    ) as caught:
        mesh.cluster.submit(len, once).result(WAIT_S)
    assert isinstance(caught.value.__cause__, errors.BlockLostError)
    with pytest.raises(errors.InputFailedError, match=f"Task {small.task} has made it again, but it does not stay"):
        mesh.cluster.submit(len, small).result(WAIT_S)
    assert small.result() == b"small"
    with pytest.raises(errors.BlockLostError, match="What was put cannot be made again: put it again"):
        ref.get()
    del twice, once, small, wait, caught
    wait_until_empty(mesh)
