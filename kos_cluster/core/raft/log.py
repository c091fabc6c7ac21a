"""The log in memory, and how much of it is on the disk.

The log begins after a base (an index and its term) and ends at `last_index`. A snapshot stands for all entries up to
its index; the base may lie before it, because `TAIL_ENTRIES` are kept for followers that are a little behind.

Durability: each write is noted with the last index it holds. When it is reported, what it held is durable, unless the
log was cut since: cutting lowers what every earlier write can vouch for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from kos_cluster.core.raft.values import Entry, Restored, Snapshot
from kos_cluster.errors import StateError

SNAPSHOT_LIMIT_BYTES = 256 << 20  # of the state in one snapshot; a receiver collects it in memory
TAIL_ENTRIES = 512  # kept before a snapshot's index, so that a follower just behind needs no snapshot


class Log:
    """The entries after `base_index`, and the latest snapshot."""

    def __init__(self, restored: Restored) -> None:
        entries, snapshot = list(restored.entries), restored.snapshot
        self.snapshot = snapshot
        self.base_index, self.base_term = (snapshot.index, snapshot.term) if snapshot else (0, 0)
        _refuse_gaps(entries, self.base_index)
        if entries and entries[0].index <= self.base_index:  # the entry before it is gone, so it serves as the base
            self.base_index, self.base_term = entries[0].index, entries[0].term
            del entries[0]
        self._entries = entries
        if snapshot and self.term_at(snapshot.index) != snapshot.term:
            raise StateError(
                f"The snapshot at entry {snapshot.index} does not belong to the log beside it.",
                "Remove this node from the cluster and join again.",
            )
        self._totals = list(accumulate(len(entry.data) for entry in entries))  # bytes up to and with each entry
        self._total_before = 0  # bytes up to and with the base
        self.durable = self.last_index
        self._writes: deque[tuple[int, int]] = deque()  # (number of a write, the last index it vouches for)

    # ---- what is there

    @property
    def first_index(self) -> int:
        return self.base_index + 1

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    def term_at(self, index: int) -> int | None:
        """The term of an entry or of the base; None where there is neither."""
        if index == self.base_index:
            return self.base_term
        if self.base_index < index <= self.last_index:
            return self._entries[index - self.base_index - 1].term
        return None

    def between(self, first: int, last: int) -> list[Entry]:
        """The entries from `first` to `last`, both included."""
        return self._entries[first - self.first_index : last - self.base_index]

    def size_bytes(self, first: int, last: int) -> int:
        """The commands in the entries from `first` to `last`, both included."""
        return self._total_at(last) - self._total_at(first - 1)

    def batch(self, first: int, size_bytes: int, count: int) -> tuple[tuple[Entry, ...], int]:
        """The entries from `first` on, as many as fit but at least one if there is any, and their size."""
        start = first - self.first_index
        end = bisect_right(self._totals, self._total_at(first - 1) + size_bytes, start)
        end = min(max(end, start + 1), start + count, len(self._entries))
        return tuple(self._entries[start:end]), self.size_bytes(first, self.base_index + end)

    def is_covered_by(self, last_index: int, last_term: int) -> bool:
        """A log that ends so is at least as up to date as this one (thesis 3.6.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def last_not_after(self, index: int, term: int) -> tuple[int, int]:
        """The last place up to `index` whose term is at most `term`; (0, 0) when the log reaches back to none.

        It skips whole terms when leader and follower look for where their logs agree (thesis 3.5, end)."""
        index = min(index, self.last_index)
        while index >= self.base_index:
            found = self.term_at(index)
            if found is not None and found <= term:
                return index, found
            index -= 1
        return 0, 0

    def _total_at(self, index: int) -> int:
        return self._totals[index - self.first_index] if index > self.base_index else self._total_before

    # ---- changes

    def append(self, entries: Sequence[Entry]) -> None:
        """Put these in place of whatever is at and after the first of them."""
        cut = entries[0].index - self.first_index
        if cut < len(self._entries):
            del self._entries[cut:], self._totals[cut:]
            self._vouch_no_further_than(entries[0].index - 1)
        for entry in entries:
            self._totals.append(self._total_at(self.last_index) + len(entry.data))
            self._entries.append(entry)

    def compact(self, snapshot: Snapshot) -> None:
        """The snapshot replaces what is before it, but for the tail."""
        self.snapshot = snapshot
        base = max(self.base_index, snapshot.index - TAIL_ENTRIES)
        term = self.term_at(base)
        if term is not None and base > self.base_index:
            self._total_before = self._total_at(base)
            del self._entries[: base - self.base_index], self._totals[: base - self.base_index]
            self.base_index, self.base_term = base, term

    def reset(self, snapshot: Snapshot) -> None:
        """The snapshot replaces the whole log; none of it is durable yet."""
        self.snapshot = snapshot
        self.base_index, self.base_term = snapshot.index, snapshot.term
        self._entries.clear()
        self._totals.clear()
        self._total_before = 0
        self._vouch_no_further_than(0)

    # ---- durability

    def writing(self, number: int) -> None:
        """The write `number` makes everything durable that is here now."""
        self._writes.append((number, self.last_index))

    def written(self, number: int) -> None:
        """All writes up to `number` are durable."""
        while self._writes and self._writes[0][0] <= number:
            self.durable = max(self.durable, self._writes.popleft()[1])

    def _vouch_no_further_than(self, index: int) -> None:
        self.durable = min(self.durable, index)
        self._writes = deque((number, min(last, index)) for number, last in self._writes)


def _refuse_gaps(entries: Sequence[Entry], base_index: int) -> None:
    expected = min(entries[0].index, base_index + 1) if entries else 0
    for entry in entries:
        if entry.index != expected or entry.index < 1:
            raise StateError(
                f"The log has no entry {expected}, but entry {entry.index}.",
                "Remove this node from the cluster and join again.",
            )
        expected += 1
