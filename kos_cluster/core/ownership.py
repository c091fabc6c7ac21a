"""The owner's table of its own tasks: dispatch, at-least-once execution, one committed result, retries, stories.

Theory of operation. A job is a growing row of tasks, numbered from 0, that share a function and options. Waiting tasks
stand in intervals; they are cut into batches sized by measured duration, and placed on nodes that have credit left. A node
answers with outcomes, or says that the rest is lost; silence for too long counts as the loss of the node. The first
outcome of a task is committed, later ones are dropped, so a task may run more than once and still has one result.

    task      event                             next
    waiting   dispatched                        sent
    sent      outcome                           done | failed
    sent      lost, may have run, tries left    waiting, next attempt
    sent      lost, may have run, none left     failed
    sent      lost, did not run; refused        waiting, same attempt
    waiting,  cancelled, or its job             cancelled
    sent

Rules: payloads and results never enter here, only their indices. Attempts are numbered from 1. `retries` bounds
the attempts that are lost with a worker or node; a loss to memory is tried again once; an exception never is.

Limits: `HISTORY_LIMIT` batches are remembered per job for stories; older ones are forgotten.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kos_cluster.core import placement
from kos_cluster.core.batching import Durations
from kos_cluster.core.records import (
    Attempt,
    AttemptEnd,
    Cause,
    JobSummary,
    Load,
    Member,
    Needs,
    Runs,
    Story,
    TaskState,
    count_of,
    runs_of,
)

HISTORY_LIMIT = 4096  # batches remembered per job
REFUSED_PAUSE_S = 0.05  # first pause after a refusal; doubles up to
REFUSED_PAUSE_MOST_S = 1.0
MEMORY_RETRIES = 1  # times a task is tried again after the kernel ended it for memory

_WAITING, _SENT, _DONE, _FAILED, _CANCELLED = range(5)
_STATES = (TaskState.WAITING, TaskState.SENT, TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED)


# ---- events


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the tasks of a job share."""

    job: str
    name: str
    needs: Needs = Needs()
    retries: int = 3
    single: bool = False  # one task a batch (a time limit or a fresh worker each)
    max_parallel: int = 0  # batches at nodes at once, so tasks running at once; 0: no cap
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A new job."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Added:
    """`count` more tasks of a job, numbered on, with payloads of `size_bytes` together."""

    job: str
    count: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Closed:
    """No more tasks will be added; the job is forgotten once all its tasks are final."""

    job: str


@dataclass(frozen=True, slots=True)
class NodeUp:
    """A node can take work (again). `packages` are installed there; `unreadable` payloads it could not read.

    `unreadable` maps a package whose objects it cannot read to the reason; the key "" stands for every payload.
    """

    member: Member
    packages: frozenset[str] = frozenset()
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Fresh gossip of a node's load."""

    id: str
    load: Load


@dataclass(frozen=True, slots=True)
class NodeDown:
    """A node is lost; what it held may have run."""

    id: str
    cause: str


@dataclass(frozen=True, slots=True)
class StartedRunning:
    """A batch is with a worker."""

    batch: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Tasks of a batch that ended by themselves; those in `failed` raised."""

    batch: int
    node: str
    runs: Runs
    failed: frozenset[int]
    elapsed_s: float
    last: bool


@dataclass(frozen=True, slots=True)
class BatchLost:
    """The rest of a batch brings no outcome."""

    batch: int
    ran: Runs
    untouched: Runs
    cause: Cause
    detail: str


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """A node would not take a batch."""

    batch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The user cancels a job, or one task of it."""

    job: str
    index: int | None = None


# ---- effects


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send these tasks to a node. Sending the same batch again is harmless."""

    batch: int
    node: str
    job: str
    runs: Runs
    attempt: int


@dataclass(frozen=True, slots=True)
class Commit:
    """These outcomes are the tasks' results; the rest of the message that brought them is a duplicate."""

    job: str
    runs: Runs


@dataclass(frozen=True, slots=True)
class GiveUp:
    """These tasks have failed for good without an outcome of their own."""

    job: str
    runs: Runs
    end: AttemptEnd
    node: str
    attempts: int
    detail: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """These tasks are cancelled."""

    job: str
    runs: Runs


@dataclass(frozen=True, slots=True)
class CancelAt:
    """Tell a node to stop these batches."""

    node: str
    batches: list[int]


