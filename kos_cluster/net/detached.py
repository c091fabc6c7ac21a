"""What is asked about detached jobs, and answered, on the wire (see `wire`).

Rules: any node answers, from what the cluster has agreed on. Only output is asked of the node that drives the job.
"""

from __future__ import annotations

import msgspec


class Detach(msgspec.Struct, frozen=True, tag=True):
    """Drive this job, whose work `holders` keep as the part `bundle`, without its submitter. Reply: bool."""

    id: str
    name: str
    spec: bytes  # a `core.driving.Work`
    bundle: str
    holders: tuple[str, ...]


class DetachedJobs(msgspec.Struct, frozen=True, tag=True):
    """All detached jobs. Reply: list[DetachedJob]."""


class DetachedJobOf(msgspec.Struct, frozen=True, tag=True):
    """One detached job. Reply: DetachedJob. NoSuchTaskError for an id that the cluster does not know."""

    id: str


class DetachedResults(msgspec.Struct, frozen=True, tag=True):
    """The results of a detached job so far. Reply: list[TaskResult]."""

    id: str


class DetachedOutput(msgspec.Struct, frozen=True, tag=True):
    """What a job's tasks have written from `offset` on, from the node that drives it. Reply: OutputSoFar."""

    id: str
    epoch: int
    offset: int


class CancelDetached(msgspec.Struct, frozen=True, tag=True):
    """Cancel a detached job. Reply: bool, whether there is one of this id."""

    id: str


class DetachedJob(msgspec.Struct, frozen=True):
    """A detached job as the cluster's state has it. Times are Unix seconds."""

    id: str
    name: str
    user: str
    state: str  # a `core.replicated.jobs.JobState`
    kind: str  # a `core.driving.Kind`
    total: int
    done: int  # tasks with a result, those that failed included
    failed: int
    submitted_s: float
    driver: str = ""  # the id of the node that drives it, or did last
    driver_name: str = ""
    epoch: int = 0
    exit_code: int | None = None
    tail: bytes = b""
    ended_s: float | None = None
    ended_by: str = ""


class OutputSoFar(msgspec.Struct, frozen=True):
    """`data` begins at `start`, which is later than what was asked for when so much is no longer kept.

    `known` is false at a node that does not drive the job in this epoch, and has not done so lately.
    """

    known: bool
    start: int = 0
    data: bytes = b""
