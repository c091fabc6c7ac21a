"""What the leader knows of one other node's log, and how fast it may send to it.

    mode        meaning                              next
    PROBE       where the logs agree is not known;   REPLICATE when an append is taken,
                one append at a time                 SNAPSHOT when the log no longer reaches back far enough
    REPLICATE   appends follow each other without    PROBE when one is refused, or none is acknowledged
                waiting, within the window           in time
    SNAPSHOT    one chunk at a time                  REPLICATE when the snapshot is installed

Rules: `match_index` is what the node has durably, so it only grows. What was sent counts as lost when heartbeats are
answered and it was not for `RESEND_HEARTBEATS`. While `UNFILLED_INFLIGHT` appends are
under way a further one waits until it is full, so that many small entries travel in few messages.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from kos_cluster.core.raft.values import Snapshot

APPEND_BYTES = 256 << 10  # of entries in one append; one larger entry travels alone
APPEND_ENTRIES = 1024  # entries in one append
INFLIGHT_LIMIT = 64  # appends to one node without an answer
INFLIGHT_BYTES = 4 << 20  # of entries in them
UNFILLED_INFLIGHT = 2  # appends under way beside which one that is not full waits
SNAPSHOT_CHUNK_BYTES = 256 << 10  # of a snapshot in one message
RESEND_HEARTBEATS = 3  # heartbeat periods without an answer after which what was sent counts as lost


class Mode(StrEnum):
    """See the table above."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """One other member, as its leader sees it."""

    next_index: int
    heard_s: float  # when it last answered
    beat_due_s: float  # when the next heartbeat is due
    mode: Mode = Mode.PROBE
    match_index: int = 0
    round: int = 0  # the last heartbeat round that it answered
    commit_told: int = 0
    paused: bool = False  # PROBE, SNAPSHOT: an answer is awaited
    moved_s: float = 0.0  # when the last answer came that moved something, or what is now awaited was first sent
    inflight: deque[tuple[int, int]] = field(default_factory=deque)  # (last index, size) of each append under way
    inflight_bytes: int = 0
    snapshot: Snapshot | None = None  # SNAPSHOT: what is being sent
    offset: int = 0  # SNAPSHOT: how much of it has arrived

    @property
    def window_open(self) -> bool:
        return len(self.inflight) < INFLIGHT_LIMIT and self.inflight_bytes < INFLIGHT_BYTES

    def pause(self, now: float) -> None:
        """Nothing more until an answer comes (PROBE, SNAPSHOT)."""
        self.paused, self.moved_s = True, now

    def lost(self) -> None:
        """What is awaited will not come: send it again."""
        self.paused = False
        if self.inflight:
            self.probe()

    def probe(self) -> None:
        """Look again for where the logs agree."""
        self.mode, self.paused, self.snapshot = Mode.PROBE, False, None
        self.next_index = self.match_index + 1
        self._clear()

    def send_snapshot(self, snapshot: Snapshot) -> None:
        self.mode, self.paused, self.snapshot, self.offset = Mode.SNAPSHOT, False, snapshot, 0
        self._clear()

    def sent(self, last_index: int, size_bytes: int, now: float) -> None:
        """An append that ends at `last_index` is under way (REPLICATE)."""
        if not self.inflight:
            self.moved_s = now
        self.next_index = last_index + 1
        self.inflight.append((last_index, size_bytes))
        self.inflight_bytes += size_bytes

    def acknowledged(self, index: int, now: float) -> None:
        """It has the log up to `index`."""
        if index > self.match_index:
            self.match_index, self.moved_s = index, now
        self.next_index = max(self.next_index, self.match_index + 1)
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]

    def replicate(self) -> None:
        """The logs agree up to `match_index`."""
        self.probe()
        self.mode = Mode.REPLICATE

    def rejected(self, index: int, hint: int) -> bool:
        """It has nothing that fits after `index`; `hint` is where it might. False when the refusal is an old one."""
        if index <= self.match_index:
            return False
        if self.mode is Mode.REPLICATE:
            self.probe()
            return True
        if self.mode is Mode.SNAPSHOT or index != self.next_index - 1:
            return False
        self.next_index = max(self.match_index + 1, min(index, hint + 1))
        self.paused = False
        return True

    def _clear(self) -> None:
        self.inflight.clear()
        self.inflight_bytes = 0
