"""Detached jobs, decided: what a job is as its record says it, and which node is to drive it.

Rules. A node that drives, or is asked to, is alive and not drained. A node that keeps the job's work comes before one
that must fetch it, one that drives fewer jobs before one that drives more; ids decide the rest, so all nodes that
choose from the same view choose alike. The node that has just failed to drive it is chosen only when there is no other.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable

import msgspec

from kos_cluster.core.records import Member
from kos_cluster.errors import StateError

DRIVES_LIMIT = 16  # jobs that one node drives at once; further ones wait
EPOCHS_LIMIT = 16  # after so many drivers a job whose driver ends by itself has failed
_FORMAT = 1


class Kind(enum.StrEnum):
    """What a job's tasks are."""

    MAP = "map"
    COMMAND = "command"
    SCRIPT = "script"


class Work(msgspec.Struct, frozen=True):
    """What the cluster's record says of a job, for those who have not its work itself, which is the part `bundle`."""

    kind: Kind
    count: int  # of tasks
    bundle: str  # hex SHA-256
    format: int = _FORMAT


class Node(msgspec.Struct, frozen=True):
    """A node that may drive."""

    id: str
    keeps: bool  # the job's work lies on its disk
    drives: int  # jobs, so far


def choose_driver(nodes: Iterable[Node], avoid: str = "") -> str | None:
    """The id of the node that is to drive a job; None when no node can take one more."""
    free = [node for node in nodes if node.drives < DRIVES_LIMIT]
    best = min(free, key=lambda n: (n.id == avoid, not n.keeps, n.drives, n.id), default=None)
    return best.id if best is not None else None


def holders_of(hash_: str, members: Iterable[Member], first: Member | None = None) -> list[Member]:
    """Who should keep a part, best first, spread by its hash (weighted rendezvous hashing with equal weights).

    Those on another machine than the first come before those on the same. `first` keeps it in any case.
    """
    ranked = sorted(members, key=lambda m: hashlib.sha256(f"{hash_}/{m.id}".encode()).digest())
    head = first or next(iter(ranked), None)
    if head is None:
        return []
    others = [member for member in ranked if member.id != head.id]
    return [head, *sorted(others, key=lambda m: m.boot_id == head.boot_id)]


def encode(work: Work) -> bytes:
    """As the record keeps it."""
    return msgspec.msgpack.encode(work)


def decode(spec: bytes) -> Work:
    """Raises StateError for what is none, or of a later version."""
    try:
        work = msgspec.msgpack.decode(spec, type=Work)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        work = None
    if work is None or work.format != _FORMAT:
        raise StateError(
            "A detached job's record cannot be read by this version of KOS.",
            "Install the version of kos-cluster that the job was submitted with.",
        )
    return work
