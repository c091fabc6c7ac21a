"""Which tasks an owner has run a second time elsewhere, because they last far longer than the others of their job.

Theory of operation. Backup tasks (J. Dean, S. Ghemawat, "MapReduce", OSDI 2004): what makes a task a straggler is more
often its node than the task. Once a job has no waiting tasks and `DONE_SHARE` of all are done, a task that is alone in
its batch and has run `SLOWER` times as long as the mean is sent once more, under the next attempt, to another node with
slots that nobody uses; the longest first (M. Zaharia et al., "Improving MapReduce Performance in Heterogeneous
Environments", OSDI 2008). The first outcome is the result, and the other attempt is cancelled.

Rules. Only jobs that ask for it. No more than two attempts of a task run at once: a pair. Whatever else ends one of a
pair leaves the task to the other. A second attempt counts among the task's retries: without any left it is not made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from kos_cluster.core.jobrows import BatchRow, JobRow
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.records import Layout
from kos_cluster.core.relations import Relations

SLOWER = 2.0
LEAST_S = 0.5  # below it, running a task again costs more than it saves
DONE_SHARE = 0.5


class Speculation:
    """Looks into the owner's own tables, and keeps the pairs."""

    def __init__(self, jobs: Mapping[str, JobRow], index: NodeIndex, relations: Relations) -> None:
        self._jobs = jobs
        self._index = index
        self._relations = relations
        self._pairs: dict[int, int] = {}  # batch -> the batch of the other attempt

    def wanted(self, now: float) -> Iterator[tuple[BatchRow, str]]:
        """Batches whose task is to run once more, and the node for it; say `paired` before the next is asked for."""
        for job in self._jobs.values():
            if job.spec.speculate and job.batches and not job.waiting and job.done >= DONE_SHARE * len(job.state):
                for batch in self._stragglers(job, now):
                    node = self._idle_node(job, batch, now)
                    if node is None:
                        break
                    yield batch, node

    def paired(self, first: BatchRow, second: BatchRow) -> None:
        """Both run the same task now."""
        self._pairs[first.number], self._pairs[second.number] = second.number, first.number

    def other(self, batch: BatchRow) -> int | None:
        """The batch of the other attempt at this one's task."""
        return self._pairs.get(batch.number)

    def ended(self, batch: BatchRow) -> None:
        """It is over: the other is alone."""
        other = self._pairs.pop(batch.number, None)
        if other is not None:
            del self._pairs[other]

    def _stragglers(self, job: JobRow, now: float) -> list[BatchRow]:
        mean_s = job.durations.mean_s
        if mean_s is None or job.spec.max_parallel > 0:
            return []
        before_s = now - max(LEAST_S, SLOWER * mean_s)
        slow = [b for b in job.batches.values() if len(b.left) == 1 and b.number not in self._pairs and _may_double(b)]
        return sorted((b for b in slow if began_s(b) <= before_s), key=began_s)

    def _idle_node(self, job: JobRow, batch: BatchRow, now: float) -> str | None:
        leaning = self._relations.leaning(job, now)
        leaning = msgspec.structs.replace(leaning, apart={*leaning.apart, batch.node}, layout=Layout.ANY)
        placed = self._index.place(job.spec.needs, now, leaning=leaning, told=False)
        node = self._index.get(placed.node or "")
        return node.id if node is not None and node.slots_free >= job.spec.needs.cpus else None


def _may_double(batch: BatchRow) -> bool:
    """Whether the one task that is left of it has retries left."""
    (index,) = batch.left
    return batch.job.next_attempt(index, batch.attempt) <= batch.job.spec.retries + 1


def began_s(batch: BatchRow) -> float:
    """Since when its task may have been running; never, as long as it is not known to."""
    return max(batch.started_s, batch.heard_s) if batch.started_s is not None else float("inf")
