"""What goes into a SWIM machine and what comes out of it."""

from __future__ import annotations

import enum

import msgspec

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.swim.messages import Message

# ---- events


class Received(msgspec.Struct, frozen=True):
    """A message came over a link; `sender` is the authenticated id."""

    sender: str
    message: Message


class LinkDown(msgspec.Struct, frozen=True):
    """A hint: the connection to this member was refused or broke. It is probed sooner, not declared dead by it."""

    id: str


class Heard(msgspec.Struct, frozen=True):
    """A node has said something over a link, of whatever: one that is held dead is asked at once what it holds."""

    id: str


class UpdateSelf(msgspec.Struct, frozen=True):
    """This node's own record changes; the machine gives it a higher incarnation and signs it."""

    member: Member


class Leave(msgspec.Struct, frozen=True):
    """This node stops; for good (`left`), or to come back (`dead` to the others at once).

    The process should tick on until `Swim.told`, which takes a few rounds of gossip.
    """

    for_good: bool


class Join(msgspec.Struct, frozen=True):
    """Addresses ("host:port") of the bootstrap list. They are asked now, and again while nobody alive is known."""

    addresses: tuple[str, ...]


class Removed(msgspec.Struct, frozen=True):
    """The cluster removed this member (the replicated state says so): it has left, and no record brings it back.

    A machine that was restarted has to be told again.
    """

    id: str


Event = Received | LinkDown | Heard | UpdateSelf | Leave | Join | Removed


# ---- effects


class Send(msgspec.Struct, frozen=True):
    """Send to the member of this id, at this address; `id` is empty for a bootstrap address, and `address` for a sender
    that is not a member yet (answer on its link). The message may get lost.
    """

    id: str
    address: str
    message: Message


class MemberChanged(msgspec.Struct, frozen=True):
    """A member's record or state changed; `was` is None for a new one. `view` is the number of the view with it."""

    member: Member
    was: MemberState | None
    view: int


class NameConflict(msgspec.Struct, frozen=True):
    """Two members that have not left have one name. Gossip decides nothing here."""

    name: str
    ids: tuple[str, str]


class Why(enum.StrEnum):
    """Why something that was heard is ignored."""

    FORGED = "its signature is wrong"
    MALFORMED = "it is malformed or too large"
    OLDER = "it is of an older incarnation"
    AHEAD = "it accuses an incarnation that is not known"
    CONTRADICTS = "it differs from what the member signed under the same incarnation"
    FORGOTTEN = "the member has left or was removed, and this is no newer incarnation"
    STRANGER = "no accuser is a member that is alive"
    FULL = "the cluster has as many members as it can"


class Ignored(msgspec.Struct, frozen=True):
    """Something heard from `sender` about the member `about` (empty: unknown) was ignored, and counted."""

    why: Why
    about: str
    sender: str


Effect = Send | MemberChanged | NameConflict | Ignored
