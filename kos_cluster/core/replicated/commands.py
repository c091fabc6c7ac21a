"""What the cluster agrees on, command by command, and how a command is written into the log.

Theory of operation. A log entry is one byte, its format, and one MessagePack `Proposal`: when the proposer stamped it,
the session and serial that make a retry harmless, and the command, tagged with its kind.

Rules: every node must apply every entry, and all alike. So an entry of an unknown format or kind, or with a field
that this version does not know, raises `UnknownEntryError`, and the daemon halts; to skip it would be to invent
another history. For the same reason the meaning of a command, its limits included, changes only together with
`FORMAT`, and a new kind comes with a new one (`SINCE`). Entries are written in the format that all nodes of the cluster
read (`formats`). A secret is never in a command, only its SHA-256, since the log lies on many disks.
"""

from __future__ import annotations

import enum
import math

import msgspec

from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import TokenEntry
from kos_cluster.errors import IncompatibleError, LimitError, StateError, UsageError

FIRST_FORMAT = 1
FORMAT = 1  # the newest that this version reads; it reads all from the first on
ENTRY_LIMIT_BYTES = 1 << 20  # of one encoded entry


class UnknownEntryError(StateError):
    """A committed entry that this version of KOS cannot apply. The daemon stops, and loses nothing."""


# ---- values inside commands


class Certificate(msgspec.Struct, frozen=True):
    """A certificate that was issued. `came_with` is the id of the node that joined in the same step, or empty."""

    serial: int
    id: str
    name: str
    role: Role
    not_after_s: float
    curve_public: bytes
    came_with: str = ""


class Wish(msgspec.Struct, frozen=True):
    """An identity that a coordinator is ready to certify for a joiner, should the token allow it."""

    id: str
    serial: int
    not_after_s: float
    curve_public: bytes


class JobEnd(enum.StrEnum):
    """How a driver says that a job ended."""

    DONE = "done"
    FAILED = "failed"


class TaskResult(msgspec.Struct, frozen=True):
    """One task's result: its bytes, or the SHA-256 under which `holders` keep them. Exactly one of the two.

    `exit_code` is that of a program, or tells that the task returned (0) or failed (1).
    """

    task: int
    inline: bytes | None = None
    sha256: str = ""
    holders: tuple[str, ...] = ()
    exit_code: int = 0


class Part(msgspec.Struct, frozen=True):
    """A blob that a job needs, by its SHA-256, and the nodes that keep it."""

    sha256: str
    holders: tuple[str, ...]


# ---- commands


