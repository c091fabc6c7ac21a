"""Futures as arguments, on a real cluster: results in their places, failures that name the input, why and stories."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import gc
import operator
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.core.records import TaskState
from kos_cluster.tasks import futures
from kos_cluster.tasks.failures import RemoteTraceback
from tests.mesh.conftest import Mesh

WAIT_S = 60.0


def when(path: str, value: Any) -> Any:
    """Return the value once the file is there."""
    while not Path(path).exists():
        time.sleep(0.01)
    return value


def add(*numbers: int, **more: int) -> int:
    return sum(numbers) + sum(more.values())


def test_results_stand_in_the_places_of_their_futures(mesh: Mesh, tmp_path: Path):
    gate = tmp_path / "gate"
    one = mesh.cluster.submit(when, str(gate), 1)
    two = mesh.cluster.submit(add, one, 1)
    five = mesh.cluster.submit(add, two, one, more=two)
    assert not five.done()
    gate.touch()
    assert five.result(WAIT_S) == 5
    assert mesh.cluster.submit(add, five, one).result(WAIT_S) == 6, "of those that are done, too"


def test_futures_are_found_wherever_they_stand_and_one_twice_is_one_object(mesh: Mesh):
    @dataclasses.dataclass
    class Box:
        inside: Any

    made = mesh.cluster.submit(list, "ab")
    nested = [made, ({"x": made}, {1: [[[Box(made)]]]})]

    def seen(tree: Any) -> tuple[Any, bool]:
        first, (mapping, deep) = tree
        return first, first is mapping["x"] is deep[1][0][0][0].inside

    assert mesh.cluster.submit(seen, nested).result(WAIT_S) == (["a", "b"], True)


def test_map_takes_futures_among_its_elements(mesh: Mesh, tmp_path: Path):
    gate = tmp_path / "gate"
    late = mesh.cluster.submit(when, str(gate), 10)
    results = mesh.cluster.map(add, [1, late, 3, late], [late, 2, 3, late])
    assert results.futures[2].result(WAIT_S) == 6, "one that takes none does not wait"
    gate.touch()
    assert list(results) == [11, 12, 6, 20]


def test_a_tree_of_sums_and_a_long_chain(mesh: Mesh):
    layer = [mesh.cluster.submit(add, number) for number in range(64)]
    while len(layer) > 1:
        layer = [mesh.cluster.submit(add, *layer[at : at + 4]) for at in range(0, len(layer), 4)]
    assert layer[0].result(WAIT_S) == sum(range(64))
    chain = functools.reduce(lambda link, _: mesh.cluster.submit(add, link, 1), range(200), layer[0])
    assert chain.result(WAIT_S) == sum(range(64)) + 200


def test_the_executor_takes_futures_too(mesh: Mesh):
    with kos.Executor(cluster=mesh.cluster) as pool:
        first = pool.submit(add, 1)
        assert pool.submit(add, first, mesh.cluster.submit(add, 2)).result(WAIT_S) == 3


def test_a_large_result_is_passed_as_it_came_and_once_to_a_node(mesh: Mesh, monkeypatch: pytest.MonkeyPatch):
    read = []
    loads = futures.serialise.loads
    monkeypatch.setattr(futures.serialise, "loads", lambda data: read.append(len(data)) or loads(data))
    array = mesh.cluster.submit(np.arange, 1_000_000, dtype=np.int32, on="node1")
    sums = [mesh.cluster.submit(lambda a, n: int(a[n]), array, n, on="node2") for n in range(4)]
    assert [future.result(WAIT_S) for future in sums] == [0, 1, 2, 3]
    assert max(read) < 1000, "the array was unpickled here"
    received = sum(a.received_bytes for f in sums for s in mesh.cluster.stories(f.task) for a in s.attempts)
    assert received < 10_000, "its bytes came with a call"
    usage = mesh.cluster.memory()["node2"]
    assert usage.blocks == 1 and 4_000_000 < usage.used_bytes < 5_000_000, "it came to the node once"
    assert array.result()[5] == 5
    array.result()[5] = 7  # one's own copy
    assert mesh.cluster.submit(lambda a: int(a[5]), array).result(WAIT_S) == 5


def test_a_result_that_was_taken_before_is_passed_too(mesh: Mesh):
    taken = mesh.cluster.submit(np.arange, 300_000)
    assert taken.result(WAIT_S)[3] == 3
    assert mesh.cluster.submit(lambda a: int(a[3]), taken).result(WAIT_S) == 3
    assert mesh.cluster.submit(lambda a: len(a), taken).result(WAIT_S) == 300_000


def test_references_to_blocks_are_passed_on_and_resolved_where_the_task_is(mesh: Mesh, tmp_path: Path):
    gate = tmp_path / "gate"
    ref = mesh.cluster.put(np.arange(500_000))
    passed = mesh.cluster.submit(lambda refs: refs[0], [ref])
    late = mesh.cluster.submit(when, str(gate), 7)
    inside = mesh.cluster.submit(lambda refs, n: int(refs[0].get()[n]), [ref], late)
    for number in range(3):
        assert mesh.cluster.submit(lambda a, n: int(a[n]), passed, number).result(WAIT_S) == number
    assert ref.get()[3] == 3, "it is not dropped with the tasks that had it"
    del ref, passed
    gc.collect()
    gate.touch()
    assert inside.result(WAIT_S) == 7, "a task that waits keeps it"


def test_a_result_that_stayed_where_it_was_made_is_read_there(mesh: Mesh):
    stayed = mesh.cluster.submit(lambda: kos.stay(np.arange(300_000)), on="node1")
    concurrent.futures.wait([stayed], WAIT_S)
    for number in range(3):  # the future keeps what it refers to, whoever has read it before
        gc.collect()
        assert mesh.cluster.submit(lambda a, n: int(a[n]), stayed, number).result(WAIT_S) == number
    late = mesh.cluster.submit(lambda a: len(a), mesh.cluster.submit(lambda: kos.stay(np.arange(200_000))))
    assert late.result(WAIT_S) == 200_000


def test_a_failed_input_is_named_with_its_node_and_the_chain(mesh: Mesh):
    broken = mesh.cluster.submit(int, "ten", on="node2")
    second = mesh.cluster.submit(add, broken, 1)
    third = mesh.cluster.submit(add, 1, second)
    with pytest.raises(errors.InputFailedError) as caught:
        third.result(WAIT_S)
    said = str(caught.value)
    assert f"Task {third.task} was not run: it needs the result of task {second.task}" in said
    assert f"of task {broken.task}, which failed on node2: ValueError: invalid literal" in said
    assert isinstance(caught.value.__cause__, ValueError)
    assert isinstance(caught.value.__cause__.__cause__, RemoteTraceback)
    with pytest.raises(errors.InputFailedError, match=f"needs the result of task {broken.task}, which failed on node2"):
        second.result(WAIT_S)
    story = third.story()
    assert story is not None and (story.state, story.attempts) == (TaskState.FAILED, ())
    with pytest.raises(ValueError, match="ten"):
        broken.result(WAIT_S)
    for over in (broken, third):  # of those that are over, too
        with pytest.raises(errors.InputFailedError, match=f"of task {broken.task}, which failed on node2"):
            mesh.cluster.submit(add, over).result(WAIT_S)
    unasked = mesh.cluster.submit(add, broken)
    concurrent.futures.wait([unasked], WAIT_S)
    with pytest.raises(errors.InputFailedError, match=f"of task {broken.task}, which failed on node2"):
        mesh.cluster.submit(add, unasked).result(WAIT_S)


def test_an_input_that_is_lost_or_cancelled_fails_what_waits_for_it(mesh: Mesh, tmp_path: Path):
    lost = mesh.cluster.submit(os._exit, 3, retries=0)
    with pytest.raises(errors.InputFailedError, match="exit code 3") as caught:
        mesh.cluster.submit(add, lost).result(WAIT_S)
    assert isinstance(caught.value.__cause__, errors.TaskLostError)
    running = mesh.cluster.submit(when, str(tmp_path / "never"), 1)
    taker = mesh.cluster.submit(add, running)
    assert running.cancel()
    with pytest.raises(errors.InputFailedError, match=f"task {running.task}, which was cancelled"):
        taker.result(WAIT_S)
    with pytest.raises(errors.InputFailedError, match="was cancelled"):
        list(mesh.cluster.map(add, [running]))


def test_a_task_that_waits_can_be_cancelled_and_its_input_goes_on(mesh: Mesh, tmp_path: Path):
    gate = tmp_path / "gate"
    first = mesh.cluster.submit(when, str(gate), 1)
    taker = mesh.cluster.submit(add, first)
    assert taker.cancel() and taker.cancelled()
    gate.touch()
    assert first.result(WAIT_S) == 1
    with pytest.raises(concurrent.futures.CancelledError):
        taker.result(WAIT_S)


def test_why_and_stories_tell_what_a_task_waits_for_and_takes(mesh: Mesh, tmp_path: Path):
    gate = tmp_path / "gate"
    first = mesh.cluster.submit(when, str(gate), 1)
    taker = mesh.cluster.submit(add, first, name="taker")
    (row,) = mesh.cluster.why(taker.task)
    assert (row.tasks, row.state, row.why) == (taker.task, TaskState.WAITING, f"waits for {first.task}")
    program = mesh.program(
        f"""
        import time, kos_cluster as kos
        deadline = time.monotonic() + 60
        while not (rows := kos.connect().why({taker.job!r})) and time.monotonic() < deadline:
            time.sleep(0.05)
        print([(row.count, row.why) for row in rows])
        """
    )
    out, err = program.communicate(timeout=90)
    assert out == f"[(1, 'waits for {first.task}')]\n", err
    story = taker.story()
    assert story is not None and story.inputs == (first.task,)
    gate.touch()
    assert taker.result(WAIT_S) == 1
    assert [story.inputs for story in mesh.cluster.stories(taker.task)] == [(first.task,)]
    said = mesh.program(f"from kos_cluster.cli.main import main; main(['story', {taker.task!r}])").communicate(
        timeout=90
    )
    assert said[0].splitlines()[0].split()[:3] == ["TASK", "STATE", "TAKES"], said
    assert said[0].splitlines()[1].split()[:3] == [taker.task, "done", first.task], said


def test_a_future_of_another_connection_or_in_another_place_is_refused(mesh: Mesh):
    future = mesh.cluster.submit(add, 1)
    stranger = futures.Future(SimpleNamespace(id="x", owner=None), 0)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match=r"task x\.0 belongs to another connection"):
        mesh.cluster.submit(add, [stranger])
    with pytest.raises(errors.NotPicklableError, match="only as an argument of submit or map"):
        mesh.cluster.submit(lambda: future)
    with pytest.raises(errors.UsageError, match=r"detach\(\) takes no futures"):
        mesh.cluster.detach(add, [future])


def test_a_gang_as_an_argument_is_refused_while_its_result_is_taken(mesh: Mesh):
    gang = mesh.cluster.gang(abs, 1, -1)
    for call in (lambda: mesh.cluster.submit(add, gang), lambda: mesh.cluster.map(sum, [gang])):
        with pytest.raises(errors.UsageError, match=rf"Gang {gang.id} cannot be an argument: .*pass that"):
            call()
    assert mesh.cluster.submit(sum, gang.result(WAIT_S)).result(WAIT_S) == 1


def test_arguments_that_are_too_large_with_their_inputs_are_refused(mesh: Mesh, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kos_cluster.tasks.job.ARGUMENT_LIMIT_BYTES", 100_000)
    half = mesh.cluster.submit(bytes, 60_000)
    with pytest.raises(errors.LimitError, match="over the limit of 100,000"):
        mesh.cluster.submit(operator.concat, half, mesh.cluster.submit(bytes, 60_001)).result(WAIT_S)
    assert mesh.cluster.submit(len, half).result(WAIT_S) == 60_000


def test_too_many_results_that_are_waited_for_are_refused(mesh: Mesh, monkeypatch: pytest.MonkeyPatch):
    future = mesh.cluster.submit(add, 1)
    monkeypatch.setattr("kos_cluster.tasks.holding.PAIRS_LIMIT", 0)
    with pytest.raises(errors.LimitError, match="the limit is 0"):
        mesh.cluster.submit(add, future)
    monkeypatch.setattr("kos_cluster.tasks.inputs.INPUTS_LIMIT", 1)
    with pytest.raises(errors.LimitError, match="takes 2 futures"):
        mesh.cluster.submit(add, future, mesh.cluster.submit(add, 2))


def test_futures_of_many_threads_are_held_together(mesh: Mesh):
    first = mesh.cluster.submit(add, 1)
    sums: list[int] = []

    def work() -> None:
        sums.extend(mesh.cluster.gather([mesh.cluster.submit(add, first, n) for n in range(50)]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(sums) == sorted(4 * list(range(1, 51)))
