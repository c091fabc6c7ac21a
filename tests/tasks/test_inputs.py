"""Futures that are passed to tasks: what is kept of their outcomes, and what a call with them is made into."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest

from kos_cluster import errors
from kos_cluster.tasks import inputs, places, serialise
from kos_cluster.tasks.failures import failure_of
from kos_cluster.tasks.futures import Future, Outcome


class Job:
    """A job that nobody drives."""

    owner = None

    def __init__(self, id_: str) -> None:
        self.id = id_

    def cancel_task(self, index: int) -> None: ...

    def story(self, index: int) -> None: ...


def future(task: str = "j.0") -> Future:
    job, _, index = task.partition(".")
    return Future(Job(job), int(index))


def done(value: Any, task: str = "j.0") -> Future:
    made = future(task)
    pickled = serialise.dumps_result(value)
    made.settle(Outcome(pickled if isinstance(pickled, bytes) else bytearray(b"".join(pickled))))
    return made


def failed(error: Exception, task: str = "j.0") -> Future:
    made = future(task)
    made.settle(Outcome(pickle.dumps(failure_of(error, node="node7", task=task, attempt=1)), failed=True))
    return made


def called(payload: bytes, taken: inputs.Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the task is called with, as the worker finds it out."""
    for each in taken:
        each.keep()
    whole, parts = inputs.joined(payload, taken)
    places.find_parts_by(lambda hash_: memoryview(bytearray(parts[hash_])))
    args, kwargs = serialise.loads(whole)
    return args, kwargs


def test_a_call_is_made_whole_with_values_in_all_places():
    one, array = done(1, "j.1"), done(np.arange(300_000), "j.2")
    payload, taken = inputs.dumps_call(([one, {"deep": (array, one)}],), {"key": array})
    assert [each.task for each in taken] == ["j.1", "j.2"] and len(payload) < 500
    (listed,), keywords = called(payload, taken)
    assert listed[0] == 1 and listed[1]["deep"][1] == 1
    assert listed[1]["deep"][0] is keywords["key"] and keywords["key"][-1] == 299_999
    keywords["key"][0] = 5  # a task may write to what it got


def test_of_many_calls_those_are_told_that_take_futures():
    one = done(1)
    payloads, taken = inputs.dumps_calls([(1,), (one, 2), (3,), ([one],)])
    assert len(payloads) == 4 and taken == {1: (one,), 3: (one,)}
    assert serialise.loads(payloads[2]) == ((3,), {})


def test_what_is_kept_is_not_changed_through_what_result_gave():
    array = done(np.arange(300_000))
    array.keep()
    array.result()[0] = 9
    before = done(np.arange(300_000))
    view = before.result()
    before.keep()
    view[0] = 9
    for each in (array, before):
        kept = each.ending()
        assert isinstance(kept, Outcome) and kept.value()[0] == 0


def test_what_was_taken_and_cannot_be_pickled_any_more_is_refused_each_time():
    taken = done([])
    taken.result().append(threading.Lock())
    for _ in range(2):
        with pytest.raises(errors.NotPicklableError, match="lock"):
            taken.keep()
    taken.result().clear()
    taken.keep()
    kept = taken.ending()
    assert isinstance(kept, Outcome) and kept.value() == []


@pytest.mark.parametrize("asked", ["before", "after", "never"])
def test_a_failed_input_is_told_with_its_node_however_long_the_chain(asked: str):
    broken = failed(ValueError("no ten"), "j.0")
    if asked == "before":
        assert isinstance(broken.exception(), ValueError)
    taker = future("k.0")
    broken.keep()
    taker.settle(inputs.failure("k.0", broken))
    if asked == "after":
        assert isinstance(taker.exception(), errors.InputFailedError)
    taker.keep()
    last = inputs.failure("l.0", taker).error()
    assert str(last).startswith(
        "Task l.0 was not run: it needs the result of task k.0, which needs that of task j.0, which failed on node7: "
        "ValueError: no ten."
    )
    assert isinstance(last.__cause__, ValueError)


def test_a_cancelled_input_and_a_lost_one_are_told_too():
    cancelled, lost = future("j.1"), future("j.2")
    cancelled.cancel()
    lost.settle(errors.TaskLostError("The worker of task j.2 on node3 died."))
    assert "task j.1, which was cancelled" in str(inputs.failure("k.0", cancelled).error())
    assert "task j.2, which failed: TaskLostError: The worker of task j.2 on node3 died" in str(
        inputs.failure("k.0", lost).error()
    )


def test_a_future_is_pickled_only_in_a_call():
    with pytest.raises(errors.NotPicklableError, match="only as an argument"):
        pickle.dumps(done(1))
    with pytest.raises(errors.NotPicklableError, match="argument 1"):
        serialise.dumps_args((done(1),), {})
