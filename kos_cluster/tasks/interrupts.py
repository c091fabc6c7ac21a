"""SIGINT in a worker: it cancels the batch, and interrupts user code, and nothing else.

Rules: at most one interruption of user code a batch. Where an event loop runs user code, its task is cancelled instead
of an exception being raised wherever the loop is. An import that is broken off leaves modules half loaded, which later
tasks would trip over: so it is noted for good.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_IMPORT_FILE = "<frozen importlib._bootstrap>"  # what the import statement itself runs in


class Interrupts:
    """Raises KeyboardInterrupt in user code, at most once a batch; elsewhere a signal is only noted for the batch."""

    __slots__ = ("broke_import", "cancel", "in_user_code", "seen")

    def __init__(self) -> None:
        self.in_user_code = False
        self.seen = False  # in this batch
        self.broke_import = False  # ever
        self.cancel: Callable[[], object] | None = None  # of the coroutine that runs

    def handle(self, signum: int, frame: types.FrameType | None) -> None:
        self.seen = True
        if self.in_user_code:
            self.in_user_code = False
            if self.cancel is None:
                self.broke_import |= _importing(frame)
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


def _importing(frame: types.FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT_FILE:
        frame = frame.f_back
    return frame is not None
