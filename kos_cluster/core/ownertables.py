"""What an owner knows of its jobs, batches and nodes, and what it can tell of them.

Rules: nothing is changed here; `core.ownership` does that, which has these tables.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from kos_cluster.core import reasons
from kos_cluster.core.caps import Caps
from kos_cluster.core.dispatchorder import DispatchOrder
from kos_cluster.core.jobrows import STATES, BatchRow, JobRow
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.ownerevents import Dispatch
from kos_cluster.core.placement import PLAIN, Candidate, Leaning, Placement
from kos_cluster.core.records import Attempt, AttemptEnd, JobSummary, Needs, Story, TaskState, attempted, runs_of
from kos_cluster.core.relations import Relations

REFUSED_PAUSE_S = 0.05  # first pause of a node after a refusal; doubles up to
REFUSED_PAUSE_MOST_S = 1.0


@dataclass(slots=True)
class KnownNode:
    """A node as this owner knows it."""

    view: Candidate
    up: bool = True
    batches: set[int] = field(default_factory=set)
    pause_s: float = REFUSED_PAUSE_S


class OwnerTables:
    """The tables of one owner. `rng` decides ties in placement."""

    def __init__(self, rng: random.Random) -> None:
        self._jobs: dict[str, JobRow] = {}
        self._nodes: dict[str, KnownNode] = {}
        self._index = NodeIndex(rng)  # of those that are up
        self._relations = Relations()
        self._batches: dict[int, BatchRow] = {}
        self._caps = Caps()
        self._order = DispatchOrder(self._jobs, self._index, self._relations, self._caps)

    def outstanding(self, node: str) -> list[int]:
        """The batches that this node holds, as far as the owner knows."""
        known = self._nodes.get(node)
        return sorted(known.batches) if known else []

    def dispatch_of(self, batch: int) -> Dispatch | None:
        """What was sent as this batch, to send it again; only the tasks that have no outcome yet."""
        known = self._batches.get(batch)
        if known is None:
            return None
        return Dispatch(batch, known.node, known.job.spec.job, runs_of(sorted(known.left)), known.attempt, known.chosen)

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
            parent=attempted(job.spec.parent)[0],
            reruns=job.reruns,
            cancelled=job.cancelled,
        )

    def may_run_again(self, job_id: str, index: int) -> bool:
        """Whether a task that is done may run again, should its result be lost."""
        return job_id in self._jobs and self._jobs[job_id].may_run_again(index)

    def is_held(self, job_id: str, index: int) -> bool:
        """Whether a task waits for others, and is not sent."""
        return job_id in self._jobs and index in self._jobs[job_id].held

    def tries_left(self, batch: int) -> bool:
        """Whether the tasks of a batch that is with a node may have another attempt."""
        known = self._batches.get(batch)
        return known is not None and known.attempt <= known.job.spec.retries and not known.job.spec.gang

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

    def leaning(self, job_id: str, now: float) -> Leaning:
        """What speaks for and against nodes for a job's tasks now."""
        job = self._jobs.get(job_id)
        return PLAIN if job is None else self._relations.leaning(job, now)

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

    def _name(self, node: str) -> str:
        known = self._nodes.get(node)
        return known.view.name if known else node
