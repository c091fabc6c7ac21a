"""Which of its batches an owner asks back from busy nodes, because others idle.

Theory of operation. Work moves when who has nothing to do asks for it, not when who has too much sends it away (D.
Eager, E. Lazowska, J. Zahorjan, "A Comparison of Receiver-Initiated and Sender-Initiated Adaptive Load Sharing",
Performance Evaluation 6, 1986; as in work stealing, R. Blumofe, C. Leiserson, JACM 46(5), 1999). Here the owner asks on
behalf of the idle node, since it alone knows what it has sent where. A batch is stuck when nothing has been heard of it
for `STUCK_S` and it has tasks that cannot have begun: all, when it waits at its node behind others; all but one, when
it is behind a task of its own that lasts. When a job has no waiting tasks, some of its batches are stuck, and there are
slots for its tasks, the node is asked for what has not begun.

Rules. To ask is no more than that: the node gives back what it keeps from running there, and says so; until it does the
tasks are the batch's. So a task that has begun is never run twice for this. What comes back waits at the owner, under
the same attempt, and goes where there is room. Where moving a task's inputs takes longer than it has waited, it stays.

Limits: a batch is asked for once in `ASK_AGAIN_S`; no more of them than have tasks for the slots that are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kos_cluster.core.dispatchorder import DispatchOrder
from kos_cluster.core.jobrows import BatchRow, JobRow
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.placement import Candidate, moving_s
from kos_cluster.core.relations import Relations

STUCK_S = 0.25  # longer than a batch is meant to last, and than a node takes to say that one has started
ASK_AGAIN_S = 1.0


class TakingBack:
    """Looks into the owner's own tables."""

    def __init__(
        self, jobs: Mapping[str, JobRow], index: NodeIndex, relations: Relations, order: DispatchOrder
    ) -> None:
        self._jobs = jobs
        self._index = index
        self._relations = relations
        self._order = order

    def wanted(self, now: float) -> dict[str, list[int]]:
        """The batches to ask for now, by the id of their node; they count as asked for."""
        found: dict[str, list[int]] = {}
        for job in self._jobs.values():
            if job.batches and not job.pending and not job.spec.gang and not self._order.capped(job):
                for batch in self._stuck(job, now):
                    batch.asked_s = now
                    found.setdefault(batch.node, []).append(batch.number)
        return found

    def _stuck(self, job: JobRow, now: float) -> Iterator[BatchRow]:
        """Those of a job that are stuck, the longest first, until there are tasks for all slots that are free."""
        nodes = self._index.idle(job.spec.needs, now, self._relations.leaning(job, now).apart)
        idle = sum(node.slots_free // job.spec.needs.cpus for node in nodes)
        for batch in sorted(job.batches.values(), key=lambda batch: batch.heard_s):
            waited_s = now - batch.heard_s
            if idle <= 0 or waited_s < STUCK_S:
                return
            movable = len(batch.left) - (batch.started_s is not None)
            if movable > 0 and now - batch.asked_s >= ASK_AGAIN_S and waited_s >= _moving_s(batch, nodes):
                idle -= movable
                yield batch


def _moving_s(batch: BatchRow, nodes: Sequence[Candidate]) -> float:
    """How long it takes to bring one task's inputs to the node that has them soonest; of the task that reads most."""
    job = batch.job
    own = (job.reads[index] for index in batch.left if index in job.reads)
    read = max(own, key=lambda inputs: inputs.size_bytes, default=job.spec.inputs)
    return min(moving_s(node, read) for node in nodes) if read is not None else 0.0
