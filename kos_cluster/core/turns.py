"""Whose turn it is, among those that wait for the same thing: fair shares by what each has used so far.

Theory of operation. Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-Time Fair Queueing", IEEE/ACM
Transactions on Networking 5(5), 1997; for processors P. Goyal, X. Guo, H. Vin, "A Hierarchical CPU Scheduler for
Multimedia Operating Systems", OSDI 1996). Each sharer has a virtual time, which grows by what it is charged over its
weight; who waits with the least goes first. The clock of all is the virtual time of whoever went last. A sharer that
comes, or comes back, starts at that clock: it is owed nothing for the time in which it wanted nothing, and it owes
what it was charged beyond the clock. So whoever always wants something gets its weight's share, and nobody who wants
little waits for more than what is ahead of it at that moment. What a turn will cost need not be known when it begins:
it is charged as a guess, and put right later. Who is first and cannot use what is there, so that others pass, is owed
something for it, up to `OWED_LIMIT`.

    priority    each step doubles the weight, so a share is never nothing

Rules. Among equals, who came first goes first. A charge may come after its sharer has ceased to wait.

Limits: `SHARERS_LIMIT` sharers are remembered that do not wait; those that owe least are forgotten first. Choosing,
coming, going and charging cost O(log n) comparisons of the n that wait.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

PRIORITY_LIMIT = 10  # at most, and at least as its negative: a share of 1,024 times, or of a 1,024th
SHARERS_LIMIT = 1024  # that do not wait, and owe something
OWED_LIMIT = 10.0  # of the clock's unit: what one that had to let others pass is ahead of them by then, at most

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Sharer:
    time: float
    order: int = 0
    waits: bool = False


def weight_of(priority: int) -> float:
    """The weight of work of this priority."""
    return float(2.0 ** max(-PRIORITY_LIMIT, min(priority, PRIORITY_LIMIT)))


class Turns(Generic[K]):
    """Who waits, in turn. Iterating gives them so; stop before anything is changed."""

    def __init__(self) -> None:
        self._sharers: dict[K, _Sharer] = {}
        self._line: list[tuple[float, int, K]] = []  # of those that wait, in turn; orders are unique
        self._clock = 0.0
        self._comers = 0

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[K]:
        return (key for _, _, key in self._line)

    def at(self, position: int) -> K:
        """Who is at this place of the line, from 0."""
        return self._line[position][2]

    def come(self, key: K) -> None:
        """It waits from now on, if it did not."""
        known = self._known(key)
        if not known.waits:
            self._comers += 1
            known.time, known.order, known.waits = max(known.time, self._clock), self._comers, True
            insort(self._line, (known.time, known.order, key))

    def go(self, key: K) -> None:
        """It does not wait any more."""
        known = self._sharers.get(key)
        if known is not None and known.waits:
            self._take_out(known)
            known.waits = False
            if known.time <= self._clock:
                del self._sharers[key]

    def served(self, key: K, cost: float) -> None:
        """Its turn has come: the clock is its time, and it is charged this cost over its weight."""
        known = self._known(key)
        forgiven = max(0.0, self._clock - OWED_LIMIT - known.time)
        self._clock = max(self._clock, known.time)
        self._charge(key, known, cost + forgiven)

    def charge(self, key: K, cost: float) -> None:
        """It has used so much over its weight, beyond what it was charged before; or less, for a cost below 0."""
        self._charge(key, self._known(key), cost)

    def _charge(self, key: K, known: _Sharer, cost: float) -> None:
        if known.waits:
            self._take_out(known)
        known.time += cost
        if known.waits:
            insort(self._line, (known.time, known.order, key))

    def _known(self, key: K) -> _Sharer:
        known = self._sharers.get(key)
        if known is None:
            if len(self._sharers) - len(self._line) >= SHARERS_LIMIT:
                self._forget_some()
            known = self._sharers[key] = _Sharer(self._clock)
        return known

    def _take_out(self, known: _Sharer) -> None:
        del self._line[bisect_left(self._line, (known.time, known.order))]

    def _forget_some(self) -> None:
        """Half of those that do not wait, which owe the least."""
        idle = sorted((known.time, known.order, key) for key, known in self._sharers.items() if not known.waits)
        for _, _, key in idle[: len(idle) // 2]:
            del self._sharers[key]
