"""The owner's table of its own tasks: dispatch, at-least-once execution, one committed result, retries, stories.

Theory of operation. A job is a growing row of tasks, numbered from 0, that share a function and options. Waiting tasks
stand in intervals; they are cut into batches sized by measured duration, and placed on nodes that have credit left.
Jobs take turns by what their tasks have taken (`turns`), as they do at the nodes. A node answers with outcomes, or says
that the rest is lost; silence for too long counts as the loss of the node. The first outcome of a task is committed,
later ones are dropped, so a task may run more than once and still has one result.

    task      event                             next
    held      released                          waiting
    held      what it waits for has failed      failed
    waiting   dispatched                        sent
    waiting   settled by an earlier owner       done
    sent      outcome                           done | failed
    sent      lost, may have run, tries left    waiting, next attempt
    sent      lost, may have run, none left     failed
    sent      lost, did not run; refused        waiting, same attempt
    held,     cancelled, or its job             cancelled
    waiting,
    sent

Rules: payloads and results never enter here, only their indices. Attempts are numbered from 1. `retries` bounds
the attempts that are lost with a worker or node; a loss to memory is tried again once; an exception never is.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from kos_cluster.core import reasons
from kos_cluster.core.dispatchorder import DispatchOrder
from kos_cluster.core.groups import Groups
from kos_cluster.core.jobrows import DONE, FAILED, SENT, STATES, WAITING, BatchRow, JobRow, holds
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.ownerevents import (
    Added,
    AttemptOver,
    BatchLost,
    BatchRefused,
    BatchWaits,
    CancelAt,
    Cancelled,
    Commit,
    Dispatch,
    Dropped,
    Effect,
    Event,
    GiveUp,
    HeldFailed,
    JobIdle,
    JobsElsewhere,
    JobSpec,
    NodeDown,
    NodeDrained,
    NodeLoad,
    NodeUp,
    Opened,
    Outcomes,
    RanksPlaced,
    Released,
    StartedRunning,
)
from kos_cluster.core.placement import Candidate, Leaning, Placement
from kos_cluster.core.records import (
    END_OF_CAUSE,
    Attempt,
    AttemptEnd,
    Cause,
    JobSummary,
    Needs,
    Runs,
    Story,
    TaskState,
    count_of,
    indices_of,
    runs_of,
)
from kos_cluster.core.relations import Relations

__all__ = [
    "Added",
    "AttemptOver",
    "BatchLost",
    "BatchRefused",
    "BatchWaits",
    "CancelAt",
    "Cancelled",
    "Commit",
    "Dispatch",
    "Dropped",
    "Effect",
    "Event",
    "GiveUp",
    "HeldFailed",
    "JobIdle",
    "JobSpec",
    "JobsElsewhere",
    "NodeDown",
    "NodeDrained",
    "NodeLoad",
    "NodeUp",
    "Opened",
    "Outcomes",
    "Ownership",
    "RanksPlaced",
    "Released",
    "StartedRunning",
]

REFUSED_PAUSE_S = 0.05  # first pause after a refusal; doubles up to
REFUSED_PAUSE_MOST_S = 1.0
MEMORY_RETRIES = 1  # times a task is tried again after it was ended for memory


@dataclass(slots=True)
class _Node:
    """A node as this owner knows it."""

    view: Candidate
    up: bool = True
    batches: set[int] = field(default_factory=set)
    pause_s: float = REFUSED_PAUSE_S


class Ownership:
    """The machine. One instance per client process; `rng` decides ties in placement."""

    def __init__(self, rng: random.Random) -> None:
        self._jobs: dict[str, JobRow] = {}
        self._nodes: dict[str, _Node] = {}
        self._index = NodeIndex(rng)  # of those that are up
        self._relations = Relations()
        self._batches: dict[int, BatchRow] = {}
        self._next_batch = 1
        self._groups = Groups()
        self._order = DispatchOrder(self._jobs, self._index, self._relations, self._groups)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event. Unknown jobs, nodes and batches are not errors: messages arrive late and twice."""
        effects: list[Effect] = []
        match event:
            case Outcomes():
                self._outcomes(event, now, effects)
            case Released(id_, runs, size_bytes):
                if id_ in self._jobs:
                    self._jobs[id_].release(runs, size_bytes)
                    self._order.wait(self._jobs[id_])
            case HeldFailed(id_, index):
                if id_ in self._jobs:
                    self._jobs[id_].fail_held(index)
                    self._idle_check(self._jobs[id_], effects)
            case Added(id_, count, size_bytes, settled, held):
                job = self._jobs[id_]
                job.add(count, size_bytes, held=held)
                self._order.wait(job)
                if settled:
                    job.skip(settled)
                    self._idle_check(job, effects)
            case Opened(spec):
                job = self._jobs[spec.job] = JobRow(spec, now)
                self._relations.opened(job)
            case StartedRunning(batch):
                self._started(batch, now)
            case BatchWaits(batch, waiting):
                self._waits(batch, waiting)
            case BatchLost():
                self._lost(event, now, effects)
            case BatchRefused():
                self._refused(event, now, effects)
            case RanksPlaced(job, nodes, waits_for):
                if job in self._jobs:
                    self._jobs[job].waits_for = waits_for
                    self._place_ranks(self._jobs[job], nodes, now, effects)
            case NodeUp():
                self._node_up(event)
            case NodeLoad(id_, load):
                if id_ in self._nodes:
                    self._nodes[id_].view.loaded(load)
                    self._index.changed(id_)
            case NodeDrained(id_, drained):
                if id_ in self._nodes:
                    self._nodes[id_].view.drained = drained
                    self._index.changed(id_)
            case JobsElsewhere(nodes):
                self._relations.elsewhere(nodes)
            case NodeDown(id_, cause):
                self._node_down(id_, cause, now, effects)
            case Cancelled():
                self._cancel(event, now, effects)
        if self._order:
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

    def batches_of(self, job_id: str) -> list[tuple[int, str, int]]:
        """The batches of a job at nodes: number, the node's id, the first task."""
        job = self._jobs.get(job_id)
        return [(row.number, row.node, row.runs[0][0]) for row in job.batches.values()] if job is not None else []

    def summaries(self) -> list[JobSummary]:
        return [self.summary(job) for job in self._jobs]

    def summary(self, job_id: str) -> JobSummary:
        """Raises KeyError for a job that is not, or no longer, known."""
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
            reruns=job.reruns,
            cancelled=job.cancelled,
        )

    def story(self, job_id: str, index: int) -> Story | None:
        """A task's attempts in order; None when the job or task is not (or no longer) known."""
        return next(iter(self.stories(job_id, [index])), None)

    def stories(self, job_id: str, indices: Collection[int]) -> list[Story]:
        """The stories of these tasks, those that are known; one pass over the job's batches for all of them."""
        job = self._jobs.get(job_id)
        if job is None:
            return []
        known = [index for index in indices if 0 <= index < len(job.state)]
        attempts = job.attempts_of(known, self._name)
        return [self._story(job, index, attempts[index]) for index in known]

    def states(self, job_id: str) -> bytes:
        """A byte a task of the job, an index of `jobrows.STATES`; empty when the job is not (or no longer) known."""
        job = self._jobs.get(job_id)
        return bytes(job.state) if job is not None else b""

    def _story(self, job: JobRow, index: int, attempts: list[Attempt]) -> Story:
        state = STATES[job.state[index]]
        if state is TaskState.SENT and any(a.end is AttemptEnd.OPEN and a.started_s for a in attempts):
            state = TaskState.RUNNING
        return Story(f"{job.spec.job}.{index}", job.spec.name, state, tuple(attempts))

    def standing(self, job_id: str, now: float) -> tuple[Needs, tuple[str, ...]] | None:
        """What the job's tasks need, and why the waiting ones wait, or where the next would go; None when not known."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if job.spec.gang:
            return job.spec.needs, (job.waits_for or "its ranks are sent to their slots",)
        if self._order.capped(job):
            return job.spec.needs, (f"its cap of {job.spec.max_parallel} at once is reached",)
        lost = tuple(f"{node.view.name}: it is lost" for node in self._nodes.values() if not node.up)
        leaning, short = self._relations.leaning(job, now), job.durations.short
        placed = self._index.place(job.spec.needs, now, prefetch=short, leaning=leaning)
        return job.spec.needs, (*placed.reasons, *lost)

    def would_go(self, needs: Needs, now: float) -> tuple[Placement, dict[str, str]]:
        """Where a task of such needs would go now, and what would come of it on each node, by name."""
        related = self._relations
        leaning = Leaning(layout=needs.layout, near=related.near(needs), apart=related.apart(needs))
        nodes = sorted(self._index, key=lambda node: node.name)
        standing = {node.name: reasons.standing(needs, node, now, leaning) for node in nodes}
        return self._index.place(needs, now, leaning=leaning), standing

    def impossible(self, needs: Needs) -> tuple[str, ...]:
        """Why no node can ever run such a task; empty when one can, or when no node is known."""
        return reasons.why_none_ever(needs, self._index)

    def unknown_jobs(self, names: Collection[str]) -> list[str]:
        """Those of these ids or names that no job is called by, as far as is known."""
        return [name for name in names if not self._relations.knows(name)]

    def place(self, needs: Needs, now: float) -> Placement:
        """Where a task goes that another owner is to submit there; where it need not wait, if there is such a node."""
        busy = frozenset(view.id for view in self._index if view.slots_free < needs.cpus)
        placed = self._index.place(needs, now, leaning=Leaning(apart=busy), told=False)
        return placed if placed.node else self._index.place(needs, now)

    def forget(self, job_id: str) -> None:
        """Drop a job whose tasks are all final; its story can no longer be told."""
        job = self._jobs.get(job_id)
        if job is not None and job.idle:
            del self._jobs[job_id]
            self._order.forget(job)
            self._relations.forgotten(job)

    # ---- outcomes and losses

    def _started(self, number: int, now: float) -> None:
        batch = self._batches.get(number)
        if batch is not None and batch.started_s is None:
            batch.started_s = now

    def _waits(self, number: int, waiting: bool) -> None:
        """Its slots can serve others of this owner's tasks meanwhile, as they do at the node."""
        batch = self._batches.get(number)
        if batch is not None and batch.waits != waiting:
            batch.waits = waiting
            self._nodes[batch.node].view.in_flight += batch.job.spec.needs.cpus * (-1 if waiting else 1)
            self._index.changed(batch.node)

    def _outcomes(self, event: Outcomes, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        job = batch.job
        fresh = batch.owes(event.runs)
        batch.left.difference_update(indices_of(event.runs))
        job.durations.measured(count_of(event.runs), event.elapsed_s)
        if batch.started_s is None:
            batch.started_s = max(batch.sent_s, now - event.elapsed_s)
        if fresh:
            self._commit(job, fresh, event.failed, batch)
            effects.append(Commit(job.spec.job, fresh))
        if not batch.left:  # what has not come yet is on its way, or is sent again
            self._end(batch, "", now)
        self._idle_check(job, effects)

    def _commit(self, job: JobRow, fresh: Runs, failed: frozenset[int], batch: BatchRow) -> None:
        job.done += job.settle(fresh, DONE)
        for index in failed:
            if holds(fresh, index):
                job.state[index] = FAILED
                batch.ends[index] = AttemptEnd.FAILED
                job.done -= 1
                job.failed += 1

    def _lost(self, event: BatchLost, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        ran, untouched = batch.owes(event.ran), batch.owes(event.untouched)
        if batch.job.spec.gang:  # it is lost to its gang, be it begun or not
            ran, untouched = _join(ran, untouched), []
        end = END_OF_CAUSE[event.cause]
        if event.cause is Cause.STOPPING:
            self._close(self._nodes[batch.node])  # what it gives back must not go there again
        batch.ended_as(untouched, AttemptEnd.RETURNED)
        batch.ended_as(ran, end)
        self._end(batch, event.detail, now)
        if event.cause is Cause.CANCELLED:
            self._drop(batch.job, _join(ran, untouched), effects)
        else:
            self._requeue(batch.job, untouched, batch.attempt)
            self._try_again(batch, ran, end, event.detail, effects)
        self._idle_check(batch.job, effects)

    def _try_again(self, batch: BatchRow, ran: Runs, end: AttemptEnd, detail: str, effects: list[Effect]) -> None:
        """Requeue what may have run under the next attempt, or give it up."""
        if not ran:
            return
        job = batch.job
        effects.append(AttemptOver(job.spec.job, ran, batch.attempt))
        again: list[int] = []
        over: list[int] = []
        for index in indices_of(ran):
            (again if self._may_retry(job, index, batch.attempt, end) else over).append(index)
        job.reruns += len(again)
        self._requeue(job, runs_of(again), batch.attempt + 1)
        if over:
            runs = runs_of(over)
            job.failed += job.settle(runs, FAILED)
            effects.append(GiveUp(job.spec.job, runs, end, self._name(batch.node), batch.attempt, detail))

    def _may_retry(self, job: JobRow, index: int, attempt: int, end: AttemptEnd) -> bool:
        if end in (AttemptEnd.TIMEOUT, AttemptEnd.FAILED) or attempt > job.spec.retries:
            return False
        if end in (AttemptEnd.OUT_OF_MEMORY, AttemptEnd.MEMORY_LIMIT):
            lost = job.lost_to_memory.get(index, 0) + 1
            job.lost_to_memory[index] = lost
            return lost <= MEMORY_RETRIES
        return True

    def _refused(self, event: BatchRefused, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        node = self._nodes[batch.node]
        if event.stopping:
            self._close(node)
        if batch.job.spec.gang:
            self._end(batch, event.reason, now)
            self._try_again(batch, batch.owes(batch.runs), AttemptEnd.RETURNED, event.reason, effects)
            self._idle_check(batch.job, effects)
            return
        node.view.refused_until_s = now + node.pause_s
        node.pause_s = min(node.pause_s * 2, REFUSED_PAUSE_MOST_S)
        self._give_back(batch, now)
        batch.job.history.pop()  # a refusal is no attempt
        self._idle_check(batch.job, effects)

    def _give_back(self, batch: BatchRow, now: float) -> None:
        """What the batch still owes did not run, and waits again."""
        left = batch.owes(batch.runs)
        batch.ended_as(left, AttemptEnd.RETURNED)
        self._end(batch, "", now)
        self._requeue(batch.job, left, batch.attempt)

    def _end(self, batch: BatchRow, cause: str, now: float) -> None:
        """The batch is over: give its slots back and keep it for the stories."""
        batch.cause, batch.ended_s = cause, now
        self._batches.pop(batch.number, None)
        if batch.job.batches.pop(batch.number, None) is not None:
            batch.job.history.append(batch)
            self._groups.ended(batch.job)
        node = self._nodes[batch.node]
        if batch.number in node.batches:
            node.batches.discard(batch.number)
            node.view.hold(batch.job.spec.needs, -1)
            node.view.in_flight += batch.job.spec.needs.cpus if batch.waits else 0  # which were lent already
            batch.job.gone_from(batch.node)
            self._index.changed(batch.node)

    def _idle_check(self, job: JobRow, effects: list[Effect]) -> None:
        if job.idle:
            effects.append(JobIdle(job.spec.job))

    # ---- nodes

    def _node_up(self, event: NodeUp) -> None:
        member = event.member
        node = self._nodes.get(member.id)
        if node is None:
            view = Candidate(member.id, member.name, member.slots, member.memory_bytes)
            node = self._nodes[member.id] = _Node(view)
        node.up, node.pause_s = True, REFUSED_PAUSE_S
        view = node.view
        view.name, view.slots, view.memory_bytes = member.name, member.slots, member.memory_bytes
        view.packages, view.unreadable, view.refused_until_s = event.packages, event.unreadable, 0.0
        view.drained, view.labels, view.gpus, view.resources = (
            member.drained,
            member.labels,
            member.gpus,
            member.resources,
        )
        self._index.put(view)

    def _node_down(self, id_: str, cause: str, now: float, effects: list[Effect]) -> None:
        node = self._nodes.get(id_)
        if node is None:
            return
        self._close(node)
        for number in sorted(node.batches):
            batch = self._batches[number]
            left = batch.owes(batch.runs)
            batch.ended_as(left, AttemptEnd.NODE_LOST)
            self._end(batch, cause, now)
            self._try_again(batch, left, AttemptEnd.NODE_LOST, cause, effects)
            self._idle_check(batch.job, effects)

    def _close(self, node: _Node) -> None:
        """Send it nothing more until it is up again."""
        node.up = False
        self._index.remove(node.view.id)

    # ---- cancelling

    def _cancel(self, event: Cancelled, now: float, effects: list[Effect]) -> None:
        job, index = self._jobs.get(event.job), event.index
        if job is None:
            return
        wanted = range(len(job.state)) if index is None else range(index, index + 1)
        by_node: dict[str, list[int]] = {}
        for batch in [b for b in job.batches.values() if not event.waiting and not b.left.isdisjoint(wanted)]:
            by_node.setdefault(batch.node, []).append(batch.number)
            self._cancel_batch(batch, wanted, now, effects)
        states = (WAITING,) if event.waiting else (WAITING, SENT)
        self._drop(job, runs_of(i for i in wanted if i < len(job.state) and job.state[i] in states), effects)
        effects.extend(CancelAt(node, batches) for node, batches in by_node.items())
        self._idle_check(job, effects)

    def _cancel_batch(self, batch: BatchRow, wanted: range, now: float, effects: list[Effect]) -> None:
        """A batch is stopped as a whole; those of its tasks that were not meant are run again."""
        job = batch.job
        stopped = [index for index in sorted(batch.left) if index in wanted]
        others = batch.owes(runs_of(index for index in sorted(batch.left) if index not in wanted))
        effects.append(AttemptOver(job.spec.job, runs_of(stopped), batch.attempt))
        batch.ended_as(runs_of(stopped), AttemptEnd.CANCELLED)
        batch.ended_as(others, AttemptEnd.RETURNED)
        self._end(batch, "cancelled by its owner", now)
        self._requeue(job, others, batch.attempt + 1)

    def _drop(self, job: JobRow, runs: Runs, effects: list[Effect]) -> None:
        if job.drop(runs):
            effects.append(Dropped(job.spec.job, runs))

    # ---- dispatch

    def _requeue(self, job: JobRow, runs: Runs, attempt: int) -> None:
        if runs:
            job.put_back(runs, attempt)
            self._order.wait(job)

    def _dispatch(self, now: float, effects: list[Effect]) -> None:
        """Place waiting tasks, one batch a turn, until nothing more can be placed."""
        for job, node in self._order.placed(now):
            dispatch = self._send(job, self._nodes[node], now)
            self._order.sent(job, count_of(dispatch.runs))
            effects.append(dispatch)

    def _place_ranks(self, job: JobRow, nodes: tuple[str, ...], now: float, effects: list[Effect]) -> None:
        """Send each rank to its slots; all at once, as the whole gang has them."""
        for id_ in nodes[: job.waiting]:
            node = self._nodes.get(id_)
            if node is not None and node.up:
                effects.append(self._send(job, node, now))
            else:
                runs, attempt = job.take(1)
                job.failed += job.settle(runs, FAILED)
                why = "this process has no link to it"
                effects.append(GiveUp(job.spec.job, runs, AttemptEnd.NODE_LOST, self._name(id_), attempt, why))
        self._idle_check(job, effects)

    def _send(self, job: JobRow, node: _Node, now: float) -> Dispatch:
        spec, view = job.spec, node.view
        each_bytes = job.size_bytes // max(1, len(job.state))
        ready = job.waiting - len(job.held)
        size = 1 if spec.single else job.durations.batch_size(ready, self._index.slots, each_bytes)
        runs, attempt = job.take(size)
        number, self._next_batch = self._next_batch, self._next_batch + 1
        batch = BatchRow(number, job, view.id, runs, set(indices_of(runs)), attempt, now)
        self._batches[number] = job.batches[number] = batch
        self._groups.sent(job)
        node.batches.add(number)
        view.hold(spec.needs)
        self._index.changed(view.id)
        node.pause_s = REFUSED_PAUSE_S if now >= view.refused_until_s + REFUSED_PAUSE_MOST_S else node.pause_s
        job.sent_to(view.id)
        return Dispatch(number, view.id, spec.job, runs, attempt)

    def _name(self, node: str) -> str:
        known = self._nodes.get(node)
        return known.view.name if known else node


def _join(a: Runs, b: Runs) -> Runs:
    return runs_of(sorted([*indices_of(a), *indices_of(b)]))
