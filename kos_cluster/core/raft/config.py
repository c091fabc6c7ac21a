"""The membership, and which change of it may be made.

Source: Ongaro's thesis, 4.1 and 4.2.1 with the correction of 2015 (a leader changes nothing before it has committed an
entry of its own term). Theory: two majorities of memberships that differ in one voter have a member in common, so no
two leaders can be chosen in one term. This holds while one change at a time is open.

    node is      AddLearner   Promote            Demote             Remove
    stranger     learner      refused            refused            refused
    learner      refused      voter (see below)  refused            stranger
    voter        refused      refused            learner (below)    stranger (below)

Rules: a membership is in force from the moment its entry is appended, and goes when that entry is cut off. A learner is
promoted only when it answers and has caught up. A change of voters is made only when a majority of the new ones
answers. The last voter stays.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from kos_cluster.core.raft.events import AddLearner, Change, Demote, Promote, Remove
from kos_cluster.core.raft.quorum import majority
from kos_cluster.core.raft.values import Entry, HardState, Kind, Membership, Restored

VOTERS_LIMIT = 7  # each entry costs a write on most of them
LEARNERS_LIMIT = 512  # each entry and, more seldom, a heartbeat goes to all of them
CAUGHT_UP_ENTRIES = 64  # a learner that lacks more of the committed entries is not promoted


def encode(membership: Membership) -> bytes:
    """The data of a config entry."""
    return msgspec.msgpack.encode(membership)


def decode(data: bytes) -> Membership | None:
    """The membership in a config entry, or None when it is none."""
    try:
        membership = msgspec.msgpack.decode(data, type=Membership)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return membership if is_valid(membership) else None


def founding(voters: tuple[str, ...]) -> Restored:
    """The disk of each first voter of a new group, for its storage to write before the first start: one entry, which
    names the voters and is committed by decree. Nodes that join later start from an empty `Restored`."""
    entry = Entry(1, 1, Kind.CONFIG, encode(Membership(tuple(sorted(voters)))))
    return Restored(HardState(1, None, 1), None, (entry,))


def is_valid(membership: Membership) -> bool:
    """It has a voter, and names nobody twice."""
    return bool(membership.voters) and len(set(membership.members)) == len(membership.members)


class MembershipHistory:
    """The memberships that the log names, newest last; the first is what was in force where the log begins."""

    def __init__(self, index: int, membership: Membership) -> None:
        self._steps = [(index, membership)]

    @property
    def current(self) -> Membership:
        return self._steps[-1][1]

    @property
    def previous(self) -> Membership:
        """The one before, as far as the log still names it."""
        return self._steps[-2][1] if len(self._steps) > 1 else Membership()

    @property
    def index(self) -> int:
        """Where the current membership stands in the log; 0 for one that was never written."""
        return self._steps[-1][0]

    def at(self, index: int) -> Membership:
        """What was in force after the entry `index`."""
        return next((membership for start, membership in reversed(self._steps) if start <= index), Membership())

    def append(self, index: int, membership: Membership) -> None:
        self._steps.append((index, membership))

    def truncate(self, first_cut: int) -> None:
        """The entries from `first_cut` on are gone."""
        self._steps = [step for step in self._steps if step[0] < first_cut] or [(0, Membership())]

    def compact(self, index: int) -> None:
        """Nobody will ask for what was in force before the entry `index`."""
        while len(self._steps) > 1 and self._steps[1][0] <= index:
            del self._steps[0]


def changed(membership: Membership, change: Change) -> Membership:
    """The membership after a change that is allowed."""
    voters = set(membership.voters) - {change.node}
    learners = set(membership.learners) - {change.node}
    match change:
        case AddLearner(node) | Demote(node):
            learners.add(node)
        case Promote(node):
            voters.add(node)
        case Remove():
            pass
    return Membership(tuple(sorted(voters)), tuple(sorted(learners)))


def why_refuse(membership: Membership, change: Change, behind: int, in_contact: Callable[[str], bool]) -> str:
    """Why the change is not allowed, or "". `behind` counts the committed entries that the changed node lacks."""
    node = change.node
    match change:
        case AddLearner():
            if not node:
                return "a member needs a name"
            if node in membership.members:
                return f"{node} is a member already"
            if len(membership.learners) >= LEARNERS_LIMIT:
                return f"the group has {LEARNERS_LIMIT} learners already, which is the most it can have"
            return ""
        case Promote():
            if node not in membership.learners:
                return f"{node} is not a learner"
            if len(membership.voters) >= VOTERS_LIMIT:
                return f"the group has {VOTERS_LIMIT} voters already, which is the most it can have"
            if not in_contact(node):
                return f"{node} does not answer"
            if behind > CAUGHT_UP_ENTRIES:
                return f"{node} has not caught up: it lacks {behind} entries, {CAUGHT_UP_ENTRIES} are allowed"
        case Demote():
            if node not in membership.voters:
                return f"{node} is not a voter"
        case Remove():
            if node not in membership.members:
                return f"{node} is not a member"
            if node in membership.learners:
                return ""
    return _why_no_quorum(changed(membership, change).voters, node, in_contact)


def _why_no_quorum(voters: tuple[str, ...], node: str, in_contact: Callable[[str], bool]) -> str:
    if not voters:
        return f"{node} is the last voter; without one the group could decide nothing again"
    silent = [voter for voter in voters if not in_contact(voter)]
    needed, answering = majority(len(voters)), len(voters) - len(silent)
    if answering >= needed:
        return ""
    return (
        f"the change would lose the quorum: of the {len(voters)} voters after it {needed} must answer, "
        f"and {answering} {'does' if answering == 1 else 'do'} ({', '.join(silent)} silent)"
    )