@dataclass(frozen=True, slots=True)
class AttemptOver:
    """An attempt ended without an outcome; what it had submitted itself must stop."""

    job: str
    runs: Runs
    attempt: int


@dataclass(frozen=True, slots=True)
class JobIdle:
    """Every task added so far is final."""

    job: str


Event = (
    Opened
    | Added
    | Closed
    | NodeUp
    | NodeLoad
    | NodeDown
    | StartedRunning
    | Outcomes
    | BatchLost
    | BatchRefused
    | Cancelled
)
Effect = Dispatch | Commit | GiveUp | Dropped | CancelAt | AttemptOver | JobIdle


# ---- state


@dataclass(slots=True)
class _Batch:
    number: int
    job: _Job
    node: str
    runs: Runs  # as sent
    left: set[int]  # without an outcome yet
    attempt: int
    sent_s: float
    started_s: float | None = None
    ended_s: float | None = None
    ends: dict[int, AttemptEnd] = field(default_factory=dict)  # of tasks that did not end DONE
    end: AttemptEnd = AttemptEnd.OPEN
    cause: str = ""

    def attempt_of(self, index: int) -> Attempt:
        end = self.ends.get(index, AttemptEnd.OPEN if index in self.left else AttemptEnd.DONE)
        started = self.started_s if end is not AttemptEnd.RETURNED else None
        cause = self.cause if end not in (AttemptEnd.DONE, AttemptEnd.OPEN) else ""
        return Attempt(self.attempt, self.node, self.sent_s, started, self.ended_s, end, cause)


@dataclass(slots=True)
class _Job:
    spec: JobSpec
    since_s: float
    state: bytearray = field(default_factory=bytearray)
    pending: deque[tuple[int, int, int]] = field(default_factory=deque)  # (start, stop, attempt)
    batches: dict[int, _Batch] = field(default_factory=dict)
    history: deque[_Batch] = field(default_factory=lambda: deque(maxlen=HISTORY_LIMIT))
    durations: Durations = field(default_factory=Durations)
    lost_to_memory: dict[int, int] = field(default_factory=dict)
    size_bytes: int = 0  # of all payloads so far
    waiting: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    nodes: set[str] = field(default_factory=set)  # where any of it ever ran
    closed: bool = False
    in_turn: bool = False  # stands among the jobs with waiting tasks
    stuck: tuple[str, ...] = ()  # why nothing could be placed, at the last try

    @property
    def idle(self) -> bool:
        return self.waiting == 0 and self.sent == 0


@dataclass(slots=True)
class _Node:
    member: Member
    packages: frozenset[str]
    unreadable: Mapping[str, str]
    up: bool = True
    in_flight: int = 0  # slots
    batches: set[int] = field(default_factory=set)
    load: Load = Load()
    refused_until_s: float = 0.0
    pause_s: float = REFUSED_PAUSE_S


