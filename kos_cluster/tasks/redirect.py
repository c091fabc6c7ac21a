"""Inside a script that runs on the cluster: `ProcessPoolExecutor` uses all of the cluster.

Theory of operation. `install` puts `ClusterPool` in the place of the standard library's class. A pool is one job whose
workers have unpacked the script's folder as it is at the first `submit`, and have loaded the script once as
`__mp_main__`; so functions and arguments travel by reference, as they do to the processes of the original.
In the worker `run_item` wraps each task: with its outcome it reports the files that it wrote. A thread of
the pool merges these into the script's folder before the task's future is done.

Rules it keeps:
- what users rely on is as with the original: signatures, errors, the order of results, waiting at the script's end;
- files of a task are there when its result is; two tasks that write the same file both keep their version;
- what a worker writes while it is being set up stays with it: otherwise all of them would bring the same files;
- `max_tasks_per_child` above 1 and `mp_context` are accepted and change nothing.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import functools
import hashlib
import itertools
import os
import pickle
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import kos_cluster
from kos_cluster.core.records import TaskState
from kos_cluster.errors import SetUpError, TaskLostError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.tasks import context, failures, serialise
from kos_cluster.tasks.changes import Merger, Tracker, describe
from kos_cluster.tasks.futures import Future as TaskFuture
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.modules import installed_imports
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.script import GIVEN_VARIABLES
from kos_cluster.tasks.workspace import pack, snapshot, workspace_around


class ItemReport(NamedTuple):
    """What `run_item` returns: the value or the failure, and the files that the task wrote."""

    value: Any
    failure: failures.Failure | None = None
    changes: bytes | None = None


@dataclass(frozen=True)
class _Script:
    """The script of this process."""

    path: str
    folder: Path | None  # the workspace
    environ: dict[str, str]  # as it was before the script ran


_script: _Script | None = None
_pools: set[ClusterPool] = set()


# ---- in the script's process


def install(path: str) -> None:
    """Redirect the process pools of the script at `path`, which is about to run in this process."""
    global _script
    _script = _Script(path, workspace_around(Path.cwd()), dict(os.environ))
    concurrent.futures.ProcessPoolExecutor = ClusterPool  # type: ignore[assignment, misc]
    concurrent.futures.process.ProcessPoolExecutor = ClusterPool  # type: ignore[assignment, misc]


def finish() -> None:
    """Wait for what the script has left running, as python does when a script ends."""
    for pool in list(_pools):
        pool.shutdown()


def cancel_all() -> None:
    """Cancel what runs for this script."""
    for pool in list(_pools):
        pool.cancel()


class PoolFuture(concurrent.futures.Future[Any]):
    """A task of a pool. As with the original, one that runs cannot be cancelled."""

    task: TaskFuture | None = None

    def running(self) -> bool:
        return not self.done() and _runs(self.task)

    def cancel(self) -> bool:
        if self.running() or not super().cancel():
            return False
        if self.task is not None:
            self.task.cancel()
        return True


class ClusterPool(concurrent.futures.Executor):
    """Stands for `concurrent.futures.ProcessPoolExecutor`; the parameters are the original's."""

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None and not isinstance(max_tasks_per_child, int):
            raise TypeError("max_tasks_per_child must be an integer")
        if max_tasks_per_child is not None and max_tasks_per_child <= 0:
            raise ValueError("max_tasks_per_child must be >= 1")
        self._max_workers = max_workers
        self._initializer = (initializer, initargs) if initializer is not None else None
        self._fresh = max_tasks_per_child == 1
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._pending: set[PoolFuture] = set()
        self._closed = False
        self._broken = ""
        self._settled: queue.SimpleQueue[tuple[PoolFuture, TaskFuture] | None] = queue.SimpleQueue()
        self._settler: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        with self._lock:
            if self._broken:
                raise BrokenProcessPool(self._broken)
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            job = self._job = self._job or self._start()
        future = PoolFuture()
        try:
            task = job.add(pickle.dumps(((fn, args, kwargs), {}), serialise.PROTOCOL))
        except Exception as error:  # whatever pickling raises is the task's failure, as with the original
            future.set_exception(error)
            return future
        future.task = task
        with self._lock:
            self._pending.add(future)
        task.add_done_callback(lambda _: self._settled.put((future, task)))
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        chunks = super().map(functools.partial(_run_chunk, fn), _chunks(iterables, chunksize), timeout=timeout)
        return itertools.chain.from_iterable(chunks)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            pending = list(self._pending)
            job, settler = self._job, self._settler
        if cancel_futures:
            for future in pending:
                future.cancel()
        if job is not None:
            job.close()
            self._settled.put(None)  # wakes the settler, which ends when nothing is pending
        if wait and settler is not None:
            settler.join()
        if wait or settler is None:
            _pools.discard(self)

    def cancel(self) -> None:
        """Cancel every task, also those that run."""
        if self._job is not None:
            self._job.cancel()

    # ---- inside

    def _start(self) -> Job:
        """Called with the lock. The folder travels as it is now, with what the script has written so far."""
        spec = self._spec()
        job = kos_cluster.connect().launch(spec)
        merger = Merger(_this_script()[1], durable=False)
        self._settler = threading.Thread(target=self._settle_all, args=(merger,), name="kos-pool", daemon=True)
        self._settler.start()
        _pools.add(self)
        return job

    def _spec(self) -> JobSpec:
        script, folder = _this_script()
        taken = snapshot(folder)
        archive = pack(taken)
        parts = {_hash(archive): archive}
        initializer = ""
        if self._initializer is not None:
            data = pickle.dumps(self._initializer, serialise.PROTOCOL)
            initializer = _hash(data)
            parts[initializer] = data
        environment = Environment(
            main=os.path.relpath(os.path.realpath(script.path), folder),
            argv=sys.argv[1:],
            workspace=_hash(archive),
            environ=_variables(script),
            initializer=initializer,
            fresh=self._fresh,
            token=os.urandom(8).hex(),  # each pool has processes of its own, as the original
        )
        return JobSpec(
            fn=pickle.dumps(run_item, serialise.PROTOCOL),
            environment=environment,
            parts=parts,
            options=Options(max_parallel=self._max_workers or 0, fresh=self._fresh),
            name=f"{os.path.basename(script.path)} pool",
            modules=installed_imports(script.path, taken.manifest),
        )

    def _settle_all(self, merger: Merger) -> None:
        """The settler's thread: until the pool is shut down and nothing is pending."""
        while True:
            item = self._settled.get()
            if item is not None:
                future, task = item
                self._settle(merger, future, task)
                with self._lock:
                    self._pending.discard(future)
            with self._lock:
                if self._closed and not self._pending:
                    break
        _pools.discard(self)

    def _settle(self, merger: Merger, future: PoolFuture, task: TaskFuture) -> None:
        """Take over a final task's files and then its outcome."""
        value: Any = None
        failure: BaseException | None = None
        try:
            report: ItemReport = task.result()
            if report.changes is not None:
                _merge(merger, report.changes, task.task)
            if report.failure is not None:
                failure = failures.to_exception(report.failure)
            value = report.value
        except concurrent.futures.CancelledError as error:
            failure = BrokenProcessPool(self._broken) if self._broken else error
        except BaseException as error:  # the user's exception, of whatever kind, belongs to the future
            failure = self._judged(error.with_traceback(None))  # the settler's own frames are nobody's business
        if isinstance(failure, concurrent.futures.CancelledError):
            concurrent.futures.Future.cancel(future)
        if not future.set_running_or_notify_cancel():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(value)

    def _judged(self, error: BaseException) -> BaseException:
        """A lost worker, or one that could not be set up, breaks the pool; all else is the task's own."""
        if not isinstance(error, (TaskLostError, SetUpError)):
            return error
        self._broken = f"A process in the process pool was terminated abruptly: {error}"
        self.cancel()
        broken = BrokenProcessPool(self._broken)
        broken.__cause__ = error
        return broken


