"""The calls of one executor or pool: jobs that share a cap, workers, and an end.

Theory of operation. Calls of one function are tasks of one job, so that they travel together; each `map` is a job of
its own. The jobs of a group count together against its cap, which the owner's table keeps (`core.ownership`). The
group counts what is not finished; whoever closes it may wait for that.

Rules. After `close` every call is refused. With an initializer the workers serve this group alone, since what it does
to a worker is nobody else's business; else they are shared with everybody, and warm. The lock is never held while the
mesh thread is asked, which runs the callbacks that take it. At most `JOBS_LIMIT` jobs are open for further calls.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from kos_cluster.core.records import MemberState
from kos_cluster.net.local import Environment
from kos_cluster.tasks import compat, functions, inputs, serialise
from kos_cluster.tasks.blocks import named_in
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.conditions import Condition
from kos_cluster.tasks.functions import Functions, Shipped
from kos_cluster.tasks.futures import Future
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.submission import STREAMED_LIMIT_BYTES, current_folder

JOBS_LIMIT = 128  # functions whose calls share a job

Initializer = tuple[Callable[..., object], tuple[Any, ...]]
Call = tuple[bytes, inputs.Inputs]
Then = Callable[[concurrent.futures.Future[Any]], object] | None


class Launcher(Protocol):
    """Where the calls run: a cluster, or an engine of it."""

    @property
    def usable(self) -> bool: ...
    def launch(self, spec: JobSpec, /) -> Job: ...


class JobGroup:
    """`cap`: how many calls run at once (0: no cap); `serves`: how many a worker serves before another takes its place
    (0: no limit). With `alone` no call waits for another that it travels with. With `waits_at_exit` the end of the
    interpreter waits for what is not finished.
    """

    def __init__(
        self,
        launcher: Launcher,
        refusal: Callable[[], Exception],
        *,
        cap: int = 0,
        initializer: Initializer | None = None,
        serves: int = 0,
        alone: bool = False,
        waits_at_exit: bool = False,
    ) -> None:
        self._launcher = launcher
        self._refusal = refusal
        self._options = Options(max_parallel=cap)
        self._alone = alone or serves > 0
        self._name = secrets.token_hex(8)
        self._functions = Functions()
        self._parts: dict[str, bytes] = {}
        self._environment = Environment(serves=serves, cwd=current_folder())
        if initializer is not None:
            shipped = functions.ship(serialise.dumps_callable(initializer))
            self._parts = {shipped.hash: shipped.payload, **shipped.parts}
            self._environment = msgspec.structs.replace(
                self._environment, initializer=shipped.hash, modules=shipped.local_modules, token=self._name
            )
        self._changed = Condition()
        self._jobs: OrderedDict[Any, Job] = OrderedDict()  # open for further calls
        self._unfinished: Counter[Job] = Counter()  # futures, and a whole map as one
        self._closed = False
        if waits_at_exit:  # after `connect` has registered itself, so it comes before the connection is closed
            atexit.register(self.finish)

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        then: Then = None,
    ) -> Future:
        """One call; `then` is called when it is done, before it counts as finished.

        Raises the group's refusal once it is closed, NotPicklableError, LimitError.
        """
        self._check_open()
        payload, taken = inputs.dumps_call(args, kwargs)
        shipped = functions.with_arguments(self._functions.ship(fn), (payload,))
        modules = compat.needed(shipped.modules, (payload,))
        call = (payload, taken)
        if len(shipped.payload) >= STREAMED_LIMIT_BYTES or named_in(shipped.payload):
            return self._add_alone(self._launch(fn, shipped, modules), call, then)
        key = (shipped.key, modules, bool(taken))
        with self._changed:
            self._check_open()
            if key in self._jobs:
                self._jobs.move_to_end(key)
                return self._add(self._jobs[key], call, then)
        return self._add_to_new(key, self._launch(fn, shipped, modules), call, then)

    def map(
        self,
        fn: Callable[..., Any],
        rows: Iterable[tuple[Any, ...]],
        then: Callable[[Job], None] | None = None,
        *,
        alone: bool = False,
    ) -> Job:
        """A call for each row of arguments, as a job without futures: see `Job.take`. Otherwise as `submit`."""
        self._check_open()
        shipped = self._functions.ship(fn)
        payloads, taken = inputs.dumps_calls(rows)
        shipped = functions.with_arguments(shipped, payloads)
        job = self._launch(fn, shipped, compat.needed(shipped.modules, payloads), alone)
        try:
            with self._changed:
                self._check_open()
                if taken:
                    job.add_calls(payloads, taken)
                else:
                    job.add_many(payloads)
                self._unfinished[job] += 1
        finally:
            job.close()
        if then is not None:
            job.when_over(functools.partial(then, job))
        job.when_over(lambda: self._finished(job))
        return job

    def close(self) -> None:
        """Take no more calls. What was begun goes on."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._check_over()
        self._each(jobs, Job.close)

    def cancel(self) -> None:
        """Cancel everything, also what runs."""
        self._each(self._begun(), Job.cancel)

    def cancel_waiting(self) -> None:
        """Cancel what no node has yet."""
        self._each(self._begun(), Job.cancel_waiting)

    def wait(self) -> None:
        """Until every call has ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished)

    def finish(self) -> None:
        """Close, and wait."""
        self.close()
        if self._launcher.usable:  # a forked child has no thread that would bring the results
            self.wait()

    # ---- inside

    def _check_open(self) -> None:
        if self._closed:
            raise self._refusal()

    def _begun(self) -> list[Job]:
        with self._changed:
            return list(self._unfinished)

    def _each(self, jobs: Iterable[Job], do: Callable[[Job], None]) -> None:
        if self._launcher.usable:  # else they have ended with the connection
            for job in jobs:
                do(job)

    def _launch(self, fn: Callable[..., Any], shipped: Shipped, modules: tuple[str, ...], alone: bool = False) -> Job:
        local_modules = {**self._environment.modules, **shipped.local_modules}
        environment = msgspec.structs.replace(self._environment, modules=local_modules)
        parts = {**self._parts, **shipped.parts}
        name = getattr(fn, "__qualname__", type(fn).__name__)
        spec = JobSpec(
            shipped.payload,
            environment,
            parts,
            self._options,
            name=name,
            modules=modules,
            group=self._name,
            alone=alone or self._alone,
        )
        return self._launcher.launch(spec)

    def _add(self, job: Job, call: Call, then: Then) -> Future:
        """Called with the lock."""
        future = job.add_call(*call)
        self._unfinished[job] += 1
        if then is not None:
            future.add_done_callback(then)
        future.add_done_callback(lambda _: self._finished(job))
        return future

    def _add_alone(self, job: Job, call: Call, then: Then) -> Future:
        """The only call of a job, whose function is too large to be kept for others, or keeps blocks of memory."""
        try:
            with self._changed:
                self._check_open()
                return self._add(job, call, then)
        finally:
            job.close()

    def _add_to_new(self, key: Any, new: Job, call: Call, then: Then) -> Future:
        """The first call of a function; another thread may have been faster meanwhile."""
        unused = [new]
        try:
            with self._changed:
                self._check_open()
                if key not in self._jobs:
                    self._jobs[key] = unused.pop()
                    if len(self._jobs) > JOBS_LIMIT:
                        unused.append(self._jobs.popitem(last=False)[1])
                return self._add(self._jobs[key], call, then)
        finally:
            for job in unused:
                job.close()

    def _finished(self, job: Job) -> None:
        with self._changed:
            self._unfinished[job] -= 1
            if not self._unfinished[job]:
                del self._unfinished[job]
            self._check_over()
            self._changed.notify_all()

    def _check_over(self) -> None:
        if self._closed and not self._unfinished:
            atexit.unregister(self.finish)


def slots_of(cluster: Cluster) -> int:
    """The slots of the nodes that are alive, as this process has heard; at least 1."""
    members = cluster.heard().members or []
    return max(1, sum(member.slots for member in members if member.state is MemberState.ALIVE))
