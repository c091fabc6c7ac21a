"""What a node's queue takes in and gives out: the events and effects of `core.queue`.

Rules: values only. A batch is named by its owner and its number there; its tasks and payloads stay with the runtime.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.gang.slots import SlotsDenied, SlotsGranted, SlotsReleased, SlotsWanted, SlotsWithdrawn
from kos_cluster.core.records import Cause

Owner = tuple[str, str]  # (authenticated identity, instance of the client)
Key = tuple[Owner, int]  # an owner's batch


class BatchSpec(msgspec.Struct, frozen=True):
    """What the queue needs to know of a batch."""

    key: Key
    job: str
    env: str  # hash of the environment that its worker must have
    cpus: int = 1
    fresh: bool = False  # its worker serves nothing else
    timeout_s: float | None = None
    memory_bytes: int = 0
    gpus: int = 0
    resources: tuple[tuple[str, int], ...] = ()
    gang: str = ""  # it is a rank, for slots reserved under this key
    priority: int = 0  # among the jobs of its user
    size_bytes: int = 0  # of its payload


# ---- events


class Arrived(msgspec.Struct, frozen=True):
    """A batch came; `held` while parts of it are missing."""

    batch: BatchSpec
    held: bool


class PartsComplete(msgspec.Struct, frozen=True):
    """A held batch may start."""

    key: Key


class WorkerReady(msgspec.Struct, frozen=True):
    """A forked worker has reported."""

    worker: int


class BatchDone(msgspec.Struct, frozen=True):
    """A worker has finished its batch; it is idle again unless it retires."""

    worker: int
    retire: bool


class WorkerExited(msgspec.Struct, frozen=True):
    """A worker's process ended."""

    worker: int
    out_of_memory: bool
    detail: str  # "SIGKILL", "exit code 1"


class CancelBatches(msgspec.Struct, frozen=True):
    """An owner wants its batches stopped."""

    keys: tuple[Key, ...]


class TakeBack(msgspec.Struct, frozen=True):
    """An owner wants to have what has not begun of its batches."""

    keys: tuple[Key, ...]


class OwnerGone(msgspec.Struct, frozen=True):
    """An owner has ended; its work is of no use."""

    owner: Owner


class TaskWaits(msgspec.Struct, frozen=True):
    """The running batch waits for tasks that it submitted, or for who takes what it yields; or goes on."""

    key: Key
    waiting: bool


class OverMemory(msgspec.Struct, frozen=True):
    """A worker holds more memory than its batch declared; `detail` says how much."""

    worker: int
    detail: str


class Pressed(msgspec.Struct, frozen=True):
    """The machine's memory is past the high-water mark, for which `why` is the word, or (empty) no longer is."""

    why: str


class Stopping(msgspec.Struct, frozen=True):
    """The node stops: nothing more is taken, everything is given back."""


# ---- effects


class Fork(msgspec.Struct, frozen=True):
    """Start a worker of this number."""

    worker: int


class Assign(msgspec.Struct, frozen=True):
    """Give a batch to a worker that is ready, with these GPUs to use."""

    worker: int
    key: Key
    gpus: tuple[str, ...] = ()


class Interrupt(msgspec.Struct, frozen=True):
    """Send SIGINT to a worker's process group."""

    worker: int


class Kill(msgspec.Struct, frozen=True):
    """Send SIGKILL to a worker's process group."""

    worker: int


class Retire(msgspec.Struct, frozen=True):
    """Tell an idle worker to end."""

    worker: int


class Refuse(msgspec.Struct, frozen=True):
    """Tell the owner that its batch is not taken."""

    key: Key
    reason: str
    stopping: bool = False  # the node takes nothing more at all


class GiveBack(msgspec.Struct, frozen=True):
    """Tell the owner that its batch, of which nothing has begun, will not be run here."""

    key: Key


class Withhold(msgspec.Struct, frozen=True):
    """Keep a worker from what it has not begun of its batch, and tell the owner that it will not be run here."""

    worker: int
    key: Key


class Lose(msgspec.Struct, frozen=True):
    """Tell the owner that the rest of its batch brings no outcome. `worker` is None when it never had one."""

    key: Key
    worker: int | None
    cause: Cause
    detail: str


Event = (
    Arrived
    | PartsComplete
    | WorkerReady
    | BatchDone
    | WorkerExited
    | CancelBatches
    | TakeBack
    | OwnerGone
    | TaskWaits
    | OverMemory
    | Pressed
    | SlotsWanted
    | SlotsReleased
    | SlotsWithdrawn
    | Stopping
)
Effect = Fork | Assign | Interrupt | Kill | Retire | Refuse | GiveBack | Withhold | Lose | SlotsGranted | SlotsDenied
