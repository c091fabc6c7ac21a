"""A job on the owner's side: the payloads of its waiting tasks, and the outcomes that nobody has taken yet.

Rules. The user's threads add tasks and take outcomes, the mesh thread settles them; one lock a job keeps both apart.
A payload is kept until its task is final, an outcome until it is taken. Futures are made only for who asks for them.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from kos_cluster.core import ownerevents, placement
from kos_cluster.core.records import AttemptEnd, JobSummary, Needs, Runs, Story, indices_of
from kos_cluster.errors import LimitError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.tasks.conditions import Condition
from kos_cluster.tasks.futures import Future, Origin, Outcome, Settled
from kos_cluster.tasks.inputs import Inputs, joined, named, origins_of
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.output import Sink
from kos_cluster.tasks.streaming import Inflow

if TYPE_CHECKING:
    from kos_cluster.net.transport import Payload
    from kos_cluster.tasks import remaking
    from kos_cluster.tasks.owning import Owner

T = TypeVar("T")

_NOT_YET: Any = object()  # in place of an outcome, which may be None
TAKERS_LIMIT = 100_000  # tasks of one job of which it is remembered whose results they take, the newest
CAUSES_LIMIT = 200  # failed tasks of one job of which it is remembered here what they raised, the first
ARGUMENT_LIMIT_BYTES = 256 << 20  # of one call's pickled arguments


class Taker(Protocol):
    """Who is told how a task ends."""

    def settle(self, outcome: Settled, /) -> None:
        """Called once."""


@dataclass(frozen=True)
class JobSpec:
    """What to run. `fn` is a pickled callable; `parts` has the bytes of every part that `environment` names."""

    fn: bytes
    environment: Environment = Environment()
    parts: Mapping[str, bytes] = field(default_factory=dict)
    options: Options = Options()
    sink: Sink | None = None
    name: str = ""
    modules: tuple[str, ...] = ()  # installed packages that the code imports
    yields: bool = False  # its tasks are generators, and their items are taken one by one
    in_place: Callable[[int, int, bytes], None] | None = None  # of a gang: called in the mesh thread for a rank that is
    reads: placement.Inputs | None = None  # the blocks that its tasks read, as far as it is known where they are
    group: str = ""  # jobs of one group share the cap `options.max_parallel`
    alone: bool = False  # each task travels alone, whatever it takes
    stays: bool = True  # large results stay where they were made


class Job:
    """A growing row of tasks with one function. Made by `Cluster.launch`."""

    def __init__(self, id_: str, spec: JobSpec, sink: Sink, owner: Owner, parent: str) -> None:
        self.id = id_
        self.spec = spec
        self.sink = sink
        self.parent = parent
        self.since_s = time.monotonic()
        self.progress_shown = False
        self.closed = False  # no more tasks will come
        self.lightened = False  # and nothing is kept that is large
        self.needs = spec.options.needs(spec.modules)
        self.fn_hash = part_hash(spec.fn)
        environment = msgspec.msgpack.encode(spec.environment)
        self.env_hash = part_hash(environment)
        self.parts = {self.fn_hash: spec.fn, self.env_hash: environment, **spec.parts}
        self._owner = owner
        self._changed = Condition()
        self._count = 0
        self._payloads: dict[int, bytes] = {}
        self._inputs: OrderedDict[int, tuple[str, ...]] = OrderedDict()  # of tasks that take results of others
        self._input_parts: dict[int, dict[str, Payload]] = {}  # the large ones of those that are not final
        self._inflows: dict[int, Inflow] = {}  # of tasks that yield, while their streams are held
        self._futures: dict[int, Future] = {}
        self._again: dict[int, Taker] = {}  # of tasks that run again, which are over for their futures
        self._made_of: dict[int, tuple[Origin, ...]] = {}  # of tasks that are not final: the results that they take
        self._blocks: dict[int, str] = {}  # of tasks that run again: the names of the blocks that they are to make
        self._outcomes: dict[int, Settled] = {}
        self._awaited: set[int] = set()  # those that somebody waits for, to take them
        self._causes: dict[int, str] = {}  # what failed tasks have raised
        self._when_over: list[Callable[[], None]] = []

    # ---- for users

    def add_call(self, payload: bytes, inputs: Inputs) -> Future:
        """One more task, which may take futures; see `inputs.dumps_call`. A job has only tasks that do, or none."""
        return self.future(self.add_calls([payload], {0: inputs})) if inputs else self.add(payload)

    def add_calls(self, payloads: Sequence[bytes], inputs: Mapping[int, Inputs]) -> int:
        """More tasks, without futures of their own, of which those in `inputs`, by their place, take futures.

        Gives the index of the first. Raises UsageError, LimitError.
        """
        for payload in payloads:
            _check_size(payload)
        self._owner.holding.admit(inputs.values())
        for payload in payloads:
            self._owner.blocks.used(payload)
        with self._changed:
            start, self._count = self._count, self._count + len(payloads)
            self._payloads.update(enumerate(payloads, start))
            self._inputs.update((start + place, named(taken)) for place, taken in inputs.items())
            while len(self._inputs) > TAKERS_LIMIT:
                self._inputs.popitem(last=False)
            self._owner.holding.add(self, start, payloads, inputs)  # with the lock: the order of such calls counts
        return start

    def add(self, payload: bytes) -> Future:
        """One more task. `payload` is a pickled `(args, kwargs)`; see `serialise.dumps_args`."""
        _check_size(payload)
        self._owner.blocks.used(payload)
        with self._changed:
            index = self._count
            self._count += 1
            self._payloads[index] = payload
            future = self._futures[index] = self._new_future(index)
        # Without the lock, which the mesh thread wants at once. The order of such calls is free: they only count.
        self._owner.added(self, 1, len(payload))
        return future

    def add_many(self, payloads: Sequence[bytes]) -> None:
        """More tasks, without futures; take their outcomes with `take`, in any order."""
        for payload in payloads:
            _check_size(payload)
            self._owner.blocks.used(payload)
        with self._changed:
            start, self._count = self._count, self._count + len(payloads)
            self._payloads.update(zip(range(start, self._count), payloads, strict=True))
        self._owner.added(self, len(payloads), sum(map(len, payloads)))

    def resume(self, payloads: Sequence[bytes], settled: Runs) -> None:
        """All tasks of a job that an earlier owner has driven so far; those in `settled` have their results."""
        done = set(indices_of(settled))
        with self._changed:
            self._count = len(payloads)
            self._payloads = {index: data for index, data in enumerate(payloads) if index not in done}
        self._owner.resumed(self, len(payloads), sum(map(len, payloads)), settled)

    def __len__(self) -> int:
        return self._count

    def future(self, index: int) -> Future:
        """A future of a task that was added without one. Its outcome can then not be taken."""
        with self._changed:
            future = self._futures.get(index)
            if future is None:
                future = self._futures[index] = self._new_future(index)
                if index in self._outcomes:
                    future.settle(self._outcomes.pop(index))
            return future

    def inflow(self, index: int) -> Inflow:
        """Where the items of a task come in that yields."""
        with self._changed:
            return self._inflows.setdefault(index, Inflow())

    def leave(self, index: int) -> None:
        """Nobody takes the items of a task any more. May be called at any moment, by the garbage collector."""
        self._inflows.pop(index, None)
        if not self._owner.closed and self._owner.pid == os.getpid():
            self._owner.cancel(self, index)

    def take(self, index: int, timeout_s: float | None = None) -> Settled:
        """Wait for a task's outcome and take it away. Raises TimeoutError."""
        outcome = self._outcomes.pop(index, _NOT_YET)  # without the lock, as most are there: this is one step
        return self._wait(index, timeout_s) if outcome is _NOT_YET else outcome

    def _wait(self, index: int, timeout_s: float | None) -> Settled:
        with self._changed:
            self._awaited.add(index)
            try:
                if not self._changed.wait_for(lambda: index in self._outcomes, timeout_s):
                    raise TimeoutError(f"Task {self.id}.{index} had no result after {timeout_s} s.")
            finally:
                self._awaited.discard(index)
            return self._outcomes.pop(index)

    def failures(self) -> list[BaseException]:
        """What has failed so far, of the outcomes that nobody has taken."""
        with self._changed:
            outcomes = list(self._outcomes.values())
        found: list[BaseException] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                found.append(outcome)
            elif outcome is not None and outcome.failed:
                found.append(outcome.error())
        return found

    @property
    def owner(self) -> object:
        """The connection that it belongs to."""
        return self._owner

    def cancel_task(self, index: int) -> None:
        """Cancel one task, unless it is final."""
        self._owner.cancel(self, index)

    def cancel(self) -> None:
        """Cancel every task that is not final, also those that run."""
        self._owner.cancel(self, None)

    def cancel_waiting(self) -> None:
        """Cancel the tasks that no node has yet."""
        self._owner.cancel(self, None, waiting=True)

    def close(self) -> None:
        """No more tasks will be added."""
        self._owner.close_job(self)

    def when_over(self, call: Callable[[], None]) -> None:
        """Call this once all tasks have outcomes: now, or in the mesh thread. No task may be added after it."""
        with self._changed:
            over = not self._payloads
            if not over:
                self._when_over.append(call)
        if over:
            call()

    def abandon(self, error: BaseException) -> None:
        """The connection is over: everything that is not final ends with this error."""
        with self._changed:
            left = list(self._payloads)
        self._settle([(index, error) for index in left])

    def summary(self) -> JobSummary:
        """Counts by state. Raises UsageError once the job has been forgotten."""
        summary = self._owner.jobs.summary(self)
        if summary is None:
            raise UsageError(f"Job {self.id} is over and no longer known here.")
        return summary

    def counts(self) -> JobSummary | None:
        """As `summary`; None when the job, or the connection, is over."""
        return None if self._owner.closed else self._owner.jobs.summary(self)

    def story(self, index: int) -> Story | None:
        return None if self._owner.closed else next(iter(self._owner.jobs.stories(self.id, [index])), None)

    def standing(self) -> tuple[Needs, tuple[str, ...]] | None:
        """What its tasks need and why the waiting ones wait, or where the next would go; None when it is over."""
        return None if self._owner.closed else self._owner.placing.standing(self.id)

    # ---- for the mesh thread

    def row(self) -> ownerevents.JobSpec:
        """What the owner's table is told of it."""
        spec, options = self.spec, self.spec.options
        return ownerevents.JobSpec(
            job=self.id,
            name=spec.name,
            needs=self.needs,
            retries=options.retries,
            single=spec.alone or spec.yields or options.fresh or options.timeout is not None,
            gang=spec.in_place is not None,
            max_parallel=options.max_parallel,
            group=spec.group,
            parent=self.parent,
            inputs=spec.reads,
            priority=options.priority,
            speculate=options.speculate and not spec.yields,
        )

    def told(self, stories: list[Story]) -> list[Story]:
        """Stories of this job's tasks, with the tasks whose results these take, and with what they have raised."""
        return [self._told(story) for story in stories] if self._inputs or self._causes else stories

    def _told(self, story: Story) -> Story:
        index = int(story.task.partition(".")[2])
        attempts = story.attempts
        if attempts and attempts[-1].end is AttemptEnd.FAILED and not attempts[-1].cause:
            last = msgspec.structs.replace(attempts[-1], cause=self._causes.get(index, ""))
            attempts = (*attempts[:-1], last)
        return msgspec.structs.replace(story, attempts=attempts, inputs=self._inputs.get(index, ()))

    def rank_in_place(self, rank: int, serial: int, said: bytes) -> None:
        """A rank of the gang that this job is says where it listens, or of a checkpoint. May come again."""
        if self.spec.in_place is not None:
            self.spec.in_place(rank, serial, said)

    def lighten(self) -> None:
        """The job is over: keep nothing that is large."""
        self.lightened = True
        self.parts.clear()
        self.spec = replace(self.spec, fn=b"", parts={})

    def payloads(self, runs: Runs) -> list[bytes]:
        """The payloads of these tasks; empty for those that are final already. Only this thread takes any out."""
        return [self._payloads.get(index, b"") for index in indices_of(runs)]

    def bind(self, index: int, inputs: Inputs) -> int | None:
        """The inputs of a task are there; gives by how much its payload grows. None when the task is final already.

        Raises LimitError when its arguments are too large together.
        """
        with self._changed:
            call = self._payloads.get(index)
        if call is None:
            return None
        payload, parts = joined(call, inputs)
        _check_size(payload, sum(map(len, parts.values())))
        with self._changed:
            if index in self._payloads:
                for data in (payload, *parts.values()):
                    self._owner.blocks.used(data)
                self._owner.blocks.unused(call)
                self._payloads[index] = payload
                if parts:
                    self._input_parts[index] = parts
                self._made_of[index] = origins_of(inputs)
        return len(payload) - len(call)

    def made_of(self, index: int) -> tuple[Origin, ...]:
        """How the results were made that a task takes."""
        return self._made_of.get(index, ())

    def blocks(self, runs: Runs) -> dict[int, str]:
        """The blocks that these tasks are to make again."""
        return _those_of(runs, self._blocks)

    def again(self, origin: remaking.Origin) -> None:
        """A task that is over runs again, for what it has made to be made again. In the mesh thread."""
        for data in (origin.payload, *origin.parts.values()):
            self._owner.blocks.used(data)
        with self._changed:
            self._payloads[origin.index] = origin.payload
            if origin.parts:
                self._input_parts[origin.index] = origin.parts
            self._made_of[origin.index] = origin.inputs
            self._blocks[origin.index] = origin.block
            self._again[origin.index] = origin

    def input_parts(self, runs: Runs) -> dict[int, dict[str, Payload]]:
        """The parts with large inputs of these tasks, by index."""
        return _those_of(runs, self._input_parts)

    def inputs(self, runs: Runs) -> dict[int, tuple[str, ...]]:
        """The ids of the tasks whose results these tasks take, by index; for each the first of them."""
        return _those_of(runs, self._inputs)

    def settle(self, runs: Runs, outcomes: Mapping[int, Outcome]) -> None:
        """Commit outcomes."""
        self._settle([(index, outcomes[index]) for index in indices_of(runs)])

    def settle_all(self, runs: Runs, outcome: Settled) -> None:
        """One ending for all of these."""
        self._settle([(index, outcome) for index in indices_of(runs)])

    def _settle(self, settled: Sequence[tuple[int, Settled]]) -> None:
        asked: list[tuple[Taker, Settled]] = []
        with self._changed:
            for index, outcome in settled:
                payload = self._payloads.pop(index, None)
                if payload is None:
                    continue  # it has its outcome already
                self._note_cause(index, outcome)
                self._owner.blocks.unused(payload)
                for part in self._input_parts.pop(index, {}).values():
                    self._owner.blocks.unused(part)
                self._made_of.pop(index, None)
                self._blocks.pop(index, None)
                # The job forgets a future here, so that its result goes when the user drops it.
                taker = self._again.pop(index, None) or self._futures.pop(index, None)
                if taker is None:
                    self._outcomes[index] = outcome
                else:
                    asked.append((taker, outcome))
            over: list[Callable[[], None]] = []
            if not self._payloads:
                over, self._when_over = self._when_over, over
            if any(index in self._outcomes for index in self._awaited):
                self._changed.notify_all()
        for taker, outcome in asked:  # without the lock: callbacks may add tasks
            taker.settle(outcome)
        for call in over:
            call()

    def _note_cause(self, index: int, outcome: Settled) -> None:
        """Remember what a failed task raised. One that was not even run has raised nothing, and has no payload."""
        if isinstance(outcome, Outcome) and outcome.failed and outcome.payload and len(self._causes) < CAUSES_LIMIT:
            self._causes[index] = outcome.cause()

    def _new_future(self, index: int) -> Future:
        return Future(self, index)


def _those_of(runs: Runs, known: Mapping[int, T]) -> dict[int, T]:
    return {index: known[index] for index in indices_of(runs) if index in known} if known else {}


def _check_size(payload: bytes, inputs_bytes: int = 0) -> None:
    size_bytes = len(payload) + inputs_bytes
    if size_bytes > ARGUMENT_LIMIT_BYTES:
        raise LimitError(
            f"The arguments of a task are {size_bytes:,} bytes, over the limit of {ARGUMENT_LIMIT_BYTES:,}.",
            "Pass a path that the nodes can read, or split the work.",
        )


def part_hash(data: bytes) -> str:
    """The name of a part: hex SHA-256 of its bytes."""
    return hashlib.sha256(data).hexdigest()
