"""Whose turn it is to be probed: each live member once a round, in an order that is new each round.

Source: SWIM, section 4.3: round-robin over a random order bounds the time until a given member is probed by two rounds,
where independent random choices would not. Here the order is drawn as it is used (Fisher-Yates, one step a probe), so a
member that joins has its place among the rest of the round. Members that somebody accuses may go first.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable

HASTENED_LIMIT = 16  # accused members that are probed out of turn


class Turns:
    """The ids of the live members other than this node."""

    def __init__(self, ids: Iterable[str], rng: random.Random) -> None:
        self._ids = list(ids)
        self._rng = rng
        self._at = 0  # ids before it had their turn in this round
        self._hastened: list[str] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id: str) -> None:
        self._ids.append(id)

    def remove(self, id: str) -> None:
        index = self._ids.index(id)
        del self._ids[index]
        if index < self._at:
            self._at -= 1
        if id in self._hastened:
            self._hastened.remove(id)

    def hasten(self, id: str) -> None:
        """Let this member be the next, out of turn."""
        if id not in self._hastened and len(self._hastened) < HASTENED_LIMIT:
            self._hastened.append(id)

    def next(self) -> str | None:
        """Whom to probe now; None when there is nobody."""
        if self._hastened:
            return self._hastened.pop(0)
        if not self._ids:
            return None
        if self._at >= len(self._ids):
            self._at = 0
        at, other = self._at, self._rng.randrange(self._at, len(self._ids))
        self._ids[at], self._ids[other] = self._ids[other], self._ids[at]
        self._at += 1
        return self._ids[at]

    def some(self, count: int, but: Container[str] = ()) -> list[str]:
        """Up to `count` different ids at random, none of `but`."""
        if len(self._ids) <= count + 8:  # few: choose among those that may be chosen
            allowed = [id_ for id_ in self._ids if id_ not in but]
            return self._rng.sample(allowed, min(count, len(allowed)))
        chosen: list[str] = []
        for _ in range(4 * count):  # many: a collision is rare, and one fewer does no harm
            id_ = self._ids[self._rng.randrange(len(self._ids))]
            if id_ not in but and id_ not in chosen:
                chosen.append(id_)
                if len(chosen) == count:
                    break
        return chosen
