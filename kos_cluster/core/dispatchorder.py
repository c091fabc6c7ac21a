"""Which of an owner's jobs sends its next batch, and to which node.

Theory of operation. Jobs with waiting tasks take turns (`turns`) by the slots times seconds that their batches are
taken to need, over the weight of their priority. A job that no node can take a batch of now is passed by the others.
When its tasks need several slots, and it has been passed for `PASSED_S`, one batch of it may go to wait at a node that
is full of this owner's others: there slots gather for it (`lines`). Where a job of short tasks would have a batch wait
at a node, the first in turn that could wait there does, whatever its tasks.

Rules. A job's cap, and the rules of placement, hold for whoever has the turn. The ranks of a gang take no turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kos_cluster.core.caps import Caps
from kos_cluster.core.jobrows import JobRow
from kos_cluster.core.lines import FIRST_GUESS_S, PASSED_S
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.placement import Placement
from kos_cluster.core.records import Needs
from kos_cluster.core.relations import Relations
from kos_cluster.core.turns import Turns, weight_of

CAPPED = Placement(None, True, ())
# Needs, whether a batch may wait at a node, and whether for slots to gather, for which no node has room in this turn of
# dispatching: nodes only become fuller in it, so jobs like these need not be tried one by one.
Nowhere = dict[tuple[Needs, bool, bool] | None, Placement]


class DispatchOrder:
    """The jobs of one owner that wait; it looks into the owner's own tables."""

    def __init__(self, jobs: Mapping[str, JobRow], index: NodeIndex, relations: Relations, caps: Caps) -> None:
        self._jobs = jobs
        self._index = index
        self._relations = relations
        self._caps = caps
        self._turns: Turns[str] = Turns()

    def __bool__(self) -> bool:
        """Whether a job waits."""
        return bool(self._turns)

    def wait(self, job: JobRow) -> None:
        """It has tasks to be sent."""
        if not job.spec.gang:
            self._turns.come(job.spec.job)

    def forget(self, job: JobRow) -> None:
        self._turns.go(job.spec.job)

    def placed(self, now: float) -> Iterator[tuple[JobRow, str]]:
        """Job and node of one batch after the other; say `sent` before the next is asked for."""
        passed = 0  # jobs whose turn it is, and that cannot be placed
        nowhere: Nowhere = {}
        while passed < len(self._turns):
            job = self._jobs[self._turns.at(passed)]
            if not job.pending:
                self._turns.go(job.spec.job)
                continue
            placed = self._place(job, now, ahead=self._sends_ahead(job), nowhere=nowhere)
            self._note(job, placed, now)
            if placed.node is None:
                passed += 1
                continue
            node = placed.node
            if passed and self._index.waits_at(node, job.spec.needs, now):
                job, node, passed = self._first_to_wait(job, node, passed, now, nowhere)
            yield job, node

    def sent(self, job: JobRow, tasks: int) -> None:
        """A batch of so many tasks has gone."""
        task_s = FIRST_GUESS_S if job.durations.mean_s is None else job.durations.mean_s
        self._turns.served(job.spec.job, tasks * task_s * job.spec.needs.cpus / weight_of(job.spec.priority))

    def capped(self, job: JobRow) -> bool:
        """Whether it has as many batches at nodes as it may."""
        return 0 < job.spec.max_parallel <= self._caps.out(job)

    def _first_to_wait(
        self, job: JobRow, node: str, passed: int, now: float, nowhere: Nowhere
    ) -> tuple[JobRow, str, int]:
        """Who of those that were passed could wait at a node where this job's batches would, else this job; with its
        node and position in turn. Or those that need a free slot would wait until all short tasks have been sent.
        """
        for position in range(passed):
            earlier = self._jobs[self._turns.at(position)]
            placed = self._place(earlier, now, ahead=True, nowhere=nowhere)
            if placed.node is not None and self._index.waits_at(placed.node, job.spec.needs, now):
                self._note(earlier, placed, now)
                return earlier, placed.node, position
        return job, node, passed

    def _sends_ahead(self, job: JobRow) -> bool:
        """Whether its tasks are so short that each slot is to have a batch that waits."""
        return job.durations.short and not job.spec.single

    def _place(self, job: JobRow, now: float, *, ahead: bool, nowhere: Nowhere) -> Placement:
        if self.capped(job):
            return CAPPED
        crowded = self._may_queue(job, now)
        leaning = self._relations.leaning(job, now)
        alike = (job.spec.needs, ahead, crowded) if leaning.plain else None
        if alike in nowhere:
            return nowhere[alike]
        placed = self._index.place(job.spec.needs, now, prefetch=ahead, crowded=crowded, leaning=leaning, told=False)
        if alike is not None and placed.node is None:
            nowhere[alike] = placed
        return placed

    def _note(self, job: JobRow, placed: Placement, now: float) -> None:
        """Since when it could not be placed, or waits for a node that has its inputs."""
        if placed is CAPPED:
            return
        if placed.node is None:
            job.held_since_s = (now if job.held_since_s is None else job.held_since_s) if placed.held else None
            job.unplaced_since_s = now if job.unplaced_since_s is None else job.unplaced_since_s
        else:
            job.held_since_s = job.unplaced_since_s = None

    def _may_queue(self, job: JobRow, now: float) -> bool:
        if job.spec.needs.cpus == 1 or job.unplaced_since_s is None:
            return False
        return not job.batches and now - job.unplaced_since_s >= PASSED_S
