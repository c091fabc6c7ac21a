"""The control wire format: what daemons and clients say to each other over CURVE.

Theory of operation. A message is a header and perhaps an opaque payload, which a daemon never unpickles. The first
frame is `K`, the wire version, the header's length as four bytes (little-endian), then the header: one MessagePack
struct tagged with its kind. A payload of less than `INLINE_BYTES` follows in the same frame, as each frame costs its
own encryption and its own turn of ZeroMQ; a larger one is a second frame, which is sent without being copied.
What is said of links, tasks and listings stands here, other concerns have modules of their own; the unions name all.

Versions. From one version to the next, kinds and fields are only added, each new field with a default that means "the
sender is older and did not say", and a receiver ignores fields that it does not know. So neighbours understand each
other, which is what an upgrade node by node needs; a kind that is not known yet is dropped and counted. Who joins must
speak the cluster's version.

Delivery. ZeroMQ may lose what is in flight when a connection breaks, so nothing here relies on a message arriving:
an owner repeats what it holds to be outstanding in `OwnerBeat`; the node answers what it does not know, stops what the
owner does not name, and sends again what was not acknowledged by `Release`. Applying any message twice changes nothing.

Limits: `MESSAGE_LIMIT_BYTES` for a message with its payload; payloads of `sizes.BULK_BYTES` and more travel over TLS
streams.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kos_cluster.core.records import Attempt, Cause, JobSummary, Load, Member, Needs, Runs, Versions
from kos_cluster.errors import ProtocolError
from kos_cluster.net.administration import (
    DrainNode,
    LeaveCluster,
    MintToken,
    RemoveNode,
    Renew,
    RenewalKept,
    RenewNode,
    Status,
    StopNode,
)
from kos_cluster.net.blocks import DropBlocks, KeepBlock, MemoryAsked
from kos_cluster.net.controlplane import Consensus, Finding, Heartbeat, LoadNews, Propose, Proposed
from kos_cluster.net.detached import (
    CancelDetached,
    Detach,
    DetachedJobOf,
    DetachedJobs,
    DetachedOutput,
    DetachedResults,
)
from kos_cluster.net.engines import CertifyEngine
from kos_cluster.net.gangs import GangWanted, GangWithdrawn, RankReady, RankTable, TwoPhase
from kos_cluster.net.kernels import KernelOf, StartKernel, StopKernel
from kos_cluster.net.locks import LockAsked, LockReleased, LockRenewed, LocksAsked, LockWanted
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.net.standing import StandingAsked
from kos_cluster.net.streams import Item, ItemsWanted
from kos_cluster.net.takingback import Returned, TakeBack

WIRE_VERSION = 2
OLDEST_WIRE_VERSION = 1  # that is understood, so that nodes can be upgraded one by one
MESSAGE_LIMIT_BYTES = 16 << 20  # of one message on a control socket
INLINE_BYTES = 64 << 10  # smaller payloads stand in the header's frame
FRAMES_LIMIT = 2  # of one message
_MAGIC = bytes((ord("K"), WIRE_VERSION))
_PREFIX_BYTES = 6  # what stands before the header


class Hello(msgspec.Struct, frozen=True, tag="HELLO"):
    """A peer's first message on a link. `instance` is random per process; an owner is (identity, instance).

    `pid` with `boot_id` and `pid_namespace` lets a node on the same machine watch the client's process.
    `program`: what that is, in words for others.
    """

    instance: str
    versions: Versions
    pid: int
    boot_id: str
    pid_namespace: int
    program: str = ""


class Welcome(msgspec.Struct, frozen=True, tag="WELCOME"):
    """A node's answer: who it is, what it has installed (top-level package -> version), how busy it is now."""

    member: Member
    packages: dict[str, str]
    load: Load | None = None


class HelloWanted(msgspec.Struct, frozen=True, tag="HELLO_WANTED"):
    """A node to a peer that it does not know (any more): say hello again."""


class Expelled(msgspec.Struct, frozen=True, tag="EXPELLED"):
    """A node to a peer on an open link whose certificate does not hold any more: present one, or be gone."""


class SyncRequest(msgspec.Struct, frozen=True, tag="SYNC_REQUEST"):
    """Ask for the membership view if it differs from version `view`."""

    view: int


class SyncData(msgspec.Struct, frozen=True, tag="SYNC_DATA"):
    """The membership view. `members` is None when the receiver's version is current; loads always come, with ages."""

    view: int
    members: list[Member] | None
    loads: dict[str, tuple[Load, float]]  # node id -> (load, age in seconds)
    coordinator: str = ""  # the id of the node that coordinates, as far as the sender knows
    term: int = 0  # of that coordinator; of several answers the one of the latest term holds
    voters: list[str] = []  # the ids of the nodes that decide
    trouble: str = ""  # why the sender takes no part in the decisions, if it does not


