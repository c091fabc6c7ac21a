"""The jobs of everybody, as one list: those of this process, what nodes tell of others', and detached ones.

Rules: one line a job; of several that tell of one, what is furthest on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from kos_cluster.core.records import JobSummary
from kos_cluster.net import detached as asks
from kos_cluster.net import wire
from kos_cluster.tasks import detached
from kos_cluster.tasks.asking import REQUEST_TIMEOUT_S

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh


def own(mesh: Mesh) -> list[JobSummary]:
    """The jobs of this process; nobody is asked."""
    return [msgspec.structs.replace(job, user=mesh.credentials.peer.name) for job in mesh.jobs.summaries()]


def everybodys(mesh: Mesh, enough_s: float = REQUEST_TIMEOUT_S) -> list[JobSummary]:
    """All jobs, as all nodes know them that answer within this time."""
    told = mesh.request_all(wire.Jobs(), list[JobSummary], enough_s).values()
    return _listed(mesh, (job for jobs in told for job in jobs), detached.records(mesh, enough_s))


def as_one_node_tells(mesh: Mesh, timeout_s: float) -> list[JobSummary]:
    """All jobs, as any one node knows them. Raises UnreachableError."""
    told = mesh.request(wire.Jobs(), list[JobSummary], timeout_s=timeout_s)
    kept = mesh.request(asks.DetachedJobs(), list[asks.DetachedJob], timeout_s=timeout_s)
    return _listed(mesh, told, kept)


def _listed(mesh: Mesh, told: Iterable[JobSummary], kept: Iterable[asks.DetachedJob]) -> list[JobSummary]:
    """The oldest first."""
    known = {job.job: job for job in own(mesh)}
    for job in told:
        if job.job not in known or job.done + job.failed >= known[job.job].done + known[job.job].failed:
            known[job.job] = job
    for record in kept:
        known[record.id] = detached.summary(record, known.get(record.id))
    return sorted(known.values(), key=lambda job: job.since_s)
