"""What joblib runs on: the backend "kos", and what stands for joblib's own in a script that runs on the cluster.

Theory of operation. A `Parallel` call has a `kos.Pool`, whose thread hands results to joblib and asks it for more.
joblib sizes its batches by their measured duration, so each travels alone. Workers are shared with all other work,
so they are warm.

In a script the pool's workers have the script's folder (`scriptpool`), but do not load the script: what it defines
travels by value, as with joblib's own backends, so it needs no `__main__` guard.

Rules. For "kos" the whole cluster is the default; for joblib's own backends it is one job, as they have it. A number is
a cap, and negative ones count from the cluster's slots. What a task starts itself with joblib runs in threads of its
worker, as with joblib's own backends. Arrays travel by value, so `max_nbytes` and its kin change nothing.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle
from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)
from joblib.parallel import register_parallel_backend

import kos_cluster
from kos_cluster.net.local import Environment
from kos_cluster.tasks import sharedobjects
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.jobgroup import slots_of
from kos_cluster.tasks.multiprocessingpool import ScriptCalls, ScriptPool
from kos_cluster.tasks.pool import Pool
from kos_cluster.tasks.poolresults import AsyncResult
from kos_cluster.tasks.scriptpool import OriginalExecutor

NAME = "kos"
OWN = ("loky", "multiprocessing")  # joblib's backends of processes


class KosBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Made by joblib. `parallel_config("kos", cluster=...)` names another cluster than the current one."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        cluster: Cluster | None = None,
        nesting_level: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(nesting_level=nesting_level)
        self._cluster = cluster
        self._initializer = initializer
        self._initargs = initargs
        self._pool: Pool | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls can run at once."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            n_jobs = self.default_n_jobs
        return n_jobs if n_jobs > 0 else max(1, slots_of(self._connected()) + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **_: Any,
    ) -> int:
        """Begin a `Parallel` call, or a block of them. What it gives goes before what the backend was made with."""
        effective = self.effective_n_jobs(n_jobs)
        if effective == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        if initializer is None:
            initializer, initargs = self._initializer, self._initargs
        processes = None if n_jobs == -1 else effective
        self._pool = self._made(processes, initializer, initargs)
        return effective

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> AsyncResult:
        """Run a batch; `callback` gets what it returned, or its exception."""
        assert self._pool is not None
        return self._pool.apply_async(run_batch, (func,), callback=callback, error_callback=callback)

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, BaseException):  # a batch itself returns a list
            raise out
        return out

    def terminate(self) -> None:
        """The end of a call or block: what still runs is of no use to anybody."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A task has failed, or its time is over."""
        self.terminate()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel, **self.parallel._backend_kwargs)

    def _connected(self) -> Cluster:
        return self._cluster or kos_cluster.connect()

    def _made(
        self, processes: int | None, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> Pool:
        return Pool(processes, initializer, initargs, cluster=self._connected(), alone=True)


class ScriptBackend(KosBackend):
    """Stands for joblib's own backends of processes in a script."""

    supports_inner_max_num_threads = True
    default_n_jobs = 1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **_: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, initializer=initializer, initargs=initargs)
        self.inner_max_num_threads = inner_max_num_threads

    def _made(
        self, processes: int | None, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
    ) -> Pool:
        calls = _ValueCalls(processes, None, initializer, initargs)
        calls.threads = self.inner_max_num_threads or 1
        calls.fork()
        return ScriptPool(calls, processes)


class _ValueCalls(ScriptCalls):
    """Calls that carry what the script defines, to workers that have its folder and not the script."""

    threads = 1

    def _dumps(self, value: Any) -> bytes:
        return sharedobjects.dumps_by_value(value)

    def _forks(self) -> bool:
        return False

    def _environment(self, path: str) -> Environment:
        own = self._initializer is not None  # else workers are shared by all calls that find the same files
        return Environment(
            threads=self.threads, sys_path=[os.path.dirname(path)], token=os.urandom(8).hex() if own else ""
        )

    def _original(self) -> concurrent.futures.Executor:
        return _ValueProcesses(self._max_workers, None, self._initializer, self._initargs)


class _ValueProcesses(OriginalExecutor):
    """The standard library's executor, for what only cloudpickle can pickle."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        return super().submit(_run_pickled, cloudpickle.dumps((fn, args, kwargs)))


def _run_pickled(data: bytes) -> Any:
    fn, args, kwargs = pickle.loads(data)
    return fn(*args, **kwargs)


def run_batch(batch: Callable[[], Any]) -> Any:
    """Run joblib's batch of calls, in a worker. They may name the backend themselves."""
    register()
    return batch()


def register() -> None:
    """Make the backend "kos" known to joblib."""
    register_parallel_backend(NAME, KosBackend)


def redirect() -> None:
    """Put ours in the places of joblib's own backends of processes."""
    for name in OWN:
        register_parallel_backend(name, ScriptBackend)
