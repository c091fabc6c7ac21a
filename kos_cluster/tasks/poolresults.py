"""What the calls of a `kos.Pool` give: results that can be waited for, and iterators over results.

Theory of operation. A result is completed by the pool's own thread: it unpickles, calls the callback, and then wakes
who waits, so a callback has run when `get` returns. An iterator is fed by a thread that takes from the iterable;
results are unpickled in the thread that asks for them.

Rules: names, time-outs and errors are those of `multiprocessing.pool`. An interrupt while waiting cancels what is
waited for. An iterator's feeder pauses when `AHEAD_LIMIT` tasks have been sent whose results nobody has taken, until
the pool is joined or terminated.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kos_cluster.tasks.conditions import Condition

if TYPE_CHECKING:
    import concurrent.futures

    from kos_cluster.tasks.pool import Pool

AHEAD_LIMIT = 10_000  # tasks of one iterator that were sent and whose results were not taken

Callback = Callable[[Any], object] | None


class AsyncResult:
    """What `apply_async` and the asynchronous maps return."""

    def __init__(self, pool: Pool, callback: Callback, error_callback: Callback) -> None:
        self.cancel: Callable[[], object] = _nothing
        self._pool = pool  # it lives as long as a result of its calls is held
        self._callback = callback
        self._error_callback = error_callback
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def ready(self) -> bool:
        return self._done.is_set()

    def successful(self) -> bool:
        """Whether it ended without an exception. Raises ValueError while it is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Until it is ready, or the time is over."""
        try:
            self._done.wait(timeout)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def get(self, timeout: float | None = None) -> Any:
        """The value. Raises what the call raised, or multiprocessing.TimeoutError."""
        self.wait(timeout)
        if not self.ready():
            raise multiprocessing.TimeoutError
        if self._error is not None:
            raise self._error
        return self._value

    def complete(self, take: Callable[[], Any]) -> None:
        """Called in the pool's thread. `take` gives the value or raises the call's exception."""
        called = self._callback
        try:
            self._value = told = take()
        except BaseException as error:  # whatever the call has raised belongs to who asks for its result
            self._error = told = error
            called = self._error_callback
        if called is not None:
            _call_back(called, told)
        self._callback = self._error_callback = None
        self._done.set()


def _nothing() -> None: ...


def _call_back(called: Callable[[Any], object], told: Any) -> None:
    """A callback that fails must not take the pool's thread with it."""
    try:
        called(told)
    except Exception:
        sys.stderr.write("kos: a pool's callback failed:\n")
        traceback.print_exc()


class ResultIterator:
    """What `imap` and `imap_unordered` return: each result as it comes, in order or not."""

    def __init__(self, pool: Pool, ordered: bool, chunked: bool) -> None:
        self._pool = pool
        self._ordered = ordered
        self._chunked = chunked
        self._changed = Condition()
        self._futures: deque[concurrent.futures.Future[Any]] = deque()  # all that were not taken; unordered: the done
        self._values: deque[Any] = deque()  # the rest of a chunk
        self._ahead = 0  # tasks that were fed and not taken
        self._ended = False  # nothing more is fed
        self._source_error: BaseException | None = None
        self._hurried = False

    def __iter__(self) -> ResultIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result. Raises what its call raised, StopIteration, or multiprocessing.TimeoutError."""
        while not self._values:
            future = self._take(timeout)
            value = future.result()
            if not self._chunked:
                return value
            self._values.extend(value)
        return self._values.popleft()

    # ---- for the feeder

    def feed(self, rows: Iterable[Any], submit: Callable[[Any], concurrent.futures.Future[Any]]) -> None:
        """Submit each row, until the iterable ends or fails, or the pool refuses. Runs in a thread of its own."""
        try:
            for row in rows:
                self._fed(submit(row))
        except BaseException as error:  # an iterable's exception belongs to who takes the results
            self._source_error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def hurry(self) -> None:
        """Feed the rest without pause."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    # ---- inside

    def _fed(self, future: concurrent.futures.Future[Any]) -> None:
        with self._changed:
            self._ahead += 1
            if self._ordered:
                self._futures.append(future)
        future.add_done_callback(self._came)
        with self._changed:
            self._changed.wait_for(lambda: self._hurried or self._ahead < AHEAD_LIMIT)

    def _came(self, future: concurrent.futures.Future[Any]) -> None:
        with self._changed:
            if not self._ordered:
                self._futures.append(future)
            self._changed.notify_all()

    def _take(self, timeout: float | None) -> concurrent.futures.Future[Any]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._available() or self._over(), timeout):
                raise multiprocessing.TimeoutError
            if not self._futures:
                error, self._source_error = self._source_error, None
                raise error or StopIteration
            self._ahead -= 1
            self._changed.notify_all()
            return self._futures.popleft()

    def _available(self) -> bool:
        return bool(self._futures) and self._futures[0].done()

    def _over(self) -> bool:
        return self._ended and not self._ahead
