"""`kos.Executor`: the cluster as a `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from kos_cluster.net.local import Environment
from kos_cluster.tasks import compat, inputs, serialise
from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.functions import Functions
from kos_cluster.tasks.futures import Future
from kos_cluster.tasks.job import Job, JobSpec, part_hash
from kos_cluster.tasks.options import Options


class Executor(concurrent.futures.Executor):
    """Runs calls on a cluster. `max_workers` caps how many run at once; without it the whole cluster is used.

    `initializer(*initargs)` runs once in each worker that serves this executor, before its first call. Raises
    what `connect` raises, when no cluster is given.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        cluster: Cluster | None = None,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._cluster = cluster or connect()
        self._options = Options(max_parallel=max_workers or 0)
        self._functions = Functions()
        self._environment = Environment()
        self._parts: dict[str, bytes] = {}
        if initializer is not None:
            data = serialise.dumps_callable((initializer, initargs))
            self._parts[part_hash(data)] = data
            self._environment = Environment(initializer=part_hash(data), token=secrets.token_hex(8))
        self._lock = threading.Lock()
        self._jobs: dict[Any, Job] = {}
        self._futures: set[Future] = set()
        self._shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run `fn(*args, **kwargs)`, where arguments may hold futures of the cluster. RuntimeError after `shutdown`."""
        payload, taken = inputs.dumps_call(args, kwargs)
        shipped = self._functions.ship(fn)
        modules = compat.needed(shipped.modules, (payload,))
        key = (shipped.key, modules, bool(taken))
        with self._lock:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            job = self._jobs.get(key)
            if job is None:
                environment = msgspec.structs.replace(self._environment, modules=dict(shipped.local_modules))
                parts = {**self._parts, **shipped.parts}
                name = getattr(fn, "__qualname__", type(fn).__name__)
                spec = JobSpec(shipped.payload, environment, parts, self._options, None, name, modules)
                job = self._jobs[key] = self._cluster.launch(spec)
            future = job.add_call(payload, taken)
            self._futures.add(future)
        future.add_done_callback(self._forget)
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        """As the standard library's; `chunksize` is accepted, batches are sized by measurement."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return super().map(fn, *iterables, timeout=timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait for those that run, unless told otherwise."""
        with self._lock:
            self._shut = True
            jobs, futures = list(self._jobs.values()), list(self._futures)
            self._jobs.clear()
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait:
            concurrent.futures.wait(futures)
        for job in jobs:
            job.close()

    def _forget(self, future: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            self._futures.discard(future)
