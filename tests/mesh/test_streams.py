"""Generators and async functions as tasks, on a real cluster: streams, windows, retries, closing, cancelling."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.core.records import AttemptEnd, TaskState
from kos_cluster.core.streaming import WINDOW_ITEMS
from tests.mesh.conftest import Mesh, until

WAIT_S = 60.0


def count(stop: int, mark: str = "") -> Iterator[int]:
    """Yields numbers; the file, if one is named, always holds how many it has made."""
    try:
        for number in range(stop):
            if mark:
                Path(mark).write_text(str(number + 1))
            yield number
    finally:
        if mark:
            Path(mark + ".closed").touch()
    return "that was all"


def test_items_come_as_they_are_yielded(mesh: Mesh, tmp_path: Path):
    gate = tmp_path / "gate"

    def slowly(path: str) -> Iterator[str]:
        yield "first"
        while not Path(path).exists():
            time.sleep(0.01)
        yield "second"

    stream = mesh.cluster.submit(slowly, str(gate))
    assert next(stream) == "first"
    assert not stream.future.done()
    gate.touch()
    assert list(stream) == ["second"]


def test_a_stream_is_an_iterator_that_ends_with_what_the_generator_returned(mesh: Mesh):
    stream = mesh.cluster.submit(count, 1000)

    def through() -> Iterator[int]:
        assert (yield from stream) == "that was all"

    assert list(through()) == list(range(1000))
    assert list(stream) == []
    assert stream.future.result(WAIT_S) == "that was all"
    assert stream.future.story().state is TaskState.DONE
    assert list(mesh.cluster.submit(functools.partial(count, 3))) == [0, 1, 2]
    assert list(mesh.cluster.submit(count, 0)) == []


def test_async_for_takes_what_an_async_generator_yields(mesh: Mesh):
    async def ticks(stop: int) -> AsyncIterator[int]:
        for number in range(stop):
            await asyncio.sleep(0)
            yield number

    async def main() -> list[list[int]]:
        async def taken(stream: Any) -> list[int]:
            return [item async for item in stream]

        streams = [mesh.cluster.submit(ticks, 100), mesh.cluster.submit(count, 100)]
        return await asyncio.gather(*map(taken, streams))

    assert asyncio.run(main()) == [list(range(100))] * 2


def test_a_task_is_no_further_ahead_than_the_window_and_why_tells(mesh: Mesh, tmp_path: Path):
    mark = tmp_path / "made"
    stream = mesh.cluster.submit(count, 10_000, str(mark))

    def waits() -> bool:
        return any("waits until more of what it yields is taken" in row.why for row in mesh.cluster.why(stream.task))

    until(waits, "the task waits for its taker", WAIT_S)
    assert int(mark.read_text()) == WINDOW_ITEMS
    assert [next(stream) for _ in range(WINDOW_ITEMS // 2)] == list(range(WINDOW_ITEMS // 2))
    until(lambda: mark.read_text() == str(WINDOW_ITEMS + WINDOW_ITEMS // 2), "it goes on", WAIT_S)
    until(waits, "it waits again", WAIT_S)
    assert mesh.cluster.status()["running"] == 0, "its slot is lent meanwhile"
    stream.close()


def test_more_streams_than_slots_are_taken_in_step(mesh: Mesh):
    slots = mesh.cluster.status()["slots"]
    streams = [mesh.cluster.submit(count, 200) for _ in range(slots + 2)]
    assert list(zip(*streams, strict=True)) == [(number,) * (slots + 2) for number in range(200)]


def test_large_items_go_over_the_bulk_port_and_leave_nothing(mesh: Mesh):
    def arrays(stop: int) -> Iterator[Any]:
        for number in range(stop):
            yield np.full(300_000, number)

    taken = list(mesh.cluster.submit(arrays, 6))
    assert [int(array[-1]) for array in taken] == list(range(6))
    spools = [mesh.home.path / f"clusters/local/run/node{n}/spool" for n in (1, 2)]
    until(lambda: not [p for s in spools for p in s.iterdir() if p.is_file()], "large items are removed", WAIT_S)


def test_an_error_comes_after_the_items_before_it(mesh: Mesh):
    def breaks(stop: int) -> Iterator[int]:
        yield from range(stop)
        raise KeyError("broken")

    taken: list[int] = []
    with pytest.raises(KeyError, match="broken"):
        taken.extend(mesh.cluster.submit(breaks, 100))  # extend keeps what came before the error
    assert taken == list(range(100))


def test_after_a_lost_worker_the_stream_goes_on_where_it_was(mesh: Mesh, tmp_path: Path):
    mark = tmp_path / "died"

    def dies_once(stop: int, path: str) -> Iterator[int]:
        for number in range(stop):
            if number == stop // 2 and not Path(path).exists():
                Path(path).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    stream = mesh.cluster.submit(dies_once, 300, str(mark))
    assert list(stream) == list(range(300))
    story = stream.future.story()
    assert [attempt.end for attempt in story.attempts] == [AttemptEnd.WORKER_LOST, AttemptEnd.DONE]


def test_a_stream_that_waits_is_lost_and_waits_again_with_its_slot_lent(mesh: Mesh):
    def numbered(stop: int) -> Iterator[tuple[int, int]]:
        for number in range(stop):
            yield number, os.getpid()

    def waits() -> bool:
        return any("more of what it yields is taken" in row.why for row in mesh.cluster.why(stream.task))

    stream = mesh.cluster.submit(numbered, 1_000)
    _, first = next(stream)
    until(waits, "it waits", WAIT_S)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(stream.future.story().attempts) == 2, "it runs again", WAIT_S)
    until(waits, "it waits again", WAIT_S)
    assert mesh.cluster.status()["running"] == 0
    rest = list(stream)
    assert [number for number, _ in rest] == list(range(1, 1_000))
    assert {pid for _, pid in rest} - {first}, "the second attempt brought the others"


def test_close_stops_the_generator_where_it_waits_and_where_it_runs(mesh: Mesh, tmp_path: Path):
    waiting, running = tmp_path / "waiting", tmp_path / "running"

    def endless(path: str) -> Iterator[int]:
        try:
            yield 0
            Path(path).touch()
            time.sleep(600)
        finally:
            Path(path + ".closed").touch()

    stream = mesh.cluster.submit(count, 10_000, str(waiting))
    assert next(stream) == 0
    stream.close()
    assert list(stream) == []
    with mesh.cluster.submit(endless, str(running)) as other:
        assert next(other) == 0
        until(running.exists, "it runs", WAIT_S)
    for path in (waiting, running):
        until(Path(f"{path}.closed").exists, "its finally block has run", WAIT_S)
    with pytest.raises(concurrent.futures.CancelledError):
        other.future.result(WAIT_S)


def test_a_stream_that_nobody_holds_is_closed(mesh: Mesh, tmp_path: Path):
    mark = tmp_path / "made"
    for number in mesh.cluster.submit(count, 10_000, str(mark)):
        if number == 3:
            break
    gc.collect()
    until(Path(f"{mark}.closed").exists, "its finally block has run", WAIT_S)


def test_a_stream_that_is_cancelled_says_so(mesh: Mesh):
    stream = mesh.cluster.submit(count, 10_000)
    assert next(stream) == 0
    assert mesh.cluster.cancel(stream.task)
    with pytest.raises(concurrent.futures.CancelledError):
        list(stream)


def test_a_stream_takes_futures_and_gives_items_to_tasks(mesh: Mesh):
    stop = mesh.cluster.submit(abs, -4)
    sums = [mesh.cluster.submit(pow, item, 2) for item in mesh.cluster.submit(count, stop)]
    assert mesh.cluster.gather(sums) == [0, 1, 4, 9]


def test_generators_where_they_cannot_be_taken_are_refused(mesh: Mesh):
    with pytest.raises(errors.UsageError, match=r"map\(\) takes no generator function"):
        mesh.cluster.map(count, [1, 2])
    with pytest.raises(errors.NotPicklableError, match="pass on its items"):
        mesh.cluster.submit(list, mesh.cluster.submit(count, 1))
    with pytest.raises(errors.NotPicklableError, match="a generator"):
        mesh.cluster.submit(lambda: (number for number in range(3))).result(WAIT_S)


def test_an_item_that_cannot_be_pickled_ends_the_stream(mesh: Mesh):
    def odd() -> Iterator[Any]:
        yield 1
        yield (number for number in range(3))

    stream = mesh.cluster.submit(odd)
    assert next(stream) == 1
    with pytest.raises(errors.NotPicklableError, match="generator"):
        next(stream)


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def test_async_functions_run_in_submit_map_and_the_executor(mesh: Mesh):
    assert mesh.cluster.submit(double, 4).result(WAIT_S) == 8
    assert list(mesh.cluster.map(double, range(50))) == list(range(0, 100, 2))
    with kos.Executor(cluster=mesh.cluster) as pool:
        assert pool.submit(double, 5).result(WAIT_S) == 10


def test_cancelling_an_async_function_raises_in_it(mesh: Mesh, tmp_path: Path):
    def seen(name: str) -> bool:
        return (tmp_path / name).exists()

    async def sleeper(path: str) -> None:
        try:
            Path(path, "running").touch()
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            Path(path, "cancelled").touch()
            raise

    future = mesh.cluster.submit(sleeper, str(tmp_path))
    until(lambda: seen("running"), "it runs", WAIT_S)
    assert future.cancel()
    until(lambda: seen("cancelled"), "it was cancelled inside", WAIT_S)
    until(lambda: mesh.cluster.status()["running"] == 0, "its slot is free", WAIT_S)
    for name in ("running", "cancelled"):
        (tmp_path / name).unlink()
    with pytest.raises(errors.TaskTimeoutError):
        mesh.cluster.submit(sleeper, str(tmp_path), timeout=0.5).result(WAIT_S)
    assert seen("cancelled"), "a time limit does the same"
