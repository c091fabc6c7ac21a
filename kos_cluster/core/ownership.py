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
    sent      lost, did not run; refused,       waiting, same attempt
              or taken back (`takingback`)
    sent      its input is lost, tries left     held, next attempt
    done      its result is lost, tries left    waiting, next attempt
    held,     cancelled, or its job             cancelled
    waiting,
    sent

Rules: payloads and results never enter here, only their indices. Attempts are numbered from 1. `retries` bounds
the attempts that are lost with a worker or node; a loss to memory is tried again once; an exception never is.
"""

from __future__ import annotations

import random
from itertools import islice

from kos_cluster.core import reasons
from kos_cluster.core.jobrows import DONE, FAILED, SENT, WAITING, BatchRow, JobRow, holds
from kos_cluster.core.linkrates import LINKS_LIMIT
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
    InputLost,
    JobIdle,
    JobsElsewhere,
    JobSpec,
    NodeDown,
    NodeDrained,
    NodeLinks,
    NodeLoad,
    NodeUp,
    Opened,
    Outcomes,
    RanksPlaced,
    Released,
    ResultLost,
    Returned,
    StartedRunning,
    TakeBackAt,
)
from kos_cluster.core.ownertables import REFUSED_PAUSE_MOST_S, REFUSED_PAUSE_S, KnownNode, OwnerTables
from kos_cluster.core.placement import Candidate
from kos_cluster.core.records import (
    END_OF_CAUSE,
    AttemptEnd,
    Cause,
    Runs,
    count_of,
    indices_of,
    runs_of,
)
from kos_cluster.core.speculation import Speculation
from kos_cluster.core.takingback import TakingBack

__all__ = [
    "REFUSED_PAUSE_S",
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
    "InputLost",
    "JobIdle",
    "JobSpec",
    "JobsElsewhere",
    "NodeDown",
    "NodeDrained",
    "NodeLinks",
    "NodeLoad",
    "NodeUp",
    "Opened",
    "Outcomes",
    "Ownership",
    "RanksPlaced",
    "Released",
    "ResultLost",
    "Returned",
    "StartedRunning",
    "TakeBackAt",
]

MEMORY_RETRIES = 1  # times a task is tried again after it was ended for memory


class Ownership(OwnerTables):
    """The machine. One instance per client process; `rng` decides ties in placement."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._next_batch = 1
        self._taking_back = TakingBack(self._jobs, self._index, self._relations, self._order)
        self._speculation = Speculation(self._jobs, self._index, self._relations)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event. Unknown jobs, nodes and batches are not errors: messages arrive late and twice."""
        effects: list[Effect] = []
        match event:
            case Outcomes():
                self._outcomes(event, now, effects)
            case Added(id_, count, size_bytes, settled, held):
                job = self._jobs[id_]
                job.add(count, size_bytes, held=held)
                self._order.wait(job)
                if settled:
                    job.skip(settled)
                    self._idle_check(job, effects)
            case Released(id_, runs, size_bytes, inputs) if id_ in self._jobs:
                self._jobs[id_].release(runs, size_bytes, inputs)
                self._order.wait(self._jobs[id_])
            case ResultLost(id_, index, cause) if id_ in self._jobs:
                if self._jobs[id_].run_again(index, cause):
                    self._order.wait(self._jobs[id_])
            case InputLost(number, index, cause) if number in self._batches:
                self._input_lost(self._batches[number], index, cause, now, effects)
            case HeldFailed(id_, index) if id_ in self._jobs:
                self._jobs[id_].fail_held(index)
                self._idle_check(self._jobs[id_], effects)
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
            case Returned():
                self._returned(event, now, effects)
            case RanksPlaced(job, nodes, waits_for):
                if job in self._jobs:
                    self._jobs[job].waits_for = waits_for
                    self._place_ranks(self._jobs[job], nodes, now, effects)
            case NodeUp():
                self._node_up(event)
            case NodeLoad(id_, load, others_wait):
                if id_ in self._nodes:
                    view = self._nodes[id_].view
                    view.loaded(load, now)
                    view.shared = view.shared if others_wait is None else others_wait
                    self._index.changed(id_)
            case NodeLinks(id_, rates) if id_ in self._nodes:
                told = islice(((sender, rate) for sender, rate in rates.items() if rate > 0), LINKS_LIMIT)
                self._nodes[id_].view.links = dict(told)
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
        """Try again what could not be placed before; where nodes idle, ask for what is stuck, and run stragglers."""
        effects: list[Effect] = []
        self._dispatch(now, effects)
        effects += (TakeBackAt(node, batches) for node, batches in self._taking_back.wanted(now).items())
        for batch, node in self._speculation.wanted(now):
            runs = batch.owes(batch.runs)
            attempt = batch.job.next_attempt(runs[0][0], batch.attempt)
            to = self._nodes[node]
            effects.append(self._sent(batch.job, to, runs, attempt, now, reasons.why_there(to.view)))
            self._speculation.paired(batch, self._batches[self._next_batch - 1])
        return effects

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
        batch.heard_s = now
        job.durations.measured(count_of(event.runs), event.elapsed_s)
        if batch.started_s is None:
            batch.started_s = max(batch.sent_s, now - event.elapsed_s)
        if fresh:
            self._commit(job, fresh, event.failed, batch)
            effects.append(Commit(job.spec.job, fresh))
        if not batch.left:
            self._cancel_other(batch, now, effects)
        self._batch_over(batch, now)
        self._idle_check(job, effects)

    def _batch_over(self, batch: BatchRow, now: float) -> None:
        """It is, when nothing is left of it: what has not come yet is on its way, or is sent again."""
        if not batch.left:
            self._end(batch, batch.cause, now)

    def _commit(self, job: JobRow, fresh: Runs, failed: frozenset[int], batch: BatchRow) -> None:
        job.done += job.settle(fresh, DONE)
        for index in failed:
            if holds(fresh, index):
                job.state[index] = FAILED
                batch.ends[index] = AttemptEnd.FAILED
                job.done -= 1
                job.failed += 1

    def _cancel_other(self, batch: BatchRow, now: float, effects: list[Effect]) -> None:
        """A batch has its outcome: another attempt at the same task is of no use."""
        number = self._speculation.other(batch)
        if number is None:
            return
        other = self._batches[number]
        runs = runs_of(sorted(other.left))
        effects.append(CancelAt(other.node, [number]))
        effects.append(AttemptOver(batch.job.spec.job, runs, other.attempt))
        other.ended_as(runs, AttemptEnd.CANCELLED)
        self._end(other, f"attempt {batch.attempt} was faster", now)

    def _leave_to_other(self, batch: BatchRow, effects: list[Effect]) -> bool:
        """Whether another attempt at its task runs, so that the end of this one is the end of an attempt alone."""
        if self._speculation.other(batch) is None:
            return False
        effects.append(AttemptOver(batch.job.spec.job, runs_of(sorted(batch.left)), batch.attempt))
        return True

    def _input_lost(self, batch: BatchRow, index: int, cause: str, now: float, effects: list[Effect]) -> None:
        """A task did not begin: it waits for its input, unless another attempt has that."""
        if self._leave_to_other(batch, effects):
            batch.left.discard(index)
            batch.ended_as([(index, 1)], AttemptEnd.INPUT_LOST)
            self._end(batch, cause, now)
        elif batch.hold_again(index, cause):
            self._batch_over(batch, now)

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
        if event.cause is Cause.TIMEOUT:
            self._cancel_other(batch, now, effects)
        left_to_other = self._leave_to_other(batch, effects)
        self._end(batch, event.detail, now)
        if left_to_other:
            for index in indices_of(ran):
                self._bears(batch.job, index, end)  # noted for when the other is lost, too
            return
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
        attempt = max(job.next_attempt(index, batch.attempt) for index in indices_of(ran))
        again: list[int] = []
        over: list[int] = []
        for index in indices_of(ran):
            (again if self._bears(job, index, end) and attempt <= job.spec.retries + 1 else over).append(index)
        job.reruns += len(again)
        self._requeue(job, runs_of(again), attempt)
        if over:
            runs = runs_of(over)
            job.failed += job.settle(runs, FAILED)
            effects.append(GiveUp(job.spec.job, runs, end, self._name(batch.node), attempt - 1, detail))

    def _bears(self, job: JobRow, index: int, end: AttemptEnd) -> bool:
        """Whether a task whose attempt has ended so may be tried again; losses to memory are counted."""
        if end in (AttemptEnd.TIMEOUT, AttemptEnd.FAILED):
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
        self._pause(node, now)
        self._give_back(batch, batch.runs, now)
        self._idle_check(batch.job, effects)

    def _returned(self, event: Returned, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        if batch.started_s is None:
            self._pause(self._nodes[batch.node], now)  # it is fuller than we know
        else:  # the task that keeps the others waiting lasts, which its outcome will tell too late
            batch.job.durations.measured(1, now - max(batch.started_s, batch.heard_s))
        self._give_back(batch, event.runs, now)
        self._idle_check(batch.job, effects)

    def _pause(self, node: KnownNode, now: float) -> None:
        """Send it nothing for a while, which is longer each time."""
        node.view.refused_until_s = now + node.pause_s
        node.pause_s = min(node.pause_s * 2, REFUSED_PAUSE_MOST_S)
        self._index.changed(node.view.id)

    def _give_back(self, batch: BatchRow, runs: Runs, now: float) -> None:
        """These tasks of a batch did not begin, and wait again; it is over when it owes no others."""
        owed = [] if self._speculation.other(batch) is not None else batch.owes(runs)
        batch.gives_back(runs)
        if not batch.left:
            self._end(batch, "", now)
            if not batch.runs:
                batch.job.history.pop()  # nothing of it was attempted
        self._requeue(batch.job, owed, batch.attempt)

    def _end(self, batch: BatchRow, cause: str, now: float) -> None:
        """The batch is over: give its slots back and keep it for the stories."""
        batch.cause, batch.ended_s = cause, now
        self._batches.pop(batch.number, None)
        self._speculation.ended(batch)
        if batch.job.batches.pop(batch.number, None) is not None:
            batch.job.history.append(batch)
            self._caps.ended(batch.job)
        node = self._nodes[batch.node]
        if batch.number in node.batches:
            node.batches.discard(batch.number)
            node.view.hold(batch.job.spec.needs, -1)
            node.view.in_flight += batch.job.spec.needs.cpus if batch.waits else 0  # which were lent already
            if batch.sent_s < node.view.loaded_s:
                node.view.busy = max(0, node.view.busy - batch.job.spec.needs.cpus)  # it was gossiped with that
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
            node = self._nodes[member.id] = KnownNode(view)
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
            left_to_other = self._leave_to_other(batch, effects)
            self._end(batch, cause, now)
            if not left_to_other:
                self._try_again(batch, left, AttemptEnd.NODE_LOST, cause, effects)
            self._idle_check(batch.job, effects)

    def _close(self, node: KnownNode) -> None:
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

    def _send(self, job: JobRow, node: KnownNode, now: float) -> Dispatch:
        each_bytes = job.size_bytes // max(1, len(job.state))
        ready = job.waiting - len(job.held)
        alone = job.spec.single or job.next_reads is not None
        size = 1 if alone else job.durations.batch_size(ready, self._index.slots, each_bytes)
        chosen = reasons.why_there(node.view, self._relations.leaning(job, now))
        runs, attempt = job.take(size)
        return self._sent(job, node, runs, attempt, now, chosen)

    def _sent(self, job: JobRow, node: KnownNode, runs: Runs, attempt: int, now: float, chosen: str) -> Dispatch:
        """Note what goes to a node as the next batch."""
        view = node.view
        number, self._next_batch = self._next_batch, self._next_batch + 1
        batch = BatchRow(number, job, view.id, runs, set(indices_of(runs)), attempt, now, now, chosen)
        self._batches[number] = job.batches[number] = batch
        self._caps.sent(job)
        node.batches.add(number)
        view.hold(job.spec.needs)
        self._index.changed(view.id)
        node.pause_s = REFUSED_PAUSE_S if now >= view.refused_until_s + REFUSED_PAUSE_MOST_S else node.pause_s
        job.sent_to(view.id)
        return Dispatch(number, view.id, job.spec.job, runs, attempt, chosen)


def _join(a: Runs, b: Runs) -> Runs:
    return runs_of(sorted([*indices_of(a), *indices_of(b)]))
