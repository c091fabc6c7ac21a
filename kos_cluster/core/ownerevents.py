"""What the owner's table takes in and gives out: the events and effects of `core.ownership`.

Rules: values only. Indices stand for tasks; payloads and results are kept by the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import AttemptEnd, Cause, Load, Member, Needs, Runs

# ---- events


class JobSpec(msgspec.Struct, frozen=True):
    """What the tasks of a job share."""

    job: str
    name: str
    needs: Needs = Needs()
    retries: int = 3
    single: bool = False  # one task a batch, sent when a slot is free (a time limit, or a fresh worker each)
    max_parallel: int = 0  # batches at nodes at once, so tasks running at once; 0: no cap
    gang: bool = False  # its tasks are ranks: they go where `RanksPlaced` says, and never run a second time
    group: str = ""  # jobs of one group share the cap
    parent: str = ""  # the attempt that submitted it, OWNER/JOB.INDEX#ATTEMPT; empty outside of tasks
    inputs: Inputs | None = None  # what its tasks read
    speculate: bool = False  # tasks that last far longer than the others run a second time elsewhere
    priority: int = 0  # its share of what its owner has, beside the owner's other jobs


class Opened(msgspec.Struct, frozen=True):
    """A new job."""

    spec: JobSpec


class Added(msgspec.Struct, frozen=True):
    """`count` more tasks of a job, numbered on, with payloads of `size_bytes` together.

    Those in `settled` have their results from an earlier owner of the job, and are not run. `held` ones are not sent
    before they are released.
    """

    job: str
    count: int
    size_bytes: int = 0
    settled: Runs = []
    held: bool = False


class Released(msgspec.Struct, frozen=True):
    """Held tasks may be sent; their payloads have grown by `size_bytes` together. `inputs`: what each of them reads."""

    job: str
    runs: Runs
    size_bytes: int = 0
    inputs: Inputs | None = None


class ResultLost(msgspec.Struct, frozen=True):
    """The result of a task that is done is nowhere any more, for this cause: it is to run again."""

    job: str
    index: int
    cause: str


class InputLost(msgspec.Struct, frozen=True):
    """A task of a batch did not begin, as what it reads is lost. It is held until that was made again."""

    batch: int
    index: int
    cause: str


class HeldFailed(msgspec.Struct, frozen=True):
    """A held task will never be sent, since what it waits for has failed."""

    job: str
    index: int


class NodeUp(msgspec.Struct, frozen=True):
    """A node can take work (again). `packages` are installed there; `unreadable` payloads it could not read.

    `unreadable` maps a package whose objects it cannot read to the reason; the key "" stands for every payload.
    """

    member: Member
    packages: frozenset[str] = frozenset()
    unreadable: Mapping[str, str] = msgspec.field(default_factory=dict)


class NodeLoad(msgspec.Struct, frozen=True):
    """Fresh gossip of a node's load; from the node itself, whether work of others than this owner waits there, too."""

    id: str
    load: Load
    others_wait: bool | None = None


class NodeLinks(msgspec.Struct, frozen=True):
    """What a node has measured of links from others to it: bytes a second, by their ids."""

    id: str
    rates: Mapping[str, float]


class NodeDrained(msgspec.Struct, frozen=True):
    """A node is to be given no more work, or may be again. What it has goes on."""

    id: str
    drained: bool


class JobsElsewhere(msgspec.Struct, frozen=True):
    """The ids of the nodes where jobs of other owners are, by the job's id or name."""

    nodes: Mapping[str, frozenset[str]]


class NodeDown(msgspec.Struct, frozen=True):
    """A node is lost; what it held may have run."""

    id: str
    cause: str


class StartedRunning(msgspec.Struct, frozen=True):
    """A batch is with a worker."""

    batch: int


class BatchWaits(msgspec.Struct, frozen=True):
    """The task of a batch waits for its owner to take what it yields, and lends its slots; or it goes on."""

    batch: int
    waiting: bool


class Outcomes(msgspec.Struct, frozen=True):
    """Tasks of a batch that ended by themselves; those in `failed` raised. The parts of a batch come in any order."""

    batch: int
    node: str
    runs: Runs
    failed: frozenset[int]
    elapsed_s: float


class BatchLost(msgspec.Struct, frozen=True):
    """The rest of a batch brings no outcome."""

    batch: int
    ran: Runs
    untouched: Runs
    cause: Cause
    detail: str


class BatchRefused(msgspec.Struct, frozen=True):
    """A node would not take a batch. With `stopping` it takes nothing more until it is up again."""

    batch: int
    reason: str
    stopping: bool = False


class Returned(msgspec.Struct, frozen=True):
    """A node has kept these tasks of a batch from running; the rest of the batch goes on."""

    batch: int
    runs: Runs


class RanksPlaced(msgspec.Struct, frozen=True):
    """Slots are reserved for all ranks of a gang, on these nodes (ids, by rank); or for none, for this reason."""

    job: str
    nodes: tuple[str, ...] = ()
    waits_for: str = ""


class Cancelled(msgspec.Struct, frozen=True):
    """The user cancels a job, or one task of it; with `waiting` only what no node has yet."""

    job: str
    index: int | None = None
    waiting: bool = False


# ---- effects


class Dispatch(msgspec.Struct, frozen=True):
    """Send these tasks to a node. Sending the same batch again is harmless."""

    batch: int
    node: str
    job: str
    runs: Runs
    attempt: int
    chosen: str = ""  # what spoke for the node


class Commit(msgspec.Struct, frozen=True):
    """These outcomes are the tasks' results; the rest of the message that brought them is a duplicate."""

    job: str
    runs: Runs


class GiveUp(msgspec.Struct, frozen=True):
    """These tasks have failed for good without an outcome of their own."""

    job: str
    runs: Runs
    end: AttemptEnd
    node: str
    attempts: int
    detail: str


class Dropped(msgspec.Struct, frozen=True):
    """These tasks are cancelled."""

    job: str
    runs: Runs


class CancelAt(msgspec.Struct, frozen=True):
    """Tell a node to stop these batches."""

    node: str
    batches: list[int]


class TakeBackAt(msgspec.Struct, frozen=True):
    """Ask a node for what has not begun of these batches."""

    node: str
    batches: list[int]


class AttemptOver(msgspec.Struct, frozen=True):
    """An attempt ended without an outcome; what it had submitted itself must stop."""

    job: str
    runs: Runs
    attempt: int


class JobIdle(msgspec.Struct, frozen=True):
    """Every task added so far is final."""

    job: str


Event = (
    Opened
    | Added
    | Released
    | ResultLost
    | InputLost
    | HeldFailed
    | NodeUp
    | NodeLoad
    | NodeLinks
    | NodeDrained
    | JobsElsewhere
    | NodeDown
    | StartedRunning
    | BatchWaits
    | Outcomes
    | BatchLost
    | BatchRefused
    | Returned
    | RanksPlaced
    | Cancelled
)
Effect = Dispatch | Commit | GiveUp | Dropped | CancelAt | TakeBackAt | AttemptOver | JobIdle
