"""What would become of a task: where it would go, why it waits, and whether it can run at all.

Rules: it is judged from what this process has heard, and nothing is sent. Asked in any thread, answered in the mesh
thread, where the owner's table is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from kos_cluster.core.placement import Leaning, Placement
from kos_cluster.core.records import Member, Needs

if TYPE_CHECKING:
    from kos_cluster.core.ownership import Ownership
    from kos_cluster.tasks.attachment import Attachment
    from kos_cluster.tasks.job import Job
    from kos_cluster.tasks.mesh import Mesh


class Placing:
    """Part of `owner`, a connection, with its table, its links and the table's clock."""

    def __init__(self, owner: Mesh, core: Ownership, attachment: Attachment, now: Callable[[], float]) -> None:
        self._owner = owner
        self._core = core
        self._attachment = attachment
        self._now = now

    def standing(self, job_id: str) -> tuple[Needs, tuple[str, ...]] | None:
        """What a job of this process needs, and why its waiting tasks wait, or where the next would go."""
        return self._owner.ask(lambda: self._core.standing(job_id, self._now()))

    def why_never(self, job: Job) -> tuple[str, ...]:
        """Each node's reason why it can never run this job's tasks; empty when one can.

        Raises NoSuchNodeError or UnreachableError when the node that the job names is not there or dead.
        """
        return self._owner.ask(lambda: self._why_never(job))

    def would_go(self, needs: Needs) -> tuple[Placement, dict[str, str]]:
        """Where a task would go now, and what would come of it on each node, by name."""
        return self._owner.ask(lambda: self._core.would_go(needs, self._now()))

    def leaning(self, job: Job) -> Leaning:
        """What speaks for and against nodes for a job of this process now."""
        return self._owner.ask(lambda: self._core.leaning(job.id, self._now()))

    def place(self, needs: Needs) -> tuple[Member | None, tuple[str, ...]]:
        """The node for a task that another owner is to submit there, or why there is none now."""
        placed = self._owner.ask(lambda: self._core.place(needs, self._now()))
        return self._attachment.members.get(placed.node or ""), placed.reasons

    def unknown_jobs(self, names: Collection[str]) -> list[str]:
        """Those of these ids or names that no job is called by, as far as is known."""
        return self._owner.ask(lambda: self._core.unknown_jobs(names))

    def _why_never(self, job: Job) -> tuple[str, ...]:
        if job.needs.on and not self._attachment.linked(job.needs.on):
            return ()  # it is alive, and will be linked in a moment
        return self._core.impossible(job.needs)
