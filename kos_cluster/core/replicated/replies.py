"""What applying a command gives: the reply to whoever proposed it, and what changed for everybody else.

Rules: a reply is kept in the session table, so it is small, and equal on every node. A refusal is a reply: the command
was applied and changed nothing. Changes are for the daemon that applies; they are not kept and not repeated.
"""

from __future__ import annotations

import enum

import msgspec

from kos_cluster.core.replicated.commands import Certificate
from kos_cluster.core.roles import Role
from kos_cluster.errors import KosError


class _Reply(msgspec.Struct, frozen=True, tag=True):
    pass


class Done(_Reply, frozen=True):
    """Applied; there is nothing more to tell."""


class Refusal(_Reply, frozen=True):
    """Refused: the class of `kos_cluster.errors` by name, its sentence and its hint."""

    error: str
    message: str
    hint: str

    @classmethod
    def of(cls, error: KosError) -> Refusal:
        return cls(type(error).__name__, error.message, error.hint)


class SessionOpened(_Reply, frozen=True):
    session: int


class Admission(_Reply, frozen=True):
    """What to issue to a joiner. `node` is None when the token's role runs no node."""

    role: Role
    client: Certificate
    node: Certificate | None


class Denied(_Reply, frozen=True):
    """The serials that are on the deny-list by this command."""

    serials: tuple[int, ...]


class LockGranted(_Reply, frozen=True):
    """`token` is larger than that of any earlier lease of any lock."""

    name: str
    token: int
    until_s: float


class LockQueued(_Reply, frozen=True):
    """In the queue, `place` 1 being the next. `held` says who has the lock."""

    name: str
    place: int
    held: str


class Decision(enum.StrEnum):
    """Where a transaction stands. FORGOTTEN: it ended so long ago that nobody remembers how."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"
    FORGOTTEN = "forgotten"


class TransactionState(_Reply, frozen=True):
    txn: int
    decision: Decision


class JobEpoch(_Reply, frozen=True):
    id: str
    epoch: int


class ResultsCommitted(_Reply, frozen=True):
    """Tasks whose result this command committed, and those that had one already."""

    committed: tuple[int, ...]
    earlier: tuple[int, ...]


Reply = (
    Done
    | Refusal
    | SessionOpened
    | Admission
    | Denied
    | LockGranted
    | LockQueued
    | TransactionState
    | JobEpoch
    | ResultsCommitted
)


# ---- changes


class CertificatesDenied(msgspec.Struct, frozen=True, tag=True):
    """Refuse these serials from now on, and cut their sessions."""

    serials: tuple[int, ...]


class LockPassedOn(msgspec.Struct, frozen=True, tag=True):
    """A waiter got the lock. Tell it."""

    name: str
    owner: str
    token: int


class LeaseEnded(msgspec.Struct, frozen=True, tag=True):
    """A lease ran out, or a waiter's patience (`token` 0)."""

    name: str
    owner: str
    token: int


class TransactionChanged(msgspec.Struct, frozen=True, tag=True):
    txn: int
    decision: Decision


class SettingChanged(msgspec.Struct, frozen=True, tag=True):
    """A setting was set, to what it was perhaps; or removed."""

    name: str


class JobChanged(msgspec.Struct, frozen=True, tag=True):
    """A job's state, driver or results changed; look it up. It may be gone."""

    id: str


class SealsChanged(msgspec.Struct, frozen=True, tag=True):
    """The sealed copies of the authority's key are others now."""


Change = (
    CertificatesDenied | LockPassedOn | LeaseEnded | TransactionChanged | SettingChanged | JobChanged | SealsChanged
)


class Outcome(msgspec.Struct, frozen=True):
    """`repeated`: the command had been applied before, at an earlier index, and this is its reply of then."""

    reply: Reply
    changes: tuple[Change, ...] = ()
    repeated: bool = False
