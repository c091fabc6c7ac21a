"""A condition that stays usable when an interrupt (Ctrl-C) strikes whoever holds it, at any moment.

Theory of operation. `with` on a `threading.Condition` calls methods that are written in Python. An interrupt that comes
as one of them begins or ends leaves the lock held for ever by a thread that has gone on, and the mesh thread, which
wants it next, would wait for ever. Here `with` finds the methods of the lock itself, which are atomic to interrupts.

Rules. Whatever the mesh thread shares with threads of the user that may be interrupted uses this one.
"""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any, TypeVar

T = TypeVar("T")


class Condition(threading.Condition):
    """As `threading.Condition`."""

    _lock: Any

    @property
    def __enter__(self) -> Any:
        """The lock's own method, which `with` calls."""
        return self._lock.__enter__

    @property
    def __exit__(self) -> Any:
        """As `__enter__`."""
        return self._lock.__exit__


class Answer(concurrent.futures.Future[T]):
    """A future that the mesh thread completes while a thread of the user waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()
