"""What a majority has agreed on: pure functions over the voters of one membership.

Source: Ongaro's thesis, 3.3 (elections) and 3.6.2 (commitment). The empty majority agrees with everything; it is of
no use alone, but makes the minimum over two majorities right when one is absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

UNBOUNDED = (1 << 63) - 1  # what the empty majority has committed


class Outcome(StrEnum):
    """How a vote stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voters: int) -> int:
    """How many of so many voters are a majority."""
    return voters // 2 + 1


def majority_commit(voters: Collection[str], reached: Mapping[str, int]) -> int:
    """The highest number that a majority has reached; a voter that is not in `reached` is at 0."""
    if not voters:
        return UNBOUNDED
    ascending = sorted(reached.get(voter, 0) for voter in voters)
    return ascending[len(voters) - majority(len(voters))]


def vote_outcome(voters: Collection[str], votes: Mapping[str, bool]) -> Outcome:
    """How the vote stands; votes of others than `voters` do not count."""
    given = sum(votes.get(voter, False) for voter in voters)
    open_ = sum(voter not in votes for voter in voters)
    needed = majority(len(voters)) if voters else 0
    if given >= needed:
        return Outcome.WON
    return Outcome.PENDING if given + open_ >= needed else Outcome.LOST
