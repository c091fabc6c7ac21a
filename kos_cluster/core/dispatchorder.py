"""Which of an owner's jobs sends its next batch, and to which node.

Theory of operation. Jobs with waiting tasks take turns (`turns`) by the slots times seconds that their batches are
taken to need, over the weight of their priority. A job that no node can take a batch of now is passed by the others.
When its tasks need several slots, and it has been passed for `PASSED_S`, one batch of it may go to wait at a node that
is full of this owner's others: there slots gather for it (`lines`).

Rules. A job's cap, and the rules of placement, hold for whoever has the turn. The ranks of a gang take no turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kos_cluster.core.caps import Caps
from kos_cluster.core.jobrows import JobRow
from kos_cluster.core.lines import FIRST_GUESS_S, PASSED_S
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.relations import Relations
from kos_cluster.core.turns import Turns, weight_of


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
        """Job and node of one batch after the other; say `sent` before the next is asked for.

        A place in a node's queue that a job of short tasks would take ahead of time goes to the first in turn, whatever
        its tasks: else those that wait for a free slot would wait until the short ones have all been sent.
        """
        passed = 0  # jobs whose turn it is, and that cannot be placed
        while passed < len(self._turns):
            job = self._jobs[self._turns.at(passed)]
            if not job.pending:
                self._turns.go(job.spec.job)
                continue
            ahead = self._sends_ahead(job)
            node = self._place(job, now, ahead=ahead)
            if node is None:
                passed += 1
                continue
            for position in range(passed) if ahead else ():
                earlier = self._jobs[self._turns.at(position)]
                if (elsewhere := self._place(earlier, now, ahead=True)) is not None:
                    job, node, passed = earlier, elsewhere, position
                    break
            yield job, node

    def sent(self, job: JobRow, tasks: int) -> None:
        """A batch of so many tasks has gone."""
        task_s = FIRST_GUESS_S if job.durations.mean_s is None else job.durations.mean_s
        self._turns.served(job.spec.job, tasks * task_s * job.spec.needs.cpus / weight_of(job.spec.priority))

    def capped(self, job: JobRow) -> bool:
        """Whether it has as many batches at nodes as it may."""
        return 0 < job.spec.max_parallel <= self._caps.out(job)

    def _sends_ahead(self, job: JobRow) -> bool:
        """Whether its tasks are so short that each slot is to have a batch that waits."""
        return job.durations.short and not job.spec.single

    def _place(self, job: JobRow, now: float, *, ahead: bool) -> str | None:
        if self.capped(job):
            return None
        placed = self._index.place(
            job.spec.needs,
            now,
            prefetch=ahead,
            crowded=self._may_queue(job, now),
            leaning=self._relations.leaning(job, now),
            told=False,
        )
        if placed.node is None:
            job.held_since_s = (now if job.held_since_s is None else job.held_since_s) if placed.held else None
            job.unplaced_since_s = now if job.unplaced_since_s is None else job.unplaced_since_s
        else:
            job.held_since_s = job.unplaced_since_s = None
        return placed.node

    def _may_queue(self, job: JobRow, now: float) -> bool:
        if job.spec.needs.cpus == 1 or job.unplaced_since_s is None:
            return False
        return not job.batches and now - job.unplaced_since_s >= PASSED_S
