"""`kos.Pool`: the cluster as a `multiprocessing.pool.Pool`.

Theory of operation. A pool is a group of jobs (`jobgroup`). A call is a task; so is an element of a map, unless
`chunksize` or `maxtasksperchild` makes it a chunk. One thread of the pool completes results and calls callbacks in the
order in which they come; each `imap` has a thread that feeds it.

Rules. Signatures, states, errors and the order of results are the original's. What differs: without `processes` the
whole cluster is used; functions and arguments may be whatever cloudpickle can carry; an initializer that fails makes
the calls fail, where the original starts workers for ever; a result of a pool that was terminated raises
CancelledError, where the original waits for ever; what cannot be pickled is named in a note; workers are shared with
others unless there is an initializer or `maxtasksperchild`.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import queue
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from kos_cluster.errors import LimitError, NotPicklableError
from kos_cluster.tasks.chunks import Chunk, chunks_of
from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.jobgroup import JobGroup, Then, slots_of
from kos_cluster.tasks.poolresults import AsyncResult, Callback, ResultIterator

CHUNKS_A_PROCESS = 4  # of one map, when each chunk counts against `maxtasksperchild`

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"

Came = Callable[[Callable[[], list[Any]]], None]  # gets what gives all values in order, or raises the first failure


class Calls(Protocol):
    """What a pool's calls go through: a `JobGroup`, or what behaves as one."""

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], then: Then = None, /
    ) -> concurrent.futures.Future[Any]: ...

    def close(self) -> None: ...

    def cancel(self) -> None: ...

    def wait(self) -> None: ...


