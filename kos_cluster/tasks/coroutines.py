"""Async functions and async generators as tasks: run in the worker's main thread, on an event loop of their own.

Theory of operation. A task has its slot and its worker for itself, so each gets a fresh loop, which is closed with all
that the task left running on it. Cancelling, and a time limit, raise `asyncio.CancelledError` at the `await` where the
task is; as the interruption of any other task, the worker then sees it as KeyboardInterrupt.

Rules: an async generator's loop runs only while an item is asked for: what it started itself stands still meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterator
from typing import Any

from kos_cluster.tasks.interrupts import Interrupts


def run(coroutine: Coroutine[Any, Any, Any], interrupts: Interrupts) -> Any:
    """What a coroutine returns. Raises what it raises; KeyboardInterrupt when it was cancelled by an interrupt."""
    with asyncio.Runner() as runner:
        return _step(runner, coroutine, interrupts)


def iterated(generator: AsyncGenerator[Any, None], interrupts: Interrupts) -> Iterator[Any]:
    """An async generator as a plain one."""
    with asyncio.Runner() as runner:
        try:
            while True:
                try:
                    item = _step(runner, anext(generator), interrupts)
                except StopAsyncIteration:
                    return
                yield item
        finally:
            runner.run(_awaited(generator.aclose()))


def _step(runner: asyncio.Runner, awaitable: Awaitable[Any], interrupts: Interrupts) -> Any:
    try:
        return runner.run(_cancellable(awaitable, interrupts))
    except asyncio.CancelledError:
        if interrupts.seen:
            raise KeyboardInterrupt from None
        raise


async def _cancellable(awaitable: Awaitable[Any], interrupts: Interrupts) -> Any:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupts.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        return await awaitable
    finally:
        interrupts.cancel = None


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
