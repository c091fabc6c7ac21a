"""What is asked of the cluster's locks, and answered, on the wire (see `wire`)."""

from __future__ import annotations

import msgspec


class LockWanted(msgspec.Struct, frozen=True, tag=True):
    """Take a named lock, or keep one's place in its queue; answered within `wait_s`. Reply: LockState."""

    name: str
    owner: str
    ttl_s: float
    wait_s: float


class LockAsked(msgspec.Struct, frozen=True, tag=True):
    """Who holds a lock? The answer holds everything that was decided before it was asked. Reply: LockState."""

    name: str


class LocksAsked(msgspec.Struct, frozen=True, tag=True):
    """Which locks are held? As `LockAsked` for all. Reply: list[HeldLock]."""


class LockRenewed(msgspec.Struct, frozen=True, tag=True):
    """Keep a lock for its time once more. Reply: LockState. LockHeldError when it is somebody else's by now."""

    name: str
    owner: str
    token: int


class LockReleased(msgspec.Struct, frozen=True, tag=True):
    """Give a lock up, or one's place in its queue. Reply: bool."""

    name: str
    owner: str


class LockState(msgspec.Struct, frozen=True):
    """`token` is the fencing token of a lock that is held; 0: it waits, and `held` says for whom.

    To `LockAsked`: the token and the name of its holder; 0 and empty when it is free.
    """

    token: int
    until_s: float = 0.0
    held: str = ""


class HeldLock(msgspec.Struct, frozen=True):
    """A lock that is held. Times are of the replicated clock, Unix seconds; `waiting`: how many wait for it."""

    name: str
    holder: str
    token: int
    since_s: float
    until_s: float
    waiting: int