class _Command(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Tagged with the class's name, which is therefore part of the format."""


class Tick(_Command, frozen=True):
    """Nothing but the clock moves on, so that leases end in a cluster where nobody proposes."""


class OpenSession(_Command, frozen=True):
    """Whoever retries needs one. `owner` says whose it is, for the reader of a listing."""

    owner: str


class FoundCluster(_Command, frozen=True):
    """The first command of all: the cluster's name and authority, and what existed before there was a log."""

    cluster: str
    ca_pem: bytes
    certificates: tuple[Certificate, ...]
    tokens: tuple[TokenEntry, ...] = ()


class SetSetting(_Command, frozen=True):
    """`value` None removes it."""

    name: str
    value: str | None


class SwapSetting(_Command, frozen=True):
    """Set it, if its value is `expected` (None: not set). Refused otherwise."""

    name: str
    expected: str | None
    value: str | None


class MintToken(_Command, frozen=True):
    id: str
    secret_sha256: str
    role: Role
    ttl_s: float


class RedeemToken(_Command, frozen=True):
    """Use a token up, reserve the joiner's name, and enter its certificates, all or nothing.

    `joiner` names the request (a hash of it): the same joiner gets the same admission again, whichever coordinator it
    asks, so certificates are to be issued from the reply and not from the command. `role` is wanted, or empty.
    """

    token_id: str
    secret_sha256: str
    joiner: str
    node: Wish
    client: Wish
    node_name: str
    client_name: str
    role: str = ""
    insist: bool = False


class RenewCertificate(_Command, frozen=True):
    """Enter a successor of `old_serial`. Both are valid until the successor is confirmed to be in use."""

    id: str
    old_serial: int
    serial: int
    not_after_s: float
    curve_public: bytes


class ConfirmCertificate(_Command, frozen=True):
    """The holder uses this certificate now: its other ones are denied."""

    id: str
    serial: int


class RemoveIdentity(_Command, frozen=True):
    """Deny all certificates of a node or client, and of clients that came with it; free its name."""

    id: str
    reason: str  # "left", or "removed by NAME"


class SealAuthority(_Command, frozen=True):
    """Replace all sealed copies of the authority's key: node id -> a blob that only this node can open."""

    seals: dict[str, bytes]


class AcquireLock(_Command, frozen=True):
    """`owner` is unique to one acquisition, `holder` tells people who it is.

    Asked again while it waits or holds, it keeps its place or its token, and its time starts anew.
    """

    name: str
    owner: str
    holder: str
    ttl_s: float
    wait_s: float = 0.0


class RenewLock(_Command, frozen=True):
    name: str
    owner: str
    token: int


class ReleaseLock(_Command, frozen=True):
    """Give up a lock, or one's place among those who wait for it."""

    name: str
    owner: str


class BeginTransaction(_Command, frozen=True):
    """`participants`: node id -> what it is to prepare. Undecided after `ttl_s`, it is aborted."""

    participants: dict[str, bytes]
    ttl_s: float


class DecideTransaction(_Command, frozen=True):
    """The first decision stands; the reply tells it."""

    txn: int
    commit: bool


class AckTransaction(_Command, frozen=True):
    """These participants have made the decision durable."""

    txn: int
    participants: tuple[str, ...]


class SubmitJob(_Command, frozen=True):
    id: str
    submitter: str  # the authenticated identity
    user: str
    name: str
    spec: bytes
    parts: tuple[Part, ...] = ()


class AssignDriver(_Command, frozen=True):
    """Let `node` drive the job, if its epoch still is `epoch`; the new epoch is in the reply."""

    id: str
    node: str
    epoch: int


class CommitResults(_Command, frozen=True):
    """The driver of `epoch` has results. The first result of a task stands."""

    id: str
    epoch: int
    results: tuple[TaskResult, ...]


class MovePart(_Command, frozen=True):
    """A part, or a result that is kept on disks, has other holders now."""

    id: str
    part: Part


class FinishJob(_Command, frozen=True):
    id: str
    epoch: int
    end: JobEnd
    exit_code: int
    tail: bytes  # the last of its output


class CancelJob(_Command, frozen=True):
    id: str
    by: str


class DropJob(_Command, frozen=True):
    """Forget a job that has ended."""

    id: str


Command = (
    Tick
    | OpenSession
    | FoundCluster
    | SetSetting
    | SwapSetting
    | MintToken
    | RedeemToken
    | RenewCertificate
    | ConfirmCertificate
    | RemoveIdentity
    | SealAuthority
    | AcquireLock
    | RenewLock
    | ReleaseLock
    | BeginTransaction
    | DecideTransaction
    | AckTransaction
    | SubmitJob
    | AssignDriver
    | CommitResults
    | MovePart
    | FinishJob
    | CancelJob
    | DropJob
)


SINCE: dict[type[Command], int] = {}  # kind -> the format that it came with, if not the first

# ---- entries


class Proposal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One log entry. Serials of a session count up from 1; session 0: none, the command is applied each time.

    `answered_below`: the proposer has the outcomes of all smaller serials, so they need not be kept.
    """

    now_s: float
    command: Command
    session: int = 0
    serial: int = 0
    answered_below: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Proposal)


def check_format(command: Command, format: int) -> None:
    """Raises IncompatibleError when a command cannot be written in this format."""
    if SINCE.get(type(command), FIRST_FORMAT) > format:
        raise IncompatibleError(
            f"A {type(command).__name__} command cannot be read by all nodes yet: some run an older version of KOS.",
            "Install the same version of kos-cluster on all of them ('kos nodes' shows it), then try again.",
        )


def encode(proposal: Proposal, format: int = FIRST_FORMAT) -> bytes:
    """The bytes to propose. Raises UsageError for what cannot be written, LimitError for too large a command,
    IncompatibleError for one that is newer than the format.
    """
    check_format(proposal.command, format)
    if not math.isfinite(proposal.now_s):
        raise UsageError(f"A command cannot be stamped with the time {proposal.now_s}.", "Set this machine's clock.")
    kind = type(proposal.command).__name__
    try:
        entry = bytes((format,)) + _encoder.encode(proposal)
    except (UnicodeEncodeError, OverflowError) as error:
        raise UsageError(f"A {kind} command has a value that cannot be written: {error}.") from None
    if len(entry) > ENTRY_LIMIT_BYTES:
        raise LimitError(
            f"A {kind} command takes {len(entry)} bytes; the limit is {ENTRY_LIMIT_BYTES}.",
            "Put what is large on the nodes' disks.",
        )
    return entry


def decode(entry: bytes) -> Proposal:
    """What an entry says. Raises UnknownEntryError when this version cannot apply it."""
    if not entry or not FIRST_FORMAT <= entry[0] <= FORMAT:
        found = f"of format {entry[0]}" if entry else "empty"
        raise _unknown(f"it is {found}, and this version reads formats up to {FORMAT}")
    try:
        return _decoder.decode(memoryview(entry)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _unknown(str(error)) from None


def _unknown(cause: str) -> UnknownEntryError:
    return UnknownEntryError(
        f"An entry of the cluster's log cannot be applied: {cause}.",
        "Install the version of kos-cluster that the other nodes run, then start this node again; its log is kept.",
    )