class Pool:
    """Runs calls on a cluster; `processes` caps how many run at once. Raises what `connect` raises.

    Small calls travel together; with `alone`, or in a map with a `chunksize`, none waits for another on its way.
    `context` is the original's and means nothing here: how a node starts its workers is its own.
    """

    _state = CLOSE  # should the constructor fail

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: object = None,
        *,
        cluster: Cluster | None = None,
        alone: bool = False,
    ) -> None:
        check(processes, initializer, maxtasksperchild)
        self._cluster = cluster or connect()
        group = JobGroup(
            self._cluster,
            _not_running,
            cap=processes or 0,
            initializer=(initializer, tuple(initargs)) if initializer is not None else None,
            serves=maxtasksperchild or 0,
            alone=alone,
        )
        self._begin(group, processes, chunks=maxtasksperchild is not None)

    # ---- calls

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """`func(*args, **kwds)`, somewhere in the cluster; waits for it."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """As `apply`, without waiting. The callbacks are called in the pool's thread, so they should be short."""
        self._check_running()
        result = AsyncResult(self, callback, error_callback)
        completions = self._completions

        def came(future: concurrent.futures.Future[Any]) -> None:
            completions.put(functools.partial(result.complete, future.result))

        try:
            result.cancel = self._group.submit(func, tuple(args), dict(kwds or {}), came).cancel
        except (NotPicklableError, LimitError) as error:
            self._fail(result, error)
        return result

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """`func` of each element, in order; waits for all of them, and then raises the first failure."""
        return self.map_async(func, iterable, chunksize).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """As `map`, without waiting."""
        return self._map(func, ((element,) for element in iterable), chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """As `map`, with a tuple of arguments for each call."""
        return self.starmap_async(func, iterable, chunksize).get()  # type: ignore[no-any-return]

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """As `starmap`, without waiting."""
        return self._map(func, map(tuple, iterable), chunksize, callback, error_callback)

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> ResultIterator:
        """As `map`, giving each result when it and all before it have come."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> ResultIterator:
        """As `imap`, giving each result as it comes."""
        return self._imap(func, iterable, chunksize, ordered=False)

    # ---- the end

    def close(self) -> None:
        """Take no more calls; what was begun goes on."""
        with self._lock:
            if self._state == RUN:
                self._state = CLOSE
            feeding = bool(self._feeders)
        if not feeding:
            self._group.close()

    def terminate(self) -> None:
        """Stop everything at once, also what runs."""
        with self._lock:
            self._state = TERMINATE
            iterators = list(self._feeders.values())
        self._group.close()
        self._group.cancel()
        for iterator in iterators:
            iterator.hurry()

    def join(self) -> None:
        """Wait until every call has ended and every callback was called. Close or terminate the pool first."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        with self._lock:
            feeders = dict(self._feeders) if self._state == CLOSE else {}
        for feeder, iterator in feeders.items():
            iterator.hurry()
            feeder.join()
        self._group.close()
        self._group.wait()
        self._completions.put(None)
        self._completer.join()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __del__(self) -> None:
        if self._state == RUN:
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<kos Pool state={self._state} processes={self._processes or 'all'}>"

    # ---- inside

    def _begin(self, group: Calls, processes: int | None, *, chunks: bool) -> None:
        """Work, by a group of calls. With `chunks` a map makes chunks as the original does."""
        self._group: Calls = group
        self._processes = processes
        self._chunks = chunks
        self._state = RUN
        self._lock = threading.Lock()
        self._feeders: dict[threading.Thread, ResultIterator] = {}
        self._completions: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._completer = threading.Thread(
            target=_complete_all, args=(self._completions,), name="kos-pool", daemon=True
        )
        self._completer.start()
        weakref.finalize(self, _drop, group, self._completions).atexit = False

    def _check_running(self) -> None:
        if self._state != RUN:
            raise _not_running()

    def _map(
        self,
        func: Callable[..., Any],
        rows: Iterator[tuple[Any, ...]],
        chunksize: int | None,
        callback: Callback,
        error_callback: Callback,
    ) -> AsyncResult:
        self._check_running()
        whole = list(rows)
        size = self._chunk_size(len(whole)) if chunksize is None else max(1, chunksize)
        result = AsyncResult(self, callback, error_callback)
        completions = self._completions

        def came(take: Callable[[], list[Any]]) -> None:
            if size > 1:
                take = functools.partial(_joined, take)
            completions.put(functools.partial(result.complete, take))

        if size > 1:
            func, whole = Chunk(func), [(chunk,) for chunk in chunks_of(whole, size)]
        try:
            result.cancel = self._send(func, whole, came, alone=chunksize is not None)
        except (NotPicklableError, LimitError) as error:
            self._fail(result, error)
        return result

    def _send(
        self, func: Callable[..., Any], rows: list[tuple[Any, ...]], came: Came, *, alone: bool
    ) -> Callable[[], object]:
        """Send a call for each row. `came` is called when all have ended; gives what cancels them."""
        assert isinstance(self._group, JobGroup)
        return self._group.map(func, rows, lambda job: came(functools.partial(_values, job)), alone=alone).cancel

    def _chunk_size(self, count: int) -> int:
        """One, since elements travel together anyway; the original's, where a chunk counts as a task of its worker."""
        if not self._chunks:
            return 1
        return max(1, -(-count // (CHUNKS_A_PROCESS * (self._processes or slots_of(self._cluster)))))

    def _imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool
    ) -> ResultIterator:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        iterator = ResultIterator(self, ordered, chunksize > 1)
        if chunksize == 1:
            rows: Iterator[tuple[Any, ...]] = ((element,) for element in iterable)
        else:
            rows = ((chunk,) for chunk in chunks_of(((element,) for element in iterable), chunksize))
            func = Chunk(func)
        feeder = threading.Thread(target=self._feed, args=(iterator, func, rows), name="kos-pool-feeder", daemon=True)
        with self._lock:
            self._check_running()
            self._feeders[feeder] = iterator
        feeder.start()
        return iterator

    def _feed(self, iterator: ResultIterator, func: Callable[..., Any], rows: Iterator[tuple[Any, ...]]) -> None:
        """A feeder's thread. The last one closes the group of a pool that was closed meanwhile."""
        iterator.feed(rows, lambda row: self._submitted(func, row))
        with self._lock:
            del self._feeders[threading.current_thread()]
            last = self._state != RUN and not self._feeders
        if last:
            self._group.close()

    def _submitted(self, func: Callable[..., Any], row: tuple[Any, ...]) -> concurrent.futures.Future[Any]:
        try:
            return self._group.submit(func, row, {})
        except NotPicklableError as error:
            raise _as_original(error) from None

    def _fail(self, result: AsyncResult, error: Exception) -> None:
        """A call that could not be sent: the original tells that where its result is asked for."""

        def take() -> Any:
            raise _as_original(error)

        self._completions.put(functools.partial(result.complete, take))


def check(processes: int | None, initializer: object, maxtasksperchild: int | None) -> None:
    """Raises ValueError or TypeError, as the original does for these."""
    if processes is not None and processes < 1:
        raise ValueError("Number of processes must be at least 1")
    if maxtasksperchild is not None and (type(maxtasksperchild) is not int or maxtasksperchild <= 0):
        raise ValueError("maxtasksperchild must be a positive int or None")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


def _values(job: Job) -> list[Any]:
    """What a map has brought, all of which is there. Raises its first failure."""
    values: list[Any] = []
    for outcome in [job.take(index) for index in range(len(job))]:
        if not isinstance(outcome, Outcome):
            raise outcome or concurrent.futures.CancelledError(f"Job {job.id} was cancelled.")
        values.append(outcome.value())
    return values


def _joined(take: Callable[[], list[list[Any]]]) -> list[Any]:
    return list(itertools.chain.from_iterable(take()))


def _as_original(error: Exception) -> BaseException:
    """What pickling itself has raised, with our finding as a note."""
    if not isinstance(error, NotPicklableError) or error.__cause__ is None:
        return error
    error.__cause__.add_note(str(error))
    return error.__cause__.with_traceback(None)


def _not_running() -> Exception:
    return ValueError("Pool not running")


def _complete_all(completions: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """The thread of a pool, which must not keep the pool itself alive."""
    while (complete := completions.get()) is not None:
        complete()
        del complete  # else the last result would be held until the next one comes


def _drop(group: Calls, completions: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Nobody holds the pool any more, nor a result that is still to come."""
    group.close()
    completions.put(None)
