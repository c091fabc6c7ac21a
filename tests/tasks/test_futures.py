"""What a future costs while its task is queued, and that what is made for who waits is one for all threads."""

from __future__ import annotations

import concurrent.futures
import threading
import tracemalloc
from typing import Any

import pytest

from kos_cluster.tasks import futures as futures_module
from kos_cluster.tasks import serialise
from kos_cluster.tasks.futures import Future, Outcome
from tests.tasks.test_inputs import Job, future

QUEUED_LIMIT_BYTES = 260  # of one future: 136 in a fresh process, up to 224 where all that futures can do was used


def test_a_million_queued_futures_take_little():
    job = Job("j")
    Future(job, 0).cancelled()
    tracemalloc.start()
    futures = [Future(job, index) for index in range(10_000)]
    here = [tracemalloc.Filter(True, path) for path in (__file__, futures_module.__file__)]  # other threads go on
    size_bytes = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(here).statistics("filename"))
    tracemalloc.stop()
    assert 50 < size_bytes / len(futures) < QUEUED_LIMIT_BYTES


def test_whoever_waits_first_makes_what_all_who_wait_need():
    for _ in range(50):
        made = future()
        ready = threading.Barrier(5)
        results: list[object] = []

        def wait(made: Future = made, ready: threading.Barrier = ready, results: list[object] = results) -> None:
            ready.wait(60)
            results.append(made.result(60))

        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        ready.wait(60)
        pickled = serialise.dumps_result(42)
        assert isinstance(pickled, bytes)
        made.settle(Outcome(pickled))
        for thread in threads:
            thread.join(60)
        assert results == [42] * 4


def test_a_fresh_future_answers_like_any():
    made = future()
    assert (made.done(), made.running(), made.cancelled()) == (False, False, False)
    assert (made.task, made.job) == ("j.0", "j")
    with pytest.raises(concurrent.futures.TimeoutError):
        made.exception(0)
    assert not hasattr(made, "colour")
    assert made.cancel() and concurrent.futures.wait([made], 0).done == {made}


def test_a_future_that_is_cancelled_as_it_is_settled_keeps_nobody_from_settling():
    class CancelledJustThen(Future):
        def set_result(self, result: Any) -> None:
            self.cancel()
            super().set_result(result)

        def set_exception(self, exception: BaseException | None) -> None:
            self.cancel()
            super().set_exception(exception)

    pickled = serialise.dumps_result(42)
    assert isinstance(pickled, bytes)
    for outcome in (Outcome(pickled), Outcome(pickled, failed=True), ValueError("lost")):
        made = CancelledJustThen(Job("j"), 0)
        made.settle(outcome)
        assert made.cancelled()
