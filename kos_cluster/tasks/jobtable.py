"""The jobs of one connection: those that have work, and those that are over and can still be told of.

Theory of operation. A job is active from its first task that is not final until all are, and again when tasks are
added, or one runs once more. While a job is active, the task that submitted it, if any, lends its slot, and progress is
shown. A job that is closed and not active is over: it keeps its story, and nothing that is large.

Rules: what decides is `core.ownership`; here is what its jobs need beside it. A job whose results may have to be made
again is not over. Used in the mesh thread, but for what asks.

Limits: the stories of `JOBS_KEPT` jobs that are over.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import msgspec

from kos_cluster.core.records import JobSummary, Story
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.output import PROGRESS_AFTER_S, tell
from kos_cluster.tasks.owning import Elsewhere

if TYPE_CHECKING:
    from kos_cluster.core.ownership import Ownership
    from kos_cluster.tasks.mesh import Mesh
    from kos_cluster.tasks.outgoing import Outgoing
    from kos_cluster.tasks.slotlending import SlotLending

JOBS_KEPT = 256  # finished jobs whose stories can still be told


class JobTable:
    """Part of `owner`, a connection, with what decides, what it sends, and the slots that its parents lend."""

    def __init__(self, owner: Mesh, core: Ownership, outgoing: Outgoing, lending: SlotLending) -> None:
        self.by_id: OrderedDict[str, Job] = OrderedDict()  # changed here alone
        self._owner = owner
        self._core = core
        self._outgoing = outgoing
        self._lending = lending
        self._active: set[str] = set()  # jobs with tasks that are not final
        self.elsewhere: list[Elsewhere] = []  # what this process's jobs that are not the mesh's run on

    # ---- for any thread

    def summary(self, job: Job) -> JobSummary | None:
        """Counts by state; None once the job has been forgotten."""
        return self._owner.ask(lambda: self._core.summary(job.id) if job.id in self.by_id else None)

    def summaries(self) -> list[JobSummary]:
        return self._owner.ask(self.told)

    def states(self, job: str) -> bytes:
        """A byte a task of a job of this process (`core.jobrows.STATES`); empty for any other."""
        return self._owner.ask(lambda: self._core.states(job)) or b"".join(e.states(job) for e in list(self.elsewhere))

    def stories(self, job: str, indices: Collection[int]) -> list[Story]:
        """The stories of these tasks of a job of this process."""
        told = self._owner.ask(
            lambda: self.by_id[job].told(self._core.stories(job, indices)) if job in self.by_id else []
        )
        return told or [story for each in list(self.elsewhere) for story in each.stories(job, indices)]

    # ---- in the mesh thread

    def told(self) -> list[JobSummary]:
        """What nodes, and people, are told of all jobs."""
        held = self._owner.holding.told, self._owner.remaking.told
        jobs = self._core.summaries()
        own = [msgspec.structs.replace(job, held=tuple(h for told in held for h in told(job.job))) for job in jobs]
        return own + [job for each in list(self.elsewhere) for job in each.summaries()]

    def cancel_elsewhere(self, job: str, index: int | None) -> None:
        """Somebody wants a job cancelled that is not the mesh's."""
        for each in list(self.elsewhere):
            each.cancel_wanted(job, index)

    def open(self, job: Job) -> None:
        """Make a job known, before its first task."""
        self.by_id[job.id] = job
        self._owner.blocks.used(job.spec.fn)

    def begin(self, job_id: str) -> None:
        """A job has tasks that are not final."""
        if job_id not in self._active:
            job = self.by_id[job_id]
            job.since_s = time.monotonic()
            self._active.add(job_id)
            self._lending.lend(job.parent, True)

    def idle(self, job_id: str) -> None:
        """All tasks so far are final."""
        if job_id not in self._active:
            return
        self._active.discard(job_id)
        job = self.by_id[job_id]
        if job.progress_shown:
            job.progress_shown = False
            tell(job.sink.finished, self._core.summary(job_id))
        if job.parent and not any(self.by_id[other].parent == job.parent for other in self._active):
            self._lending.lend(job.parent, False)
        if job.closed:
            self._retire(job)

    def close(self, job: Job) -> None:
        """No more tasks will come; or, of a job that is closed, its results need not be made again any more."""
        job.closed = True
        if job.id not in self._active:
            self._retire(job)

    def show_progress(self, now: float, waits_on: Callable[[JobSummary], str]) -> None:
        """Of what has run for a while; `waits_on` says what it waits for now."""
        for job_id in self._active:
            job = self.by_id[job_id]
            if now - job.since_s >= PROGRESS_AFTER_S:
                job.progress_shown = True
                summary = self._core.summary(job_id)
                tell(job.sink.progress, summary, waits_on(summary))

    def _retire(self, job: Job) -> None:
        """A job that is over for good keeps its story for a while, and nothing that is large."""
        if self._owner.remaking.needs(job.id):
            return
        self._outgoing.forget(job)
        self._owner.blocks.unused(job.spec.fn)
        job.lighten()
        self.by_id.move_to_end(job.id)
        over = [old for old in self.by_id.values() if old.lightened and old.id not in self._active]
        for old in over[: max(0, len(over) - JOBS_KEPT)]:
            del self.by_id[old.id]
            self._core.forget(old.id)
