"""What a submit finds out of the jobs that its tasks are to be near to or apart from.

Rules: a job of this process is known exactly, and followed. Of the jobs of others the nodes are asked at each submit,
and each time that a gang asks for its slots: what is known of them is as old as that. There must be a job to be near
to, when a user asks for it; a driver goes on when that has ended meanwhile. To be apart from one that is not there is
no mistake, for it may come later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kos_cluster.core.ownerevents import JobsElsewhere
from kos_cluster.core.records import JobSummary, Needs
from kos_cluster.errors import PlacementError

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh


def find_related(jobs: Iterable[JobSummary], mesh: Mesh, needs: Needs, *, driven: bool) -> None:
    """Learn of these where the jobs are that such tasks are to be near to or apart from. Raises PlacementError."""
    own = {job.job for job in mesh.jobs.summaries() if not job.engine}
    ids = {member.name: member.id for member in mesh.members}
    elsewhere = places((job for job in jobs if job.job not in own), ids)
    mesh.feed(JobsElsewhere(elsewhere))
    unknown = mesh.placing.unknown_jobs(needs.near)
    if unknown and not driven:
        raise PlacementError(
            f"No job is called {unknown[0]!r}, so nothing can be near to it.", "Type 'kos ps' for the jobs that run."
        )


def places(jobs: Iterable[JobSummary], ids: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The ids of the nodes where jobs are that are not over, by the job's id and by its name. `ids`: by node name."""
    found: dict[str, frozenset[str]] = {}
    for job in jobs:
        if job.done + job.failed < job.total:
            nodes = frozenset(ids[name] for name in job.nodes if name in ids)
            for called in {job.job, job.name} - {""}:
                found[called] = found.get(called, frozenset()) | nodes
    return found
