"""`kos.Executor`: the cluster as a `concurrent.futures.Executor`.

Rules. It behaves as the standard library's: calls that were begun go on after `shutdown(wait=False)` and when the
executor is dropped; the end of the interpreter waits for them; `cancel_futures` spares what a node has already. What
differs: `Future.cancel` also stops a call that runs, batches are sized by measurement and not by `chunksize`, and a
call whose worker is lost is run again instead of breaking the executor.
"""

from __future__ import annotations

import concurrent.futures
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.jobgroup import JobGroup


class Executor(concurrent.futures.Executor):
    """Runs calls on a cluster. `max_workers` caps how many run at once; without it the whole cluster is used.

    `engine`: the name or kind of an engine of the cluster's ("dask"), to run them there instead of on the mesh.

    `initializer(*initargs)` runs once in each worker that serves this executor, before its first call. Raises
    what `connect` raises, when no cluster is given.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        cluster: Cluster | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        engine: str = "",
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        cluster = cluster or connect()
        self._group = JobGroup(
            cluster.on_engine(engine) if engine else cluster,
            lambda: RuntimeError("cannot schedule new futures after shutdown"),
            cap=max_workers or 0,
            initializer=(initializer, initargs) if initializer is not None else None,
            waits_at_exit=True,
        )
        weakref.finalize(self, self._group.close).atexit = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run `fn(*args, **kwargs)`, where arguments may hold futures of the cluster. RuntimeError after `shutdown`."""
        return self._group.submit(fn, args, kwargs)

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """As the standard library's; `chunksize` is accepted, batches are sized by measurement."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        ends_s = None if timeout is None else time.monotonic() + timeout
        return _results(self._group.map(fn, zip(*iterables, strict=False)), ends_s)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that run, unless told otherwise."""
        self._group.close()
        if cancel_futures:
            self._group.cancel_waiting()
        if wait:
            self._group.wait()


def _results(job: Job, ends_s: float | None) -> Iterator[Any]:
    """The results in order. Whatever ends this early (a failure, the time-out, the caller) cancels the rest."""
    try:
        for index in range(len(job)):
            outcome = job.take(index, None if ends_s is None else max(0.0, ends_s - time.monotonic()))
            if not isinstance(outcome, Outcome):
                raise outcome or concurrent.futures.CancelledError(f"Task {job.id}.{index} was cancelled.")
            yield outcome.value(ends_s)
    except BaseException:
        job.cancel()
        raise
