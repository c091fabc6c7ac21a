"""The alarm of a machine with a deadline that moves, beside the loop's own timers, which ring in their order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop

from kos_cluster.node.alarm import Alarm


def order_of(set_alarm: Callable[[Alarm, float], None]) -> list[str]:
    """What rings when a timer rings after 20 ms and another after 60 ms, beside an alarm that is set so."""
    rang: list[str] = []

    async def go() -> None:
        loop, last = asyncio.get_running_loop(), asyncio.Event()
        now = loop.time()
        loop.call_at(now + 0.02, rang.append, "20 ms")
        loop.call_at(now + 0.06, last.set)
        set_alarm(Alarm(lambda: rang.append("alarm")), now)
        await last.wait()

    uvloop.run(go())
    return rang


def set_all(*times_s: float) -> Callable[[Alarm, float], None]:
    def set_alarm(alarm: Alarm, now: float) -> None:
        for time_s in times_s:
            alarm.set(now + time_s)

    return set_alarm


def cancelled(alarm: Alarm, now: float) -> None:
    alarm.set(now + 0.01)
    alarm.cancel()


def cancelled_and_set_again(alarm: Alarm, now: float) -> None:
    cancelled(alarm, now)
    alarm.set(now + 0.01)


def test_only_the_time_that_was_set_last_counts() -> None:
    assert order_of(set_all(0.01)) == ["alarm", "20 ms"]
    assert order_of(set_all(0.01, 0.04)) == ["20 ms", "alarm"]
    assert order_of(set_all(0.04, 0.01)) == ["alarm", "20 ms"]
    assert order_of(set_all(0.01, 0.01)) == ["alarm", "20 ms"]


def test_a_time_that_is_past_rings_at_once() -> None:
    assert order_of(set_all(-1.0)) == ["alarm", "20 ms"]


def test_it_does_not_ring_when_it_is_cancelled_or_never_due() -> None:
    assert order_of(cancelled) == ["20 ms"]
    assert order_of(set_all(0.01, float("inf"))) == ["20 ms"]
    assert order_of(cancelled_and_set_again) == ["alarm", "20 ms"]


def test_it_never_rings_too_early() -> None:
    left_s: list[float] = []

    async def go() -> None:
        loop = asyncio.get_running_loop()
        for number in range(100):
            rang = asyncio.Event()
            at_s = loop.time() + 0.001 + number / 100_000  # all parts of a millisecond
            Alarm(rang.set).set(at_s)
            await rang.wait()
            left_s.append(at_s - loop.time())

    uvloop.run(go())
    assert max(left_s) <= 0
