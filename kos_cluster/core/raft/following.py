"""What a follower does with its leader's messages: append, heartbeat, snapshot.

Source: Ongaro's thesis, 3.5, 5.1 to 5.3 (snapshots).

Rules: an entry that is committed is never replaced. A snapshot is collected in memory, up to `SNAPSHOT_LIMIT_BYTES`,
from one leader in one term, and becomes the log only when it is whole. A node that has the entry at the snapshot's
index already needs nothing of it but the knowledge that this entry is committed.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.raft.messages import (
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    SnapshotChunk,
    SnapshotResponse,
)
from kos_cluster.core.raft.state import State
from kos_cluster.core.raft.values import Snapshot


class _Source(msgspec.Struct, frozen=True):
    """Which snapshot of whom; parts of different ones never mix."""

    leader: str
    term: int
    index: int
    index_term: int
    total_bytes: int


class Following:
    """The follower's side of replication."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._source: _Source | None = None
        self._parts = bytearray()

    def append(self, sender: str, message: Append) -> None:
        state = self._state
        for entry in message.entries:
            if entry.index <= state.commit and state.log.term_at(entry.index) not in (None, entry.term):
                state.ignore(sender, f"its entry {entry.index} contradicts the one that is committed here")
                return
        if message.prev_index >= state.commit and state.log.term_at(message.prev_index) != message.prev_term:
            self._reject(sender, message)
            return
        new = [e for e in message.entries if e.index > state.commit and state.log.term_at(e.index) != e.term]
        if new:
            state.append([entry for entry in message.entries if entry.index >= new[0].index])
        last = message.prev_index + len(message.entries)
        state.commit_to(min(message.commit, last))
        if self._source is not None and self._source.index <= state.commit:
            self._forget()  # the entries came another way
        self._acknowledge(sender, max(state.commit, last))

    def heartbeat(self, sender: str, message: Heartbeat) -> None:
        state = self._state
        if message.commit > state.log.last_index:
            last = state.log.last_index
            state.ignore(sender, f"it takes entry {message.commit} for committed here, but the log ends at {last}")
            return
        state.commit_to(message.commit)
        state.send(sender, HeartbeatResponse(**state.heading, round=message.round))

    def snapshot(self, sender: str, chunk: SnapshotChunk) -> None:
        state = self._state
        if chunk.index <= state.commit:
            self._acknowledge(sender, state.commit)
            return
        source = _Source(sender, chunk.term, chunk.index, chunk.index_term, chunk.total_bytes)
        if source != self._source:
            self._forget()
            self._source = source
        if chunk.offset == len(self._parts):
            self._parts += chunk.data
        if len(self._parts) < chunk.total_bytes:
            state.send(sender, SnapshotResponse(**state.heading, index=chunk.index, offset=len(self._parts)))
            return
        snapshot = Snapshot(chunk.index, chunk.index_term, chunk.membership, bytes(self._parts))
        self._forget()
        if state.log.term_at(chunk.index) == chunk.index_term:
            state.commit_to(chunk.index)
        else:
            state.install(snapshot)
        self._acknowledge(sender, chunk.index)

    # ---- steps

    def _forget(self) -> None:
        self._source, self._parts = None, bytearray()

    def _reject(self, to: str, message: Append) -> None:
        state = self._state
        index, term = state.log.last_not_after(message.prev_index, message.prev_term)
        state.send(
            to,
            AppendResponse(**state.heading, index=message.prev_index, rejected=True, hint_index=index, hint_term=term),
        )

    def _acknowledge(self, to: str, index: int) -> None:
        state = self._state
        state.send(to, AppendResponse(**state.heading, index=index), after=state.log_write)
