"""What is known of a cluster at one moment.

Rules: values only, frozen. Shares are of 1, sizes are in bytes, times are Unix seconds. A node that is not alive uses
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from kos_cluster.core.records import JobSummary, Load, Member, MemberState
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.services.engines.spec import Record

UP = (MemberState.ALIVE, MemberState.SUSPECT)
RUNNING, DONE, FAILED, CANCELLED, GONE = "running", "done", "failed", "cancelled", "gone"
_OF_DETACHED = {
    JobState.WAITING: RUNNING,
    JobState.DRIVEN: RUNNING,
    JobState.DONE: DONE,
    JobState.FAILED: FAILED,
    JobState.CANCELLED: CANCELLED,
}


class NodeSight(msgspec.Struct, frozen=True):
    """A node as it is seen now. `load_age_s`: how old the figures of its load are."""

    id: str
    name: str
    address: str
    state: MemberState
    coordinator: bool
    voter: bool
    drained: bool
    slots: int
    memory_bytes: int
    started_ns: int
    load: Load
    load_age_s: float

    @property
    def up(self) -> bool:
        return self.state in UP

    @property
    def cpu_share(self) -> float:
        return self.load.cpu_percent / 100

    @property
    def memory_share(self) -> float:
        return self.load.memory_percent / 100

    @property
    def busy_share(self) -> float:
        return min(1.0, self.load.running / self.slots) if self.slots else 0.0

    @property
    def network_bytes_s(self) -> int:
        """What its machine takes in from the network and sends into it, each second."""
        return self.load.received_bytes_s + self.load.sent_bytes_s


class JobSight(msgspec.Struct, frozen=True):
    """A job as it is seen now. `ended_s` is when it was first seen to have ended."""

    id: str
    name: str
    user: str
    state: str  # RUNNING, DONE, FAILED, CANCELLED or GONE
    total: int
    done: int
    failed: int  # and cancelled
    running: int
    since_s: float
    ended_s: float | None = None
    nodes: tuple[str, ...] = ()
    reruns: int = 0
    driver: str = ""  # of a detached job
    own: bool = False  # of the process that looks, which knows each of its tasks

    @property
    def waiting(self) -> int:
        return max(0, self.total - self.done - self.failed - self.running)


class EngineSight(msgspec.Struct, frozen=True):
    """An engine, as its supervisor wrote last."""

    name: str
    kind: str
    state: str
    workers: int
    wanted: int  # workers
    waiting: int  # tasks
    running: int
    held_bytes: int
    node: str  # where its head is
    why: str  # what went wrong last
    dashboard: bool  # whether it has one


class Snapshot(msgspec.Struct, frozen=True):
    """The cluster at `at_s`. Nodes are in the order of their names; those that have left are left out."""

    at_s: float
    cluster: str
    identity: str
    role: str
    nodes: tuple[NodeSight, ...]
    jobs: tuple[JobSight, ...]
    engines: tuple[EngineSight, ...] = ()


class Missed(msgspec.Struct, frozen=True):
    """There was nothing to be known at `at_s`; `trouble` is the sentence that says why."""

    at_s: float
    trouble: str


def node_sights(
    members: Iterable[Member], loads: Mapping[str, tuple[Load, float]], coordinator: str, voters: Iterable[str]
) -> tuple[NodeSight, ...]:
    """The nodes, from what a client has heard."""
    deciding = frozenset(voters)
    standing = [member for member in members if member.state is not MemberState.LEFT]
    return tuple(
        _node_sight(member, *loads.get(member.id, (Load(), 0.0)), coordinator, deciding)
        for member in sorted(standing, key=lambda member: _natural(member.name))
    )


def job_sight(job: JobSummary, own: bool = False) -> JobSight:
    """A job, from its line in a listing."""
    if job.state:
        state = _OF_DETACHED.get(JobState(job.state), RUNNING)
    elif job.done + job.failed < job.total or not job.total:
        state = RUNNING
    else:
        state = DONE if not job.failed else CANCELLED if job.failed == job.cancelled else FAILED
    return JobSight(
        id=job.job,
        name=job.name,
        user=job.user,
        state=state,
        total=job.total,
        done=job.done,
        failed=job.failed,
        running=job.running,
        since_s=job.since_s,
        nodes=job.nodes,
        reruns=job.reruns,
        driver=job.driver,
        own=own,
    )


def engine_sights(engines: Iterable[Record]) -> tuple[EngineSight, ...]:
    """The engines, from their records."""
    return tuple(
        EngineSight(
            name=record.name,
            kind=record.kind,
            state=record.state,
            workers=record.workers,
            wanted=record.wanted,
            waiting=record.waiting,
            running=record.running,
            held_bytes=record.held_bytes,
            node=record.node,
            why=record.why,
            dashboard=record.address.dashboard > 0,
        )
        for record in engines
    )


def _node_sight(member: Member, load: Load, age_s: float, coordinator: str, voters: frozenset[str]) -> NodeSight:
    return NodeSight(
        id=member.id,
        name=member.name,
        address=member.address,
        state=member.state,
        coordinator=member.id == coordinator and member.state in UP,
        voter=member.id in voters,
        drained=member.drained,
        slots=member.slots,
        memory_bytes=member.memory_bytes,
        started_ns=member.started_ns,
        load=load if member.state in UP else Load(),
        load_age_s=age_s,
    )


def _natural(name: str) -> tuple[str, int, str]:
    """A key by which node2 stands before node10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0), name
