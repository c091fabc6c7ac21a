"""A set from which members can be drawn at random; adding, taking out and drawing do not depend on its size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """What has an id."""

    id: str


T = TypeVar("T", bound=Named)


class RandomSet(Generic[T]):
    """The last member takes the place of the one that is taken out, so the order means nothing."""

    def __init__(self) -> None:
        self._members: list[T] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[T]:
        return iter(self._members)

    def get(self, id_: str) -> T | None:
        """The member of this id, or None."""
        place = self._places.get(id_)
        return None if place is None else self._members[place]

    def add(self, member: T) -> None:
        """Take in a member that is not there."""
        self._places[member.id] = len(self._members)
        self._members.append(member)

    def remove(self, id_: str) -> None:
        """Raises KeyError when it is not there."""
        place = self._places.pop(id_)
        last = self._members.pop()
        if last.id != id_:
            self._members[place] = last
            self._places[last.id] = place

    def sample(self, count: int, rng: random.Random) -> list[T]:
        """Up to `count` members at random, none twice."""
        if len(self._members) <= count:
            return list(self._members)
        if count == 2:  # what `rng.sample` does, without its preparations
            first, second = int(rng.random() * len(self._members)), int(rng.random() * (len(self._members) - 1))
            return [self._members[first], self._members[second + (second >= first)]]
        return rng.sample(self._members, count)