class Exec(msgspec.Struct, frozen=True, omit_defaults=True, tag="EXEC"):
    """Run tasks of one job. Payload: MessagePack list of pickled (args, kwargs), in the order of `runs`.

    `parts` are the hashes (fn, env, and what they name, large arguments) that the node must hold before it starts; it
    answers `Missing` for those it lacks. `history` gives earlier attempts' stories of these tasks for `kos story`.
    """

    batch: int
    job: str
    job_name: str
    runs: Runs
    attempt: int
    fn: str
    env: str
    parts: list[str]
    needs: Needs
    large: dict[int, str] = {}
    fresh: bool = False
    timeout_s: float | None = None
    seed: int | None = None
    parent: str = ""  # "OWNER/JOB.INDEX#ATTEMPT" of the task that submits it, or empty
    history: dict[int, list[Attempt]] = {}
    inputs: dict[int, tuple[str, ...]] = {}  # the tasks whose results a task takes, for its story
    stream: tuple[int, int] | None = None  # its one task yields: so many items are here, those until there are wanted
    gang: bool = False  # it is a rank of a gang whose slots are reserved in the name of its job
    priority: int = 0  # of its job among those of its user
    stays: dict[int, str] | None = None  # large results stay there, those of these tasks as blocks of these names
    chosen: str = ""  # what spoke for the node, for `kos why`


class Missing(msgspec.Struct, frozen=True, tag="MISSING"):
    """The node lacks these parts for a batch that it holds back until they come."""

    batch: int
    hashes: list[str]


class PutPart(msgspec.Struct, frozen=True, tag="PART"):
    """A part under `BULK_BYTES`; the payload is its bytes. Larger ones are put over the bulk port."""

    hash: str


class Refused(msgspec.Struct, frozen=True, tag="REFUSED"):
    """The node will not take the batch (queue full, stopping). The owner places it elsewhere or later."""

    batch: int
    reason: str
    stopping: bool = False  # it will take nothing more in this life


class Started(msgspec.Struct, frozen=True, tag="STARTED"):
    """A batch is with a worker. Sent only when it has been for `STARTED_AFTER_S`, so small tasks cost no message."""

    batches: list[int]


class Result(msgspec.Struct, frozen=True, omit_defaults=True, tag="RESULT"):
    """Outcomes of some tasks of a batch; see `net.local.Done`. Repeated until the owner releases `serial`."""

    batch: int
    serial: int  # of this result among all of this node to this owner
    runs: Runs
    failed: list[int]
    large: dict[int, tuple[str, int]]
    elapsed_s: float
    last: bool
    items: int = 0  # that its task has yielded, if it yields
    blocks: list[str] = []  # that these outcomes refer to, and the owner keeps if they are at this node
    stayed: dict[int, int] = {}  # the bytes of those that stay here as blocks, which their pickles name
    lost: dict[int, list[str]] = {}  # of tasks that could not begin: the blocks that they read and no node has


class Lost(msgspec.Struct, frozen=True, tag="LOST"):
    """The rest of a batch brings no outcome. `ran` may have run, `untouched` did not. Repeated as Result is."""

    batch: int
    serial: int
    ran: Runs
    untouched: Runs
    cause: Cause
    detail: str
    log_tail: str


class Release(msgspec.Struct, frozen=True, tag="RELEASE"):
    """The owner has these results and losses (by serial), and has fetched or dropped their large outcomes."""

    serials: list[int]


class Output(msgspec.Struct, frozen=True, tag="OUTPUT"):
    """Bytes that a task wrote: the payload. `stream` is "stdout" or "stderr"."""

    batch: int
    job: str
    index: int
    attempt: int
    stream: str


class Displays(msgspec.Struct, frozen=True, tag="DISPLAY"):
    """A rich display that a task made; the payload is JSON."""

    batch: int
    job: str
    index: int
    attempt: int


class Cancel(msgspec.Struct, frozen=True, tag="CANCEL"):
    """Stop these batches of the sender: queued ones are dropped, running ones interrupted, then killed."""

    batches: list[int]


class CancelWanted(msgspec.Struct, frozen=True, tag="CANCEL_WANTED"):
    """A node tells the owner that somebody entitled asked to cancel its job (or one task of it)."""

    job: str
    index: int | None
    by: str


class OwnerBeat(msgspec.Struct, frozen=True, tag="OWNER_BEAT"):
    """An owner to each node that holds work of it, each second: what it holds to be outstanding there, and its jobs."""

    view: int
    outstanding: list[int]
    jobs: list[JobSummary]


class NodeBeat(msgspec.Struct, frozen=True, tag="NODE_BEAT"):
    """The answer: its load, which of the batches it does not know (send them again), what links to it carry, and
    whether others' work waits there.
    """

    load: Load
    unknown: list[int]
    links: dict[str, float] = {}  # bytes a second, by the id of the sending node
    others_wait: bool = False


