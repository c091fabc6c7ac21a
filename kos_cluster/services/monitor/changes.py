"""What lies between two snapshots, told as events: who joined, was suspected, died, was elected; what was lost.

Rules: pure. What happened and was undone between the two is not seen. A first snapshot has no events but the nodes and
the coordinator that it finds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import msgspec

from kos_cluster.core.records import MemberState
from kos_cluster.services.monitor.snapshot import CANCELLED, DONE, FAILED, GONE, RUNNING, JobSight, NodeSight, Snapshot


class Kind(enum.StrEnum):
    """What kind of event it is."""

    JOINED = "joined"
    SUSPECTED = "suspected"
    BACK = "back"  # it was suspected or dead, and is alive
    DEAD = "dead"
    LEFT = "left"
    RESTARTED = "restarted"
    ELECTED = "elected"
    DRAINED = "drained"
    WORKS_AGAIN = "works-again"
    RERUN = "rerun"  # tasks were lost with a worker or a node, and run again
    STARTED = "started"  # a job
    ENDED = "ended"
    FAILED = "failed"
    UNREACHABLE = "unreachable"  # no node answers the one who looks
    REACHED = "reached"


class Event(msgspec.Struct, frozen=True):
    """Something that happened. `subject` is a node's name or a job's id; `number` grows by one with each event."""

    number: int
    at_s: float
    kind: Kind
    subject: str
    text: str


Happening = tuple[Kind, str, str]  # kind, subject, text


def happenings(before: Snapshot | None, after: Snapshot) -> Iterator[Happening]:
    """What happened between two snapshots, nodes first."""
    yield from _of_nodes(before.nodes if before else (), after.nodes)
    yield from _of_coordinator(before.nodes if before else (), after.nodes)
    if before is not None:
        known = {job.id: job for job in before.jobs}
        for job in after.jobs:
            yield from _of_job(known.get(job.id), job)


def _of_nodes(before: tuple[NodeSight, ...], after: tuple[NodeSight, ...]) -> Iterator[Happening]:
    known = {node.id: node for node in before}
    for node in after:
        old = known.pop(node.id, None)
        if old is None:
            if node.up:
                yield Kind.JOINED, node.name, f"{node.name} joined with {_count(node.slots, 'slot')}."
            continue
        yield from _of_node(old, node)
    for node in known.values():
        yield Kind.LEFT, node.name, f"{node.name} has left the cluster."


def _of_node(old: NodeSight, node: NodeSight) -> Iterator[Happening]:
    name = node.name
    if node.state is not old.state:
        if node.state is MemberState.SUSPECT:
            yield Kind.SUSPECTED, name, f"{name} does not answer, and is suspected."
        elif node.state is MemberState.DEAD:
            yield Kind.DEAD, name, f"{name} is dead; what it was given runs elsewhere."
        elif node.started_ns == old.started_ns:
            yield Kind.BACK, name, f"{name} answers again."
    if node.up and node.started_ns != old.started_ns:
        yield Kind.RESTARTED, name, f"{name} was started anew."
    if node.drained != old.drained:
        if node.drained:
            yield Kind.DRAINED, name, f"{name} is drained: it is given no more work."
        else:
            yield Kind.WORKS_AGAIN, name, f"{name} is given work again."


def _of_coordinator(before: tuple[NodeSight, ...], after: tuple[NodeSight, ...]) -> Iterator[Happening]:
    old = next((node.id for node in before if node.coordinator), None)
    new = next((node for node in after if node.coordinator), None)
    if new is not None and new.id != old:
        yield Kind.ELECTED, new.name, f"{new.name} coordinates."


def _of_job(old: JobSight | None, job: JobSight) -> Iterator[Happening]:
    called = f"{job.name} ({job.id})"
    if old is None:
        yield Kind.STARTED, job.id, f"{called} started{f' by {job.user}' if job.user else ''}."
    again = job.reruns - (old.reruns if old else 0)
    if again > 0:
        yield (
            Kind.RERUN,
            job.id,
            f"{_count(again, 'task')} of {called} {'was' if again == 1 else 'were'} lost and rerun.",
        )
    if job.state != (old.state if old else RUNNING):
        if job.state == DONE:
            yield Kind.ENDED, job.id, f"{called} is done: {_count(job.done, 'task')}."
        elif job.state == FAILED:
            yield Kind.FAILED, job.id, f"{called} ended with {job.failed:,} of {_count(job.total, 'task')} not done."
        elif job.state in (CANCELLED, GONE):
            why = "was cancelled" if job.state == CANCELLED else "has gone with its owner"
            yield Kind.ENDED, job.id, f"{called} {why}."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
