"""What the owner's table takes in and gives out: the events and effects of `core.ownership`.

Rules: values only. Indices stand for tasks; payloads and results are kept by the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kos_cluster.core.records import AttemptEnd, Cause, Load, Member, Needs, Runs

# ---- events


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the tasks of a job share."""

    job: str
    name: str
    needs: Needs = Needs()
    retries: int = 3
    single: bool = False  # one task a batch (a time limit or a fresh worker each)
    max_parallel: int = 0  # batches at nodes at once, so tasks running at once; 0: no cap
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A new job."""

    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Added:
    """`count` more tasks of a job, numbered on, with payloads of `size_bytes` together."""

    job: str
    count: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeUp:
    """A node can take work (again). `packages` are installed there; `unreadable` payloads it could not read.

    `unreadable` maps a package whose objects it cannot read to the reason; the key "" stands for every payload.
    """

    member: Member
    packages: frozenset[str] = frozenset()
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """Fresh gossip of a node's load."""

    id: str
    load: Load


@dataclass(frozen=True, slots=True)
class NodeDown:
    """A node is lost; what it held may have run."""

    id: str
    cause: str


@dataclass(frozen=True, slots=True)
class StartedRunning:
    """A batch is with a worker."""

    batch: int


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Tasks of a batch that ended by themselves; those in `failed` raised."""

    batch: int
    node: str
    runs: Runs
    failed: frozenset[int]
    elapsed_s: float
    last: bool


@dataclass(frozen=True, slots=True)
class BatchLost:
    """The rest of a batch brings no outcome."""

    batch: int
    ran: Runs
    untouched: Runs
    cause: Cause
    detail: str


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """A node would not take a batch."""

    batch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The user cancels a job, or one task of it."""

    job: str
    index: int | None = None


# ---- effects


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send these tasks to a node. Sending the same batch again is harmless."""

    batch: int
    node: str
    job: str
    runs: Runs
    attempt: int


@dataclass(frozen=True, slots=True)
class Commit:
    """These outcomes are the tasks' results; the rest of the message that brought them is a duplicate."""

    job: str
    runs: Runs


@dataclass(frozen=True, slots=True)
class GiveUp:
    """These tasks have failed for good without an outcome of their own."""

    job: str
    runs: Runs
    end: AttemptEnd
    node: str
    attempts: int
    detail: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """These tasks are cancelled."""

    job: str
    runs: Runs


@dataclass(frozen=True, slots=True)
class CancelAt:
    """Tell a node to stop these batches."""

    node: str
    batches: list[int]


@dataclass(frozen=True, slots=True)
class AttemptOver:
    """An attempt ended without an outcome; what it had submitted itself must stop."""

    job: str
    runs: Runs
    attempt: int


@dataclass(frozen=True, slots=True)
class JobIdle:
    """Every task added so far is final."""

    job: str


Event = Opened | Added | NodeUp | NodeLoad | NodeDown | StartedRunning | Outcomes | BatchLost | BatchRefused | Cancelled
Effect = Dispatch | Commit | GiveUp | Dropped | CancelAt | AttemptOver | JobIdle