class Ownership:
    """The machine. One instance per client process; `rng` decides ties in placement."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._jobs: dict[str, _Job] = {}
        self._ready: deque[_Job] = deque()  # jobs with waiting tasks, in turn
        self._nodes: dict[str, _Node] = {}
        self._batches: dict[int, _Batch] = {}
        self._next_batch = 1

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event. Unknown jobs, nodes and batches are not errors: messages arrive late and twice."""
        effects: list[Effect] = []
        match event:
            case Outcomes():
                self._outcomes(event, now, effects)
            case Added():
                self._add(event)
            case Opened(spec):
                self._jobs[spec.job] = _Job(spec, now)
            case Closed(job):
                self._close(job)
            case StartedRunning(batch):
                self._started(batch, now)
            case BatchLost():
                self._lost(event, now, effects)
            case BatchRefused(batch, reason):
                self._refused(batch, reason, now, effects)
            case NodeUp():
                self._node_up(event)
            case NodeLoad(id_, load):
                if id_ in self._nodes:
                    self._nodes[id_].load = load
            case NodeDown(id_, cause):
                self._node_down(id_, cause, now, effects)
            case Cancelled(job, index):
                self._cancel(job, index, now, effects)
        if self._ready:
            self._dispatch(now, effects)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Try again what could not be placed before."""
        effects: list[Effect] = []
        self._dispatch(now, effects)
        return effects

    # ---- what others may ask

    def outstanding(self, node: str) -> list[int]:
        """The batches that this node holds, as far as the owner knows."""
        known = self._nodes.get(node)
        return sorted(known.batches) if known else []

    def dispatch_of(self, batch: int) -> Dispatch | None:
        """What was sent as this batch, to send it again; only the tasks that have no outcome yet."""
        known = self._batches.get(batch)
        if known is None:
            return None
        return Dispatch(batch, known.node, known.job.spec.job, runs_of(sorted(known.left)), known.attempt)

    def summaries(self) -> list[JobSummary]:
        return [self.summary(job) for job in self._jobs]

    def summary(self, job_id: str) -> JobSummary:
        job = self._jobs[job_id]
        return JobSummary(
            job=job_id,
            name=job.spec.name,
            user="",
            total=len(job.state),
            done=job.done,
            failed=job.failed + job.cancelled,
            running=job.sent,
            since_s=job.since_s,
            nodes=tuple(sorted(map(self._name, job.nodes))),
            parent=job.spec.parent,
        )

    def reruns(self, job_id: str) -> int:
        """How many attempts of this job ended without an outcome and were made again."""
        return sum(b.attempt > 1 for b in (*self._jobs[job_id].history, *self._jobs[job_id].batches.values()))

    def story(self, job_id: str, index: int) -> Story | None:
        """A task's attempts in order; None when the job or task is not (or no longer) known."""
        job = self._jobs.get(job_id)
        if job is None or not 0 <= index < len(job.state):
            return None
        batches = (*job.history, *job.batches.values())
        attempts = [b.attempt_of(index) for b in batches if _holds(b.runs, index)]
        named = [_with_node(a, self._name(a.node)) for a in attempts]
        state = _STATES[job.state[index]]
        if state is TaskState.SENT and any(a.end is AttemptEnd.OPEN and a.started_s for a in named):
            state = TaskState.RUNNING
        named.sort(key=lambda a: (a.sent_s, a.number))
        return Story(f"{job_id}.{index}", job.spec.name, state, tuple(named))

    def why(self, job_id: str) -> tuple[str, ...]:
        """Why the job's waiting tasks wait: each node's reason, or nothing when none waits."""
        job = self._jobs.get(job_id)
        return job.stuck if job and job.waiting else ()

    def impossible(self, needs: Needs) -> tuple[str, ...]:
        """Each node's reason why it can never run such a task; empty when one can, or when no node is known."""
        reasons = []
        for node in self._nodes.values():
            if not node.up:
                continue
            never = placement.why_never(needs, self._candidate(node, needs, 0.0))
            if not never:
                return ()
            reasons.append(f"{node.member.name}: {never}")
        return tuple(reasons)

    # ---- transitions

    def _add(self, event: Added) -> None:
        job, count = self._jobs[event.job], event.count
        job.size_bytes += event.size_bytes
        start = len(job.state)
        job.state.extend(bytes(count))
        job.waiting += count
        stop = start + count
        if job.pending and job.pending[-1][1] == start and job.pending[-1][2] == 1:
            start = job.pending.pop()[0]
        job.pending.append((start, stop, 1))
        if not job.in_turn:
            job.in_turn = True
            self._ready.append(job)

    def _requeue(self, job: _Job, runs: Runs, attempt: int) -> None:
        """Put tasks in front: they have waited longest."""
        for start, count in reversed(runs):
            job.pending.appendleft((start, start + count, attempt))
        count = count_of(runs)
        job.waiting += count
        job.sent -= count
        _mark(job, runs, _WAITING)
        if runs and not job.in_turn:
            job.in_turn = True
            self._ready.appendleft(job)

    def _close(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            job.closed = True

    def forget(self, job_id: str) -> None:
        """Drop a job whose tasks are all final; its story can no longer be told."""
        job = self._jobs.get(job_id)
        if job is not None and job.idle:
            del self._jobs[job_id]

    def _started(self, number: int, now: float) -> None:
        batch = self._batches.get(number)
        if batch is not None and batch.started_s is None:
            batch.started_s = now

    def _outcomes(self, event: Outcomes, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        job = batch.job
        fresh = _still_open(job, event.runs, batch.left)
        accepted = count_of(fresh)
        for start, count in event.runs:
            batch.left.difference_update(range(start, start + count))
        job.durations.measured(count_of(event.runs), event.elapsed_s)
        if batch.started_s is None:
            batch.started_s = max(batch.sent_s, now - event.elapsed_s)
        if accepted:
            self._finish(job, fresh, event.failed, batch)
            effects.append(Commit(job.spec.job, fresh))
        if event.last and batch.left:
            self._give_back(batch, now)
        elif not batch.left:
            self._end(batch, AttemptEnd.DONE, "", now)
        self._idle_check(job, effects)

    def _finish(self, job: _Job, fresh: Runs, failed: frozenset[int], batch: _Batch) -> None:
        _mark(job, fresh, _DONE)
        wrong = 0
        for index in failed:
            if _holds(fresh, index):
                job.state[index] = _FAILED
                batch.ends[index] = AttemptEnd.FAILED
                wrong += 1
        accepted = count_of(fresh)
        job.sent -= accepted
        job.done += accepted - wrong
        job.failed += wrong

    def _lost(self, event: BatchLost, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        ran = _still_open(batch.job, event.ran, batch.left)
        untouched = _still_open(batch.job, event.untouched, batch.left)
        end = _END_OF_CAUSE[event.cause]
        for start, count in untouched:
            batch.ends.update(dict.fromkeys(range(start, start + count), AttemptEnd.RETURNED))
        for start, count in ran:
            batch.ends.update(dict.fromkeys(range(start, start + count), end))
        self._end(batch, end, event.detail, now)
        if event.cause is Cause.CANCELLED:
            self._drop(batch.job, _join(ran, untouched), effects)
        else:
            self._requeue(batch.job, untouched, batch.attempt)
            self._try_again(batch, ran, end, event.detail, effects)
        self._idle_check(batch.job, effects)

    def _try_again(self, batch: _Batch, ran: Runs, end: AttemptEnd, detail: str, effects: list[Effect]) -> None:
        """Requeue what may have run under the next attempt, or give it up."""
        if not ran:
            return
        job = batch.job
        effects.append(AttemptOver(job.spec.job, ran, batch.attempt))
        again: list[int] = []
        over: list[int] = []
        for start, count in ran:
            for index in range(start, start + count):
                (again if self._may_retry(job, index, batch.attempt, end) else over).append(index)
        self._requeue(job, runs_of(again), batch.attempt + 1)
        if over:
            runs = runs_of(over)
            _mark(job, runs, _FAILED)
            job.sent -= len(over)
            job.failed += len(over)
            effects.append(GiveUp(job.spec.job, runs, end, self._name(batch.node), batch.attempt, detail))

    def _may_retry(self, job: _Job, index: int, attempt: int, end: AttemptEnd) -> bool:
        if end is AttemptEnd.TIMEOUT or end is AttemptEnd.FAILED or attempt > job.spec.retries:
            return False
        if end is AttemptEnd.OUT_OF_MEMORY:
            lost = job.lost_to_memory.get(index, 0) + 1
            job.lost_to_memory[index] = lost
            return lost <= MEMORY_RETRIES
        return True

    def _refused(self, number: int, reason: str, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(number)
        if batch is None:
            return
        node = self._nodes[batch.node]
        node.refused_until_s = now + node.pause_s
        node.pause_s = min(node.pause_s * 2, REFUSED_PAUSE_MOST_S)
        self._give_back(batch, now)
        batch.job.history.pop()  # a refusal is no attempt
        self._idle_check(batch.job, effects)

    def _give_back(self, batch: _Batch, now: float) -> None:
        left = _still_open(batch.job, batch.runs, batch.left)
        self._end(batch, AttemptEnd.RETURNED, "", now)
        self._requeue(batch.job, left, batch.attempt)

    def _node_up(self, event: NodeUp) -> None:
        node = self._nodes.get(event.member.id)
        if node is None:
            self._nodes[event.member.id] = _Node(event.member, event.packages, event.unreadable)
            return
        node.member, node.packages, node.unreadable, node.up = event.member, event.packages, event.unreadable, True
        node.refused_until_s, node.pause_s = 0.0, REFUSED_PAUSE_S

    def _node_down(self, id_: str, cause: str, now: float, effects: list[Effect]) -> None:
        node = self._nodes.get(id_)
        if node is None:
            return
        node.up = False
        for number in sorted(node.batches):
            batch = self._batches[number]
            left = _still_open(batch.job, batch.runs, batch.left)
            for start, count in left:
                batch.ends.update(dict.fromkeys(range(start, start + count), AttemptEnd.NODE_LOST))
            self._end(batch, AttemptEnd.NODE_LOST, cause, now)
            self._try_again(batch, left, AttemptEnd.NODE_LOST, cause, effects)
            self._idle_check(batch.job, effects)

    def _cancel(self, job_id: str, index: int | None, now: float, effects: list[Effect]) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        wanted = range(len(job.state)) if index is None else range(index, index + 1)
        by_node: dict[str, list[int]] = {}
        for batch in job.batches.values():
            stopped = batch.left.intersection(wanted)
            if stopped:
                by_node.setdefault(batch.node, []).append(batch.number)
                effects.append(AttemptOver(job_id, runs_of(sorted(stopped)), batch.attempt))
        if index is None:
            runs = runs_of(i for i, state in enumerate(job.state) if state in (_WAITING, _SENT))
            for batch in list(job.batches.values()):
                batch.ends.update(dict.fromkeys(batch.left, AttemptEnd.CANCELLED))
                self._end(batch, AttemptEnd.CANCELLED, "cancelled by its owner", now)
        else:
            runs = [(index, 1)] if 0 <= index < len(job.state) and job.state[index] in (_WAITING, _SENT) else []
            self._spare_batchmates(job, index, now)
        self._drop(job, runs, effects)
        effects.extend(CancelAt(node, batches) for node, batches in by_node.items())
        self._idle_check(job, effects)

    def _spare_batchmates(self, job: _Job, index: int, now: float) -> None:
        """One task of a batch is cancelled: its batch is stopped as a whole, the others are run again."""
        for batch in [b for b in job.batches.values() if index in b.left]:
            batch.ends[index] = AttemptEnd.CANCELLED
            others = _still_open(job, batch.runs, batch.left - {index})
            batch.ends.update(dict.fromkeys((i for s, c in others for i in range(s, s + c)), AttemptEnd.RETURNED))
            self._end(batch, AttemptEnd.CANCELLED, "cancelled by its owner", now)
            self._requeue(job, others, batch.attempt + 1)

    def _drop(self, job: _Job, runs: Runs, effects: list[Effect]) -> None:
        dropped = [i for start, count in runs for i in range(start, start + count)]
        for index in dropped:
            if job.state[index] == _WAITING:
                job.waiting -= 1
            else:
                job.sent -= 1
            job.state[index] = _CANCELLED
        job.cancelled += len(dropped)
        if dropped:
            _remove_pending(job, set(dropped))
            effects.append(Dropped(job.spec.job, runs))

    def _end(self, batch: _Batch, end: AttemptEnd, cause: str, now: float) -> None:
        """The batch is over: give its slots back and keep it for the stories."""
        batch.end, batch.cause, batch.ended_s = end, cause, now
        self._batches.pop(batch.number, None)
        if batch.job.batches.pop(batch.number, None) is not None:
            batch.job.history.append(batch)
        node = self._nodes[batch.node]
        if batch.number in node.batches:
            node.batches.discard(batch.number)
            node.in_flight -= batch.job.spec.needs.cpus
            if end is not AttemptEnd.RETURNED:
                node.pause_s = REFUSED_PAUSE_S

    def _idle_check(self, job: _Job, effects: list[Effect]) -> None:
        if job.idle:
            effects.append(JobIdle(job.spec.job))

    # ---- dispatch

    def _dispatch(self, now: float, effects: list[Effect]) -> None:
        """Place waiting tasks, one batch a job in turn, until nothing more can be placed."""
        blocked: list[_Job] = []
        while self._ready:
            job = self._ready.popleft()
            if not job.pending:
                job.in_turn = False
                continue
            dispatch = self._place_one(job, now)
            if dispatch is None:
                blocked.append(job)
            else:
                effects.append(dispatch)
                self._ready.append(job)
        self._ready.extend(blocked)

    def _place_one(self, job: _Job, now: float) -> Dispatch | None:
        spec = job.spec
        if spec.max_parallel and len(job.batches) >= spec.max_parallel:
            job.stuck = (f"its cap of {spec.max_parallel} at once is reached",)
            return None
        candidates = [self._candidate(node, spec.needs, now) for node in self._nodes.values() if node.up]
        placed = placement.place(spec.needs, candidates, self._rng, prefetch=job.durations.short)
        job.stuck = placed.reasons if placed.node is None else ()
        if placed.node is None:
            return None
        return self._send(job, self._nodes[placed.node], now)

    def _candidate(self, node: _Node, needs: Needs, now: float) -> placement.Candidate:
        member, load = node.member, node.load
        lacks = tuple(m for m in needs.modules if m not in node.packages)
        unreadable = [why for module, why in node.unreadable.items() if not module or module in needs.modules]
        refused = "it refused work a moment ago" if now < node.refused_until_s else ""
        return placement.Candidate(
            member.id,
            member.name,
            member.slots,
            node.in_flight,
            load.running + load.queued,
            member.memory_bytes,
            load.memory_available_bytes,
            lacks,
            refused,
            "; ".join(unreadable),
        )

    def _send(self, job: _Job, node: _Node, now: float) -> Dispatch:
        spec = job.spec
        slots = sum(n.member.slots for n in self._nodes.values() if n.up)
        each_bytes = job.size_bytes // max(1, len(job.state))
        size = 1 if spec.single else job.durations.batch_size(job.waiting, slots, each_bytes)
        runs, attempt = _take(job, size)
        number, self._next_batch = self._next_batch, self._next_batch + 1
        left = {i for start, count in runs for i in range(start, start + count)}
        batch = _Batch(number, job, node.member.id, runs, left, attempt, now)
        self._batches[number] = job.batches[number] = batch
        node.batches.add(number)
        job.nodes.add(node.member.id)
        node.in_flight += spec.needs.cpus
        count = len(left)
        job.waiting -= count
        job.sent += count
        _mark(job, runs, _SENT)
        return Dispatch(number, node.member.id, spec.job, runs, attempt)

    def _name(self, node: str) -> str:
        known = self._nodes.get(node)
        return known.member.name if known else node


_END_OF_CAUSE = {
    Cause.WORKER_DIED: AttemptEnd.WORKER_LOST,
    Cause.OUT_OF_MEMORY: AttemptEnd.OUT_OF_MEMORY,
    Cause.CANCELLED: AttemptEnd.CANCELLED,
    Cause.TIMEOUT: AttemptEnd.TIMEOUT,
    Cause.STOPPING: AttemptEnd.NODE_LOST,
    Cause.SET_UP: AttemptEnd.FAILED,
}


def _take(job: _Job, size: int) -> tuple[Runs, int]:
    """Cut up to `size` waiting tasks of one attempt number from the front."""
    attempt = job.pending[0][2]
    runs: list[tuple[int, int]] = []
    while size and job.pending and job.pending[0][2] == attempt:
        start, stop, _ = job.pending.popleft()
        count = min(size, stop - start)
        runs.append((start, count))
        size -= count
        if start + count < stop:
            job.pending.appendleft((start + count, stop, attempt))
    return sorted(runs), attempt


def _mark(job: _Job, runs: Runs, state: int) -> None:
    for start, count in runs:
        job.state[start : start + count] = bytes((state,)) * count


def _still_open(job: _Job, runs: Runs, left: set[int]) -> Runs:
    """Those of `runs` that this batch still owes and that are not final."""
    if all(job.state.count(_SENT, start, start + count) == count for start, count in runs):
        wanted = {i for start, count in runs for i in range(start, start + count)}
        if wanted <= left:
            return list(runs)
    return runs_of(
        i for start, count in runs for i in range(start, start + count) if i in left and job.state[i] == _SENT
    )


def _remove_pending(job: _Job, dropped: set[int]) -> None:
    kept: deque[tuple[int, int, int]] = deque()
    for start, stop, attempt in job.pending:
        if dropped.isdisjoint(range(start, stop)):
            kept.append((start, stop, attempt))
        else:
            kept.extend((s, s + c, attempt) for s, c in runs_of(i for i in range(start, stop) if i not in dropped))
    job.pending = kept


def _holds(runs: Iterable[tuple[int, int]], index: int) -> bool:
    return any(start <= index < start + count for start, count in runs)


def _join(a: Runs, b: Runs) -> Runs:
    return runs_of(sorted(i for start, count in (*a, *b) for i in range(start, start + count)))


def _with_node(attempt: Attempt, name: str) -> Attempt:
    return Attempt(
        attempt.number, name, attempt.sent_s, attempt.started_s, attempt.ended_s, attempt.end, attempt.cause
    )
