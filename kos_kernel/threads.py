"""Threads that a cell starts belong to that cell: what they print later lands under it.

Theory of operation. ipykernel finds the cell that output belongs to in context variables, and takes the newest cell
where there are none; a thread starts without any (until `sys.flags.thread_inherit_context` of Python 3.14), so its
prints would land in whatever cell runs meanwhile. Here a thread runs in a copy of the context that it was started in,
and a function given to a `ThreadPoolExecutor` in that of its `submit`, for those threads serve many cells.

Rules: only what is started while a cell runs is touched, so the kernel's own threads are not. Taking this back leaves
the standard library as it was; threads that run keep their cell.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_plain_start = threading.Thread.start
_plain_submit = ThreadPoolExecutor.submit


def register(shell: InteractiveShell) -> None:
    """Patch the standard library of this process. In a terminal there is one stream for all, so nothing to do."""
    in_cell = _test_of(shell)
    if in_cell is None:
        return

    @functools.wraps(_plain_start)
    def start(thread: threading.Thread) -> None:
        if in_cell():
            _bind(thread, contextvars.copy_context())
        _plain_start(thread)

    @functools.wraps(_plain_submit)  # type: ignore[arg-type]
    def submit(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if in_cell():
            return _plain_submit(pool, contextvars.copy_context().run, fn, *args, **kwargs)
        return _plain_submit(pool, fn, *args, **kwargs)

    threading.Thread.start = start  # type: ignore[method-assign, assignment]
    ThreadPoolExecutor.submit = submit  # type: ignore[method-assign, assignment]


def unregister() -> None:
    threading.Thread.start = _plain_start  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = _plain_submit  # type: ignore[method-assign]


def _bind(thread: threading.Thread, context: contextvars.Context) -> None:
    """Have a thread's `run`, whichever class it is of, run in this context."""
    run = thread.run

    def in_context() -> None:
        del thread.run  # a thread that has ended keeps nothing of the cell
        context.run(run)

    thread.run = in_context  # type: ignore[method-assign]


def _test_of(shell: Any) -> Callable[[], bool] | None:
    """Tells whether the calling thread runs for a cell; None outside of kernels."""
    parent = getattr(getattr(shell, "display_pub", None), "_parent_header", None)
    if not isinstance(parent, contextvars.ContextVar):
        return None
    return lambda: bool(parent.get({}))
