"""One suspicion: it lasts the shorter the more members confirm it independently.

Source: Lifeguard, section "Local Health Aware Suspicion". With C accusers besides the first, of K that are expected, it
lasts `max(shortest, longest - (longest - shortest) * log(C + 1) / log(K + 1))` from its beginning. So a node whose own
network or processor is at fault has to wait long for company, and meanwhile the suspected one refutes.
"""

from __future__ import annotations

import math

CONFIRMATIONS = 3  # accusers besides the first that make a suspicion as short as it gets


class Suspicion:
    """A running suspicion. Whom it is about is its key in the machine's table."""

    def __init__(
        self, incarnation: int, accusers: tuple[str, ...], bounds_s: tuple[float, float], members: int, now: float
    ) -> None:
        """`members` are those that are alive, this node and the suspected one included."""
        self.incarnation = incarnation
        self.accusers = accusers[: CONFIRMATIONS + 1]
        self._shortest_s, self._longest_s = bounds_s
        self._wanted = max(0, min(CONFIRMATIONS, members - 2))  # fewer members cannot give more
        self._began = now
        self._not_before = now
        self.ends = self._end()  # when the suspected one is declared dead

    def confirm(self, accusers: tuple[str, ...]) -> bool:
        """Count new accusers. True when this changed the suspicion, so that it is worth telling."""
        new = [id_ for id_ in dict.fromkeys(accusers) if id_ not in self.accusers]
        room = CONFIRMATIONS + 1 - len(self.accusers)
        self.accusers += tuple(new[:room])
        self.ends = self._end()
        return bool(new[:room])

    def postpone(self, by_s: float, not_before: float) -> None:
        """The machine was stalled: its time did not pass, and what was sent to it meanwhile is heard first."""
        self._began += by_s
        self._not_before = max(self._not_before, not_before)
        self.ends = self._end()

    def _end(self) -> float:
        lasts_s = self._shortest_s
        if self._wanted:
            share = math.log(len(self.accusers)) / math.log(self._wanted + 1)
            lasts_s = max(lasts_s, self._longest_s - (self._longest_s - self._shortest_s) * share)
        return max(self._began + lasts_s, self._not_before)
