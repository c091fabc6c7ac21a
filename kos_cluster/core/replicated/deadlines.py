"""Which keys are due, without looking at all of them for every command.

Theory of operation. `_earliest_s` is never later than the earliest deadline. It is exact after a look through, and
may be early after a drop or a later deadline; then the next look through finds nothing and sets it right.
"""

from __future__ import annotations

import math


class Deadlines:
    """Key -> when it is due. Derived from the state that it serves, so it is not part of a snapshot."""

    def __init__(self) -> None:
        self._at_s: dict[str, float] = {}
        self._earliest_s = math.inf

    @property
    def earliest_s(self) -> float:
        """Nothing is due before; infinite when nothing is due at all."""
        return self._earliest_s

    def set(self, key: str, at_s: float) -> None:
        self._at_s[key] = at_s
        self._earliest_s = min(self._earliest_s, at_s)

    def drop(self, key: str) -> None:
        self._at_s.pop(key, None)

    def due(self, clock_s: float) -> list[str]:
        """Take out the keys whose deadline has come: the earliest first, equal ones by key."""
        if clock_s < self._earliest_s:
            return []
        due = sorted((at_s, key) for key, at_s in self._at_s.items() if at_s <= clock_s)
        for _, key in due:
            del self._at_s[key]
        self._earliest_s = min(self._at_s.values(), default=math.inf)
        return [key for _, key in due]
