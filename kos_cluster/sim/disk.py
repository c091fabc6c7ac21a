"""A host's disk: what of Raft's writes is there after a crash.

Theory of operation. A batch is a row of records closed by a mark, as a transaction is. It is unsynced until the disk
has finished with it; `sync` makes it part of what is `kept`. A crash leaves an unsynced batch in one of three ways:
none of its records, some of them without the mark (a torn tail), or all of them, although nobody was told. `load` reads
what a starting host finds: everything up to the last mark. A torn tail is seen by its missing mark and dropped, as the
daemon's storage does it by its transaction; it is never half believed.

    crash             the unsynced batch
    BEFORE            is gone
    TORN              lies there in part, without its mark
    AFTER             is kept; its release was never reported
    RELEASING         is kept and reported; only some of what it released has left

A full disk takes no batch; what it kept it still keeps.
"""

from __future__ import annotations

from enum import StrEnum

from kos_cluster.core.raft.events import Persist
from kos_cluster.core.raft.values import Entry, HardState, Restored, Snapshot

SYNC_LEAST_S = 0.0003  # of a write on any disk
SYNC_MOST_S = 0.004  # of a healthy disk


class Crash(StrEnum):
    """At which point of a write a host dies."""

    BEFORE = "before"
    TORN = "torn"
    AFTER = "after"
    RELEASING = "releasing"


class Log:
    """Rows of a log, and what else a batch carries: what a disk keeps, or what a machine holds."""

    def __init__(self, restored: Restored) -> None:
        self.hard_state = restored.hard_state
        self.snapshot = restored.snapshot
        self.entries = list(restored.entries)
        snapshot_index = restored.snapshot.index if restored.snapshot else 0
        self.first = self.entries[0].index if self.entries else snapshot_index + 1

    @property
    def last(self) -> int:
        """The index of the last row; of the snapshot when there is none."""
        return self.entries[-1].index if self.entries else self.first - 1

    def entry(self, index: int) -> Entry | None:
        at = index - self.first
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def term(self, index: int) -> int | None:
        """The term of the entry at an index, or None when this log does not say."""
        at = index - self.first
        if 0 <= at < len(self.entries):
            return self.entries[at].term
        if self.snapshot is not None and self.snapshot.index == index:
            return self.snapshot.term
        return None

    def take(self, batch: Persist) -> None:
        """Do what a Persist says, in the order that it says."""
        if batch.reset:
            self.entries.clear()
        if batch.entries:
            start = batch.entries[0].index
            if self.entries:
                del self.entries[max(0, start - self.first) :]
            if not self.entries:
                self.first = start
            self.entries.extend(batch.entries)
        if batch.first > self.first:
            del self.entries[: batch.first - self.first]
        if not self.entries or batch.first > self.first:
            self.first = batch.first
        self.snapshot = batch.snapshot or self.snapshot
        self.hard_state = batch.hard_state

    def restored(self) -> Restored:
        return Restored(self.hard_state, self.snapshot, tuple(self.entries))


class Disk:
    """One host's storage. It outlives the host's machine."""

    def __init__(self, restored: Restored) -> None:
        self.kept = Log(restored)
        self.unsynced: Persist | None = None
        self.torn: Persist | None = None  # records without a mark
        self.full = False
        self.sync_most_s = SYNC_MOST_S

    def write(self, batch: Persist) -> None:
        """The records are on their way; they are not yet kept."""
        self.unsynced = batch

    def sync(self) -> None:
        """The batch is closed and on the disk."""
        if self.unsynced is not None:
            self.kept.take(self.unsynced)
            self.unsynced = None

    def lose(self, crash: Crash, share: float) -> None:
        """The host died. `share` is how much of a torn batch had got there."""
        batch, self.unsynced = self.unsynced, None
        if batch is None or crash is Crash.BEFORE:
            return
        if crash is Crash.TORN:
            self.torn = part(batch, share)
        else:
            self.kept.take(batch)

    def load(self) -> Restored:
        """What a starting host finds. A torn tail goes."""
        self.torn = None
        return self.kept.restored()


def part(batch: Persist, share: float) -> Persist:
    """The first records of a batch: entries, then the snapshot and the hard state, which are written last."""
    count = int(len(batch.entries) * share)
    return Persist(batch.number, HardState(), batch.first, batch.entries[:count], None, batch.reset)


def holds(log: Log, index: int, term: int) -> bool:
    """Whether a disk keeps the entry (index, term), as a row or within its snapshot."""
    known = log.term(index)
    if known is not None:
        return known == term
    return log.snapshot is not None and log.snapshot.index >= index


__all__ = ["Crash", "Disk", "Entry", "Log", "Snapshot", "holds", "part"]