def _merge(merger: Merger, changes: bytes, task: str) -> None:
    report = merger.apply(changes, task)
    for path, copy in report.conflicts.items():
        print(f"kos: {path} was written by several tasks; task {task}'s version is {copy}", file=sys.stderr)
    if report.refused:
        print(f"kos: files of task {task} did not come back: {describe(report.refused)}", file=sys.stderr)


def _this_script() -> tuple[_Script, Path]:
    if _script is None or _script.folder is None:
        raise UsageError(
            "This process pool needs a script that the cluster runs in a copy of its folder.",
            "Run it with 'kos run --distribute SCRIPT'.",
        )
    return _script, _script.folder


def _variables(script: _Script) -> dict[str, str]:
    """What the script's tasks need of its environment: what the submitter gave, and what the script has set."""
    given = os.environ.get(GIVEN_VARIABLES, "").split(",")
    return {
        name: value
        for name, value in os.environ.items()
        if name in given or (script.environ.get(name) != value and not name.startswith("KOS_"))
    }


def _runs(task: TaskFuture | None) -> bool:
    story = task.story() if task is not None else None
    return story is not None and story.state is TaskState.RUNNING


def _chunks(iterables: tuple[Iterable[Any], ...], size: int) -> Iterator[list[tuple[Any, ...]]]:
    rows = zip(*iterables, strict=False)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- in the workers


_tracker: Tracker | None = None
_tracked = False


def run_item(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ItemReport:
    """Run one task, and report the files that it wrote in the worker's copy of the folder."""
    tracker = _tracker_here()
    try:
        value = fn(*args, **kwargs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        changes = _written(tracker)
        here = context.current()
        if changes is None or here is None:
            raise
        failure = failures.failure_of(error, node=here.node, task=here.task, attempt=here.attempt)
        return ItemReport(None, failure, changes)
    return ItemReport(value, None, _written(tracker))


def _run_chunk(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*args) for args in chunk]


def _tracker_here() -> Tracker | None:
    """The tracker of this worker's folder, made before its first task."""
    global _tracker, _tracked
    if not _tracked:
        _tracked = True
        folder = workspace_around(Path.cwd())
        if folder is not None:
            _tracker = Tracker(folder)
            _tracker.take()  # what setting up has written stays here
    return _tracker


def _written(tracker: Tracker | None) -> bytes | None:
    if tracker is None:
        return None
    taken = tracker.take()
    if taken.left_out:
        print(f"kos: not everything that was written came back: {describe(taken.left_out)}", file=sys.stderr)
    return taken.archive
