"""What SWIM machines say to each other: updates about members, and the messages that carry them.

Rules. A `Record` is what a node says of itself, alive or left, signed with its own key; its body stays the bytes that
were signed, so nodes of another version pass it on unharmed. `Suspect` and `Dead` are what others say of it; they are
about exactly one incarnation and name their accusers, and the one that they are about can always refute them by a
record of a higher incarnation. Nothing here holds an absolute time.

Limits: the updates of one message take at most `GOSSIP_LIMIT_BYTES`, one record at most `RECORD_LIMIT_BYTES`, a
message of anti-entropy at most `SYNC_LIMIT_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kos_cluster.core.records import Member, MemberState

GOSSIP_LIMIT_BYTES = 1200  # all updates in one message, so that it fits one Ethernet frame
RECORD_LIMIT_BYTES = 1100  # one record with its signature, encoded; it must fit a message
SYNC_LIMIT_BYTES = 16 << 10  # one message of anti-entropy
ID_LIMIT_BYTES = 64  # one member's id
INCARNATION_LIMIT = 1 << 62  # nanoseconds: the year 2116; a precedence then takes 64 bits
ACCUSERS_LIMIT = 4  # accusers that one suspicion names; more would not shorten it
_SEAL = b"kos-swim-record-1\0"  # so that a signature under a record is one under nothing else


# ---- updates


class Record(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """What a node says of itself: a `Member` in MessagePack, `state` alive or left, and its signature of `sealed`."""

    body: bytes
    signature: bytes


class Suspect(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """These members got no answer from that one."""

    id: str
    incarnation: int
    accusers: tuple[str, ...]


class Dead(msgspec.Struct, frozen=True, array_like=True, tag="d"):
    """The suspicion was not refuted in time; or, when the accuser is the member itself, it stops."""

    id: str
    incarnation: int
    accuser: str


Update = Record | Suspect | Dead


class Known(msgspec.Struct, frozen=True):
    """What a node holds of a member: the decoded member with its state, and the record that proves it."""

    member: Member
    record: Record


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A member in anti-entropy: its record and what others say of it, if they do."""

    record: Record
    verdict: Suspect | Dead | None = None


def sealed(body: bytes) -> bytes:
    """The bytes that the signature of a record is over."""
    return _SEAL + body


def body_of(member: Member) -> bytes:
    """The body of a record of this member."""
    return msgspec.msgpack.encode(member)


def precedence(incarnation: int, state: MemberState) -> int:
    """Of two beliefs about a member the one with the larger number holds: by incarnation, then alive to left."""
    return incarnation * 4 + _RANKS[state]


_RANKS = {MemberState.ALIVE: 0, MemberState.SUSPECT: 1, MemberState.DEAD: 2, MemberState.LEFT: 3}


# ---- messages


class Ping(msgspec.Struct, frozen=True, tag="SWIM_PING"):
    """Answer with `Ack` of the same number."""

    seq: int
    gossip: tuple[Update, ...] = ()


class Ack(msgspec.Struct, frozen=True, tag="SWIM_ACK"):
    """The pinged one lives; from a helper: the target of its `PingReq` answered."""

    seq: int
    gossip: tuple[Update, ...] = ()


class PingReq(msgspec.Struct, frozen=True, tag="SWIM_PING_REQ"):
    """Ping the target for me, and answer with `Ack`, or in time with `Nack`."""

    seq: int
    target: str
    gossip: tuple[Update, ...] = ()


class Nack(msgspec.Struct, frozen=True, tag="SWIM_NACK"):
    """The helper lives and was asked, but the target has not answered it (yet)."""

    seq: int


class Gossip(msgspec.Struct, frozen=True, tag="SWIM_GOSSIP"):
    """Updates alone."""

    gossip: tuple[Update, ...]


class SyncRequest(msgspec.Struct, frozen=True, tag="SWIM_SYNC_REQUEST"):
    """Anti-entropy, first step: my record, and a sum over each of `2**bits` buckets of what I hold of the members."""

    record: Record
    bits: int
    sums: tuple[int, ...]


class SyncDigest(msgspec.Struct, frozen=True, tag="SWIM_SYNC_DIGEST"):
    """Second step, when sums differ: for these buckets, of `2**bits`, all ids with the `precedence` that I hold."""

    bits: int
    buckets: tuple[int, ...]
    held: dict[str, int]


class SyncData(msgspec.Struct, frozen=True, tag="SWIM_SYNC_DATA"):
    """Third and fourth step: what you lack, and the ids that I lack. Empty: we hold the same."""

    entries: tuple[Entry, ...] = ()
    wanted: tuple[str, ...] = ()


Message = Ping | Ack | PingReq | Nack | Gossip | SyncRequest | SyncDigest | SyncData


def size_bytes(value: msgspec.Struct | Iterable[msgspec.Struct]) -> int:
    """What a value takes on the wire."""
    return len(msgspec.msgpack.encode(value))
