"""Updates on their way: what is still to be told, and how often each was told.

Rules. There is at most one update a member, the newest, so the members bound the queue. An update is told `SPREAD *
log2(n + 1)` times and then dropped: with that many tellings each of n members misses it with a probability that falls
faster than n grows, and anti-entropy brings it to whom it missed. Those that were told least go first, so a burst of
news does not starve any of them; a message takes as many as fit its limit.
"""

from __future__ import annotations

import math

from kos_cluster.core.swim.messages import GOSSIP_LIMIT_BYTES, Update, size_bytes

SPREAD = 3  # tellings of one update per bit of the number of members


class _Rumour:
    __slots__ = ("size_bytes", "told", "update")

    def __init__(self, update: Update) -> None:
        self.update = update
        self.size_bytes = size_bytes(update)
        self.told = 0


class Rumours:
    """The queue of updates, keyed by whom they are about."""

    def __init__(self) -> None:
        self._queue: dict[str, _Rumour] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, about: str) -> bool:
        return about in self._queue

    def add(self, about: str, update: Update) -> None:
        """Tell this from now on, in place of what was told about the same member."""
        self._queue.pop(about, None)
        self._queue[about] = _Rumour(update)

    def clear(self) -> None:
        self._queue.clear()

    def drop(self, about: str) -> None:
        self._queue.pop(about, None)

    def take(self, members: int, first: Update | None = None) -> tuple[Update, ...]:
        """The updates for one message, `first` before all; they count as told once more."""
        updates: list[Update] = [] if first is None else [first]
        if not self._queue:
            return tuple(updates)
        room = GOSSIP_LIMIT_BYTES - sum(map(size_bytes, updates))
        enough = tellings(members)
        for about, rumour in sorted(self._queue.items(), key=_told):
            if rumour.size_bytes > room or rumour.update == first:
                continue
            updates.append(rumour.update)
            room -= rumour.size_bytes
            rumour.told += 1
            if rumour.told >= enough:
                del self._queue[about]
        return tuple(updates)


def tellings(members: int) -> int:
    """How often one update is told by each node that hears it."""
    return math.ceil(SPREAD * math.log2(members + 1))


def _told(item: tuple[str, _Rumour]) -> int:
    return item[1].told
