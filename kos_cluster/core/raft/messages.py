"""What the nodes of a group say to each other.

Each message names the group, the sender's term and the wire version that the sender speaks. A new version only adds
fields, each with a default that means "the sender is older and did not say", and a receiver ignores fields that it does
not know. So neighbouring versions understand each other, and nodes are upgraded one by one. Version 1 has no hints in
AppendResponse.

The sender's identity is not in a message: the transport authenticates it and the caller gives it with `Received`.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.raft.values import Entry, Membership

WIRE_VERSION = 2
OLDEST_WIRE_VERSION = 1  # older ones are ignored


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="is"):
    group: str
    term: int
    version: int = 1  # a message without one is of version 1


class VoteRequest(_Message, frozen=True, tag="vote?"):
    """Vote for me in `term`. With `pre`: would you? Then `term` is the one the sender would enter."""

    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False  # the leader itself asked for this election


class VoteResponse(_Message, frozen=True, tag="vote"):
    """The answer; a granted `pre` repeats the asked term, a refusal carries the refuser's."""

    granted: bool
    pre: bool = False


class Append(_Message, frozen=True, tag="append"):
    """The leader's entries after (`prev_index`, `prev_term`), and how far it knows the log to be committed."""

    prev_index: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


class AppendResponse(_Message, frozen=True, tag="appended"):
    """Taken: the log agrees with the leader's up to `index`, durably. `rejected`: it has no (`index`, prev_term);
    the hint is the last place where it could agree, 0 when there is none or none was given."""

    index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(_Message, frozen=True, tag="beat?"):
    """The leader is alive. `round` counts up within its term; reads wait for a quorum to answer a round."""

    commit: int
    round: int = 0


class HeartbeatResponse(_Message, frozen=True, tag="beat"):
    """The sender still follows the leader of `term`, who sent `round`."""

    round: int = 0


class SnapshotChunk(_Message, frozen=True, tag="snapshot?"):
    """A part of the leader's snapshot, at most `SNAPSHOT_CHUNK_BYTES` of it."""

    index: int
    index_term: int
    membership: Membership
    offset: int
    total_bytes: int
    data: bytes


class SnapshotResponse(_Message, frozen=True, tag="snapshot"):
    """The receiver holds the snapshot `index` up to `offset`. When it is installed an AppendResponse says so."""

    index: int
    offset: int


class ReadRequest(_Message, frozen=True, tag="read?"):
    """A follower asks for a read index."""

    id: int


class ReadResponse(_Message, frozen=True, tag="read"):
    """From `index` on the follower's state may answer the read `id`; or the leader cannot say, and why."""

    id: int
    index: int = 0
    refused: str = ""


class TimeoutNow(_Message, frozen=True, tag="timeout"):
    """The leader asks the receiver to stand for election at once."""


Message = (
    VoteRequest
    | VoteResponse
    | Append
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | SnapshotChunk
    | SnapshotResponse
    | ReadRequest
    | ReadResponse
    | TimeoutNow
)
