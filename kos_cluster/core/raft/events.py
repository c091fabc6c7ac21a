"""The events that the machine takes and the effects that it returns.

Numbers: `id` is the caller's, unique among its own pending requests of a node. Writes are numbered 1, 2, ... by the
machine.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.raft.messages import Message
from kos_cluster.core.raft.values import Entry, HardState, Membership, Role, Snapshot

# ---- changes of the membership


class AddLearner(msgspec.Struct, frozen=True, tag=True):
    """A node begins to receive the log; it has no vote."""

    node: str


class Promote(msgspec.Struct, frozen=True, tag=True):
    """A learner that has caught up gets a vote."""

    node: str


class Demote(msgspec.Struct, frozen=True, tag=True):
    """A voter becomes a learner."""

    node: str


class Remove(msgspec.Struct, frozen=True, tag=True):
    """A node leaves the group."""

    node: str


Change = AddLearner | Promote | Demote | Remove


# ---- events


class Received(msgspec.Struct, frozen=True):
    """A message came from an authenticated node."""

    sender: str
    message: Message


class Propose(msgspec.Struct, frozen=True):
    """Append a command. Answered by Accepted or Refused. Accepted is not yet committed: the caller sees (index, term)
    in an Apply, or another term at that index, which means that the command was lost."""

    id: int
    command: bytes


class ReadIndex(msgspec.Struct, frozen=True):
    """From which index on may the local state answer a linearizable read? Answered by ReadReady or Refused."""

    id: int


class Persisted(msgspec.Struct, frozen=True):
    """All writes up to this number are durable."""

    write: int


class WriteFailed(msgspec.Struct, frozen=True):
    """The disk did not take a write. The machine hands over its office, halts, and must be built anew from the disk."""

    reason: str


class ChangeConfig(msgspec.Struct, frozen=True):
    """Change the membership by one step. Answered like Propose."""

    id: int
    change: Change


class Transfer(msgspec.Struct, frozen=True):
    """Make another voter the leader. Refused, or seen by a RoleChanged; given up after an election timeout."""

    id: int
    to: str


class Compact(msgspec.Struct, frozen=True):
    """`data` is the state after applying the entry `index`; what comes before it may go from the log."""

    index: int
    data: bytes


Event = Received | Propose | ReadIndex | Persisted | WriteFailed | ChangeConfig | Transfer | Compact


# ---- effects


class Persist(msgspec.Struct, frozen=True):
    """Make all of this durable, as one, after all writes of smaller numbers.

    In this order: with `reset` the whole log goes, else what is at and after the first of `entries`. Then `entries` are
    appended, what is before `first` goes, and `hard_state` and `snapshot` (if any) replace the former ones."""

    number: int
    hard_state: HardState
    first: int  # the index at which the log begins (last + 1 when it is empty)
    entries: tuple[Entry, ...] = ()
    snapshot: Snapshot | None = None
    reset: bool = False


class Send(msgspec.Struct, frozen=True):
    """Send when write `after` and all before it are durable; 0: at once. It may be lost, doubled or overtaken."""

    to: str
    message: Message
    after: int


class Apply(msgspec.Struct, frozen=True):
    """These entries are committed, and durable here. All kinds are given: every index is seen once, in order."""

    entries: tuple[Entry, ...]


class RestoreSnapshot(msgspec.Struct, frozen=True):
    """Replace the applied state by this one; it is durable. Apply goes on after its index."""

    snapshot: Snapshot


class Accepted(msgspec.Struct, frozen=True):
    """The proposal or change `id` has this place in the leader's log."""

    id: int
    index: int
    term: int


class Refused(msgspec.Struct, frozen=True):
    """The request `id` was not taken, nothing of it remains; `leader` is whom to ask, when known."""

    id: int
    reason: str
    leader: str | None


class ReadReady(msgspec.Struct, frozen=True):
    """The read `id` may be answered from the state once `index` is applied."""

    id: int
    index: int


class RoleChanged(msgspec.Struct, frozen=True):
    """The node's role, term or known leader has changed."""

    role: Role
    term: int
    leader: str | None


class MembershipChanged(msgspec.Struct, frozen=True):
    """Another membership is in force here; it may still be rolled back while its index is not committed."""

    membership: Membership
    index: int


class Ignored(msgspec.Struct, frozen=True):
    """A message was dropped because it is impossible, and why; late ones are dropped without a word. A Compact that is
    not carried out is told so too, with this node as the sender."""

    sender: str
    why: str


class Halt(msgspec.Struct, frozen=True):
    """The machine does nothing any more; going on would lose or invent state."""

    reason: str


Effect = (
    Persist
    | Send
    | Apply
    | RestoreSnapshot
    | Accepted
    | Refused
    | ReadReady
    | RoleChanged
    | MembershipChanged
    | Ignored
    | Halt
)
