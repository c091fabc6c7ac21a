"""SIGINT in a worker: it cancels the batch, and interrupts user code, and nothing else.

Rules: at most one interruption of user code a batch. Where an event loop runs user code, its task is cancelled instead
of an exception being raised wherever the loop is.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupts:
    """Raises KeyboardInterrupt in user code, at most once a batch; elsewhere a signal is only noted for the batch."""

    __slots__ = ("cancel", "in_user_code", "seen")

    def __init__(self) -> None:
        self.in_user_code = False
        self.seen = False  # in this batch
        self.cancel: Callable[[], object] | None = None  # of the coroutine that runs

    def handle(self, signum: int, frame: types.FrameType | None) -> None:
        self.seen = True
        if self.in_user_code:
            self.in_user_code = False
            if self.cancel is None:
                raise KeyboardInterrupt
            self.cancel()

    @contextmanager
    def held(self) -> Iterator[None]:
        """An interrupt of user code in the main thread waits for the end of this: it must not cut a message in two."""
        guarded = self.in_user_code and threading.get_ident() == threading.main_thread().ident
        if guarded:
            self.in_user_code = False
        try:
            yield
        finally:
            if guarded:
                self.in_user_code = not self.seen
        if guarded and self.seen:
            raise KeyboardInterrupt

    def enter(self) -> None:
        """User code begins. A signal that came just before counts as one that came just after."""
        self.in_user_code = True
        if self.seen:
            self.in_user_code = False
            raise KeyboardInterrupt
