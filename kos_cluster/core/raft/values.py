"""What Raft keeps and says of itself: entries, hard state, snapshots, membership, and the times it goes by.

Rules: all are frozen values. A command is opaque bytes; only the layer above knows what it means. Members are named by
their node id and are kept sorted, so that equal memberships are equal values.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

ENTRY_VERSION = 1  # the newest form of entry that this code can apply


class Kind(StrEnum):
    """What an entry is for."""

    COMMAND = "command"  # the layer above applies it
    CONFIG = "config"  # a Membership; in force from the moment it is appended
    NOOP = "noop"  # the first entry of a leader's term


class Role(StrEnum):
    """What a node is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"  # asks whether it could win, without raising its term
    CANDIDATE = "candidate"
    LEADER = "leader"


class Membership(msgspec.Struct, frozen=True):
    """Who has a vote, and who only learns."""

    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        return self.voters + self.learners


class Entry(msgspec.Struct, frozen=True):
    """One place in the log. A kind that is not in `Kind` comes with a newer `version`."""

    index: int
    term: int
    kind: str
    data: bytes = b""
    version: int = ENTRY_VERSION


class HardState(msgspec.Struct, frozen=True):
    """What a node must not forget. `commit` may be older than what was known when it stopped."""

    term: int = 0
    voted_for: str | None = None
    commit: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """The applied state after the entry `index`, with the membership that was in force there."""

    index: int
    term: int
    membership: Membership
    data: bytes


class Restored(msgspec.Struct, frozen=True):
    """What a node's disk holds when it starts; nothing, for one that is to join.

    `entries` are contiguous and end the log. They may begin before the snapshot's index, never after the next one."""

    hard_state: HardState = HardState()
    snapshot: Snapshot | None = None
    entries: tuple[Entry, ...] = ()


class Timing(msgspec.Struct, frozen=True):
    """The times of a group, the same on all of its nodes. `heartbeat_s` < `election_min_s` < `election_max_s`."""

    heartbeat_s: float = 0.15  # from the leader to each voter
    election_min_s: float = 0.6  # a follower that heard a leader within this time gives no vote
    election_max_s: float = 1.2  # a leader that no quorum answered for so long steps down
    learner_heartbeat_s: float = 1.0  # to each learner; seldom, so that a large group stays cheap
