"""Sampling tasks where they run: what `%%kos profile` does to the functions that a cell submits.

Theory of operation. While `collecting` is entered, functions that are submitted are wrapped. In the worker the wrapper
has pyinstrument sample the task's thread, and sends how many seconds each stack was seen, as a display; it comes
before the task's outcome. A front end's sink takes displays of the kind `KIND`; others ignore them.

Rules: only what runs beneath the task's own call counts: neither the frames of the worker above it, nor the sampler
itself as it starts and stops. A task whose time is less than the interval sends no stack. Threads that a task starts,
and tasks that it submits, are not sampled.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

INTERVAL_S = 0.001
STACKS_LIMIT = 2000  # of one task, those seen longest
DEPTH_LIMIT = 200  # frames of a stack, from the task's own inwards
KIND = "profile"
SAMPLED = ("_sampled", __file__)  # the frame beneath which the task is

Stack = tuple[str, ...]  # "function (file:line)", the outermost first

_collecting: contextvars.ContextVar[bool] = contextvars.ContextVar("kos_profiling", default=False)


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Have what this context submits be sampled."""
    token = _collecting.set(True)
    try:
        yield
    finally:
        _collecting.reset(token)


def applied(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, wrapped if it is to be sampled."""
    return Profiled(fn) if _collecting.get() else fn


class Profiled:
    """A function that is sampled while it runs in a task."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)

    def __reduce__(self) -> Any:
        return Profiled, (self.fn,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from pyinstrument import Profiler

        from kos_cluster.tasks import context

        profiler = Profiler(interval=INTERVAL_S, async_mode="disabled")
        profiler.start()
        try:
            return self._sampled(args, kwargs)
        finally:
            session = profiler.stop()
            task = context.current()
            if task is not None:
                stacks = summed((record[0], record[1]) for record in session.frame_records)
                context.display(
                    {"kind": KIND, "node": task.node, "took_s": session.duration, "stacks": list(stacks.items())}
                )

    def _sampled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call whose frame tells `summed` where the task begins."""
        return self.fn(*args, **kwargs)


def summed(records: Any) -> dict[Stack, float]:
    """Seconds by stack, of pyinstrument's records."""
    seconds: defaultdict[Stack, float] = defaultdict(float)
    for frames, spent_s in records:
        told = [_frame(frame) for frame in frames]
        own = next((place for place, (name, file, _) in enumerate(told) if (name, file) == SAMPLED), len(told))
        inner = [f"{name} ({file}:{line})" for name, file, line in told[own + 1 :] if file]
        if inner:
            seconds[tuple(inner[:DEPTH_LIMIT])] += spent_s
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:STACKS_LIMIT]
    return dict(longest)


def _frame(frame: str) -> tuple[str, str, str]:
    """Function, file and line of pyinstrument's name of a frame; the file is empty for what stands for no code."""
    name, _, rest = frame.partition("\x01")[0].partition("\x00")
    file, _, line = rest.partition("\x00")
    return name, file if line != "0" else "", line