class Waits(msgspec.Struct, frozen=True, tag="WAITS"):
    """From code inside a task: it waits for other tasks (its slot may be lent), or no longer does."""

    task: str
    attempt: int
    waiting: bool


class AttemptEnded(msgspec.Struct, frozen=True, tag="ATTEMPT_ENDED"):
    """An owner to all nodes: these attempts bring no outcome, so whatever they had submitted themselves must stop."""

    job: str
    runs: Runs
    attempt: int


class OwnerEnded(msgspec.Struct, frozen=True, tag="OWNER_ENDED"):
    """A node to all nodes: this client's process has ended on my machine."""

    identity: str
    instance: str


class Goodbye(msgspec.Struct, frozen=True, tag="GOODBYE"):
    """The owner ends cleanly: its work may be dropped at once."""


# ---- requests and replies


class Nodes(msgspec.Struct, frozen=True, tag=True):
    """The members with their loads and ages. Reply: SyncData."""


class Jobs(msgspec.Struct, frozen=True, tag=True):
    """Jobs known to this node. Reply: list[JobSummary]."""


class RememberedJobs(msgspec.Struct, frozen=True, tag=True):
    """The ids of jobs of whose tasks this node can tell, whoever had them; the newest last. Reply: list[str]."""


class Logs(msgspec.Struct, frozen=True, tag=True):
    """The last output kept here of a job or task. Reply: list[tuple[str task, bytes]]."""

    id: str


class Stories(msgspec.Struct, frozen=True, tag=True):
    """What this node knows of a job's or task's attempts. Reply: list[Story]."""

    id: str


class CancelWork(msgspec.Struct, frozen=True, tag=True):
    """Cancel a job or task wherever it is known. Reply: bool, whether it was known here."""

    id: str


Asked = (
    Nodes
    | Jobs
    | RememberedJobs
    | Logs
    | Stories
    | CancelWork
    | MintToken
    | StopNode
    | LeaveCluster
    | RemoveNode
    | DrainNode
    | Renew
    | RenewalKept
    | RenewNode
    | LockWanted
    | LockAsked
    | LocksAsked
    | LockRenewed
    | LockReleased
    | RegistersAsked
    | RegisterWritten
    | Status
    | Detach
    | DetachedJobs
    | DetachedJobOf
    | DetachedResults
    | DetachedOutput
    | CancelDetached
    | StandingAsked
    | StartKernel
    | KernelOf
    | StopKernel
    | KeepBlock
    | DropBlocks
    | MemoryAsked
    | GangWanted
    | GangWithdrawn
    | CertifyEngine
)


class Request(msgspec.Struct, frozen=True, tag="REQUEST"):
    id: int
    ask: Asked


class Reply(msgspec.Struct, frozen=True, tag="REPLY"):
    """`value` is MessagePack as the request's docstring says; `error` is (class of kos_cluster.errors, text, hint)."""

    id: int
    value: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: tuple[str, str, str] | None = None


Message = (
    Hello
    | Welcome
    | HelloWanted
    | Expelled
    | Heartbeat
    | LoadNews
    | Finding
    | Consensus
    | Propose
    | Proposed
    | TwoPhase
    | SyncRequest
    | SyncData
    | Exec
    | Missing
    | PutPart
    | Refused
    | Started
    | Result
    | Lost
    | Returned
    | Release
    | Item
    | ItemsWanted
    | Output
    | Displays
    | RankReady
    | RankTable
    | Cancel
    | TakeBack
    | CancelWanted
    | OwnerBeat
    | NodeBeat
    | Waits
    | AttemptEnded
    | OwnerEnded
    | Goodbye
    | Request
    | Reply
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Message)


def encode(message: Message, inline: bytes | bytearray | memoryview = b"") -> bytes:
    """The first frame of a message, with its payload when that is small."""
    header = _encoder.encode(message)
    return b"".join((_MAGIC, len(header).to_bytes(4, "little"), header, inline))


def decode(frame: bytes | memoryview) -> tuple[Message, memoryview]:
    """The message of a first frame, and the payload that stands in it (empty when there is none).

    Raises ProtocolError for anything that is not one.
    """
    view = memoryview(frame)
    if len(view) < _PREFIX_BYTES or view[0] != _MAGIC[0]:
        raise ProtocolError("A frame arrived that is not KOS's wire format.")
    if not OLDEST_WIRE_VERSION <= view[1] <= WIRE_VERSION + 1:
        raise ProtocolError(
            f"A peer speaks wire version {view[1]}, this side {OLDEST_WIRE_VERSION} to {WIRE_VERSION + 1}."
        )
    end = _PREFIX_BYTES + int.from_bytes(view[2:_PREFIX_BYTES], "little")
    if end > len(view):
        raise ProtocolError("A truncated message arrived.")
    try:
        message: Message = _decoder.decode(view[_PREFIX_BYTES:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"A malformed message arrived: {error}.") from error
    return message, view[end:]
