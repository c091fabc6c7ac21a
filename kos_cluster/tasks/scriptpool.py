"""A script's `ProcessPoolExecutor`, and what its other pools are made of: calls that run on the cluster.

Theory of operation. A pool is one job whose workers have unpacked the script's folder as it is at the first `submit`,
and have loaded the script once as `__mp_main__`; so functions and arguments travel by reference, as they do to the
processes of the original. Where these would be forked, the script's globals go along (`scriptglobals`). A worker
reports with each outcome the files that the task wrote (`scriptitems`), and a thread of the pool merges these into the
script's folder before the task's future is done.

Rules it keeps:
- what users rely on is as with the original: signatures, errors, the order of results, waiting at the script's end;
- files of a task are there when its result is; two tasks that write the same file both keep their version;
- `mp_context` tells whether globals go along, and changes nothing else;
- a pool whose processes must share memory is the original, on this machine, and says so once (`sharedobjects`); one
  that learns so from a call runs that call and all later ones there.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import itertools
import multiprocessing
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

import kos_cluster
from kos_cluster.core.records import TaskState
from kos_cluster.errors import LimitError, SetUpError, TaskLostError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.tasks import failures, scriptglobals, serialise, sharedobjects
from kos_cluster.tasks.changes import Merger, describe
from kos_cluster.tasks.chunks import Chunk, chunks_of
from kos_cluster.tasks.futures import Future as TaskFuture
from kos_cluster.tasks.job import Job, JobSpec, part_hash
from kos_cluster.tasks.modules import installed_imports
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.script import GIVEN_VARIABLES
from kos_cluster.tasks.scriptglobals import ForkedGlobals, UnsentGlobalError
from kos_cluster.tasks.scriptitems import ItemReport, run_item, set_up
from kos_cluster.tasks.workspace import pack, snapshot, workspace_around

OriginalExecutor = concurrent.futures.process.ProcessPoolExecutor


@dataclass(frozen=True)
class _Script:
    """The script of this process."""

    path: str
    folder: Path | None  # the workspace
    environ: dict[str, str]  # as it was before the script ran


_script: _Script | None = None
_pools: set[ClusterPool] = set()
_ending: list[threading.Thread] = []  # what ends pools that stay here and were cancelled
_told: set[str] = set()  # why pools stay here


def begin(path: str) -> None:
    """The script at `path` is about to run in this process."""
    global _script
    _script = _Script(path, workspace_around(Path.cwd()), dict(os.environ))


def finish() -> None:
    """The script has ended; what it has left running ends as with the originals.

    Nobody joins the thread of an executor that was shut down without waiting, and the interpreter's end may meet it
    as it closes its pipe (CPython 3.11: "Exception ignored in ... _python_exit ... Bad file descriptor").
    """
    for pool in list(_pools):
        pool.end()
    for thread in _ending:
        thread.join()


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
        self._context = mp_context
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._serves = max_tasks_per_child or 0
        self._lock = threading.Lock()
        self._forked = scriptglobals.NONE  # what processes that were forked would have, once the pool has begun
        self._job: Job | None = None
        self._local: concurrent.futures.Executor | None = None  # takes the calls once the pool must stay here
        self._local_ends: threading.Thread | None = None
        self._pending: set[PoolFuture] = set()
        self._closed = False
        self._broken = ""
        self._settled: queue.SimpleQueue[tuple[PoolFuture, TaskFuture] | None] = queue.SimpleQueue()
        self._settler: threading.Thread | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        with self._lock:
            self._check_open()
            if self._job is None and self._local is None:
                self._start()
            local = self._local
        if local is not None:
            return self._stay_here().submit(fn, *args, **kwargs)
        future = PoolFuture()
        try:
            payload = self._dumps(((fn, args, kwargs), {}))
        except sharedobjects.SharedObjectError as found:
            tell(f"a call has a {found}, which its processes share")
            return self._stay_here().submit(fn, *args, **kwargs)
        except UnsentGlobalError as found:
            tell(str(found))
            return self._stay_here().submit(fn, *args, **kwargs)
        except Exception as error:  # whatever pickling raises is the task's failure, as with the original
            future.set_exception(error)
            return future
        try:
            task = self._added(future, payload)
        except LimitError as error:
            future.set_exception(error)
            return future
        task.add_done_callback(lambda _: self._settled.put((future, task)))
        return future

    def map(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[Any]:
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        rows = chunks_of(zip(*iterables, strict=False), chunksize)
        chunks = super().map(Chunk(fn), rows, timeout=timeout)
        return itertools.chain.from_iterable(chunks)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            pending = list(self._pending)
            job, local, local_ends, settler = self._job, self._local, self._local_ends, self._settler
        if cancel_futures:
            for future in pending:
                future.cancel()
        if job is not None:
            job.close()
            self._settled.put(None)  # wakes the settler, which ends when nothing is pending
        if local_ends is not None:
            if wait:
                local_ends.join()
        elif local is not None:
            local.shutdown(wait, cancel_futures=cancel_futures)
        if wait and settler is not None:
            settler.join()
        if wait or settler is None:
            _pools.discard(self)

    def cancel(self) -> None:
        """Cancel every task, also those that run; on this machine those that do not run yet."""
        if self._job is not None:
            self._job.cancel()
        with self._lock:
            if self._local is None or self._local_ends is not None:
                return
            end = partial(self._local.shutdown, cancel_futures=True)
            self._local_ends = threading.Thread(target=end, name="kos-pool-end", daemon=True)
            self._local_ends.start()
        _ending[:] = [*filter(threading.Thread.is_alive, _ending), self._local_ends]

    def end(self) -> None:
        """The script has ended: wait for what runs."""
        self.shutdown()

    # ---- what kinds of pools do in their own way

    def _dumps(self, value: Any) -> bytes:
        """Raises SharedObjectError, UnsentGlobalError, and what pickling raises."""
        referred: set[str] = set()
        data = sharedobjects.dumps(value, referred)
        self._forked.check(referred)
        return data

    def _prepared(self) -> tuple[bytes, str]:
        """What sets a worker up (nothing: empty), or as a clause why this pool must stay here."""
        forked = self._forked = self._forked_globals()
        if forked.obstacle:
            return b"", forked.obstacle
        if self._initializer is None and not forked.pickled:
            return b"", ""
        try:
            return self._dumps((set_up, (forked.pickled, self._initializer, self._initargs))), ""
        except sharedobjects.SharedObjectError as found:
            return b"", f"its processes share the {found} in its initargs"
        except UnsentGlobalError as found:
            return b"", str(found)
        except Exception as error:
            if not self._forks():
                raise
            return b"", f"only processes that are forked can have its initializer ({error})"

    def _forked_globals(self) -> ForkedGlobals:
        return forked_globals() if self._forks() else scriptglobals.NONE

    def _environment(self, path: str) -> Environment:
        """How a worker is set up for the script that is at `path` in its folder."""
        return Environment(
            main=path,
            argv=sys.argv[1:],
            serves=self._serves,
            token=os.urandom(8).hex(),  # each pool has processes of its own, as the original
        )

    def _original(self) -> concurrent.futures.Executor:
        """The pool that this one stands for."""
        return OriginalExecutor(
            self._max_workers,
            self._context,
            self._initializer,
            self._initargs,
            max_tasks_per_child=self._serves or None,
        )

    def _judged(self, error: BaseException) -> BaseException:
        """A lost worker, or one that could not be set up, breaks the pool; all else is the task's own."""
        if not isinstance(error, (TaskLostError, SetUpError)):
            return error
        self._broken = f"A process in the process pool was terminated abruptly: {error}"
        self.cancel()
        broken = BrokenProcessPool(self._broken)
        broken.__cause__ = error
        return broken

    # ---- inside

    def _forks(self) -> bool:
        """Whether the original's processes would be forked."""
        if self._context is None and self._serves:
            return False
        return forks(self._context)

    def _start(self) -> None:
        """Called with the lock. The folder travels as it is now, with what the script has written so far."""
        prepared, obstacle = self._prepared()
        if obstacle:
            tell(obstacle)
            self._local = self._original()
            return
        self._job = kos_cluster.connect().launch(self._spec(prepared))
        merger = Merger(this_script()[1], durable=False)
        self._settler = threading.Thread(target=self._settle_all, args=(merger,), name="kos-pool", daemon=True)
        self._settler.start()
        _pools.add(self)

    def _check_open(self) -> None:
        if self._broken:
            raise BrokenProcessPool(self._broken)
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _added(self, future: PoolFuture, payload: bytes) -> TaskFuture:
        """The call's task. Under the lock, so that a shutdown comes before it or waits for it; pickling is not."""
        with self._lock:
            self._check_open()
            assert self._job is not None
            self._pending.add(future)
            try:
                future.task = task = self._job.add(payload)
            except BaseException:
                self._pending.discard(future)
                raise
            return task

    def _stay_here(self) -> concurrent.futures.Executor:
        with self._lock:
            if self._local is None:
                self._local = self._original()
                if self._closed:
                    self._local.shutdown(wait=False)  # it refuses the call, as this pool would have
            return self._local

    def _spec(self, prepared: bytes) -> JobSpec:
        script, folder = this_script()
        taken = snapshot(folder)
        parts = {part_hash(data): data for data in (pack(taken), prepared) if data}
        workspace, *rest = parts
        environment = msgspec.structs.replace(
            self._environment(os.path.relpath(os.path.realpath(script.path), folder)),
            workspace=workspace,
            environ=_variables(script),
            initializer=rest[0] if rest else "",
        )
        return JobSpec(
            fn=serialise.dumps_callable(run_item),
            environment=environment,
            parts=parts,
            options=Options(max_parallel=self._max_workers or 0),
            name=f"{os.path.basename(script.path)} pool",
            modules=installed_imports(script.path, taken.manifest),
            alone=self._serves > 0,
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


def _merge(merger: Merger, changes: bytes, task: str) -> None:
    report = merger.apply(changes, task)
    for path, copy in report.conflicts.items():
        print(f"kos: {path} was written by several tasks; task {task}'s version is {copy}", file=sys.stderr)
    if report.refused:
        print(f"kos: files of task {task} did not come back: {describe(report.refused)}", file=sys.stderr)


def this_script() -> tuple[_Script, Path]:
    """The script of this process, and its folder. Raises UsageError where no script runs."""
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


def forks(mp_context: Any) -> bool:
    """Whether processes of this context, or of the default one, are forked."""
    return (mp_context or multiprocessing.get_context()).get_start_method() == "fork"


def forked_globals() -> ForkedGlobals:
    """What a process would find in the script's globals that was forked now."""
    script, folder = this_script()
    return scriptglobals.taken(script.path, folder)


def tell(obstacle: str) -> None:
    """Say once why a pool stays on this machine."""
    if obstacle not in _told:
        _told.add(obstacle)
        here = f"node {os.environ['KOS_NODE']}" if "KOS_NODE" in os.environ else "this machine"
        print(f"kos: warning: a process pool stays on {here}: {obstacle}.", file=sys.stderr)
