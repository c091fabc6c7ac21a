"""How a leader keeps the other members' logs like its own: appends, heartbeats, snapshots.

Source: Ongaro's thesis, 3.5, 5.1, 10.2.1 (appends leave beside the leader's own write), 10.2.2 (pipelining). What is
known of each member, and how fast it is sent to, is in `progress`.

Rules: voters get a heartbeat every `heartbeat_s`, learners every `learner_heartbeat_s`, so that a large group stays
cheap; entries go to both at once. A member whose next entry is no longer in the log gets the snapshot. A removed member
is sent to until its removal is committed, so that it learns of it.
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
from kos_cluster.core.raft.progress import (
    APPEND_BYTES,
    APPEND_ENTRIES,
    RESEND_HEARTBEATS,
    SNAPSHOT_CHUNK_BYTES,
    UNFILLED_INFLIGHT,
    Mode,
    Progress,
)
from kos_cluster.core.raft.state import State


class Follower(msgspec.Struct, frozen=True):
    """What the leader knows of another member."""

    node: str
    voter: bool
    mode: Mode
    match_index: int
    behind: int  # entries of the leader's log that it is not known to have
    silent_s: float  # since its last answer; infinite for a learner that has not answered this leader yet


class Replication:
    """The leader's sending side."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.peers: dict[str, Progress] = {}
        self.round = 0  # the present round of heartbeats; `reads` counts it up

    # ---- members

    def follow_membership(self) -> None:
        """A progress for each other member, and none for one whose removal is committed."""
        state = self._state
        for node in state.membership.members:
            if node != state.node and node not in self.peers:
                heard_s = (
                    state.now if node in state.membership.voters else float("-inf")
                )  # voters get the time to answer
                self.peers[node] = Progress(state.log.last_index, heard_s, state.now)
        if state.memberships.index <= state.commit:
            for node in [node for node in self.peers if node not in state.membership.members]:
                self._send_heartbeat(node, self.peers[node])
                del self.peers[node]

    def heard_s(self, node: str) -> float:
        """When a member was last in contact; this node always is."""
        return self._state.now if node == self._state.node else self.peers[node].heard_s

    def in_contact(self, node: str) -> bool:
        """The member has answered lately."""
        timing = self._state.timing
        window_s = timing.election_max_s
        if node in self._state.membership.learners:
            window_s += timing.learner_heartbeat_s
        return self.heard_s(node) + window_s > self._state.now

    def followers(self) -> tuple[Follower, ...]:
        """The other members, as this leader sees them."""
        state, last = self._state, self._state.log.last_index
        return tuple(
            Follower(
                node,
                node in state.membership.voters,
                peer.mode,
                peer.match_index,
                last - peer.match_index,
                state.now - peer.heard_s,
            )
            for node, peer in self.peers.items()
        )

    # ---- heartbeats

    @property
    def deadline(self) -> float:
        return min((peer.beat_due_s for peer in self.peers.values()), default=float("inf"))

    def tick(self) -> list[str]:
        """Send the heartbeats that are due; returns to whom."""
        due = [node for node, peer in self.peers.items() if self._state.now >= peer.beat_due_s]
        for node in due:
            self._send_heartbeat(node, self.peers[node])
        return due

    def send_round(self, round: int) -> None:
        """Ask all voters whether this node still leads."""
        self.round = round
        for node, peer in self.peers.items():
            if node in self._state.membership.voters:
                self._send_heartbeat(node, peer)

    def _send_heartbeat(self, node: str, peer: Progress) -> None:
        state, timing = self._state, self._state.timing
        is_voter = node in state.membership.voters
        peer.beat_due_s = state.now + (timing.heartbeat_s if is_voter else timing.learner_heartbeat_s)
        peer.commit_told = min(state.commit, peer.match_index)
        state.send(node, Heartbeat(**state.heading, commit=peer.commit_told, round=self.round))

    # ---- answers

    def appended(self, sender: str, response: AppendResponse) -> None:
        state, peer = self._state, self.peers[sender]
        if response.index > state.log.last_index:
            state.ignore(sender, f"it answers for entry {response.index}; the log ends at {state.log.last_index}")
            return
        peer.heard_s = state.now
        if not response.rejected:
            peer.acknowledged(response.index, state.now)
            if peer.mode is not Mode.REPLICATE and peer.match_index >= state.log.base_index:
                peer.replicate()
            elif peer.snapshot is not None and peer.match_index >= peer.snapshot.index:
                peer.probe()  # the log was compacted beyond it meanwhile: the next snapshot follows
        elif peer.rejected(response.index, self._agreement(response)):
            self.send(sender)

    def beaten(self, sender: str, response: HeartbeatResponse) -> None:
        """A member that answers a heartbeat, but not what it was sent long before, did not get that."""
        state, peer = self._state, self.peers[sender]
        if response.round > self.round:
            state.ignore(sender, f"it answers round {response.round} of heartbeats; there were {self.round}")
            return
        peer.heard_s = state.now
        peer.round = max(peer.round, response.round)
        if peer.moved_s + RESEND_HEARTBEATS * state.timing.heartbeat_s <= state.now:
            peer.lost()
        if peer.mode is not Mode.PROBE or peer.match_index < state.log.last_index:
            self.send(sender)

    def received_part(self, sender: str, response: SnapshotResponse) -> None:
        peer = self.peers[sender]
        snapshot = peer.snapshot
        peer.heard_s = self._state.now
        if snapshot is None or response.index != snapshot.index or response.offset == peer.offset:
            return
        if response.offset > len(snapshot.data):
            self._state.ignore(sender, f"it holds {response.offset} bytes of a snapshot of {len(snapshot.data)}")
            return
        peer.offset, peer.paused = response.offset, False
        self.send(sender)

    def _agreement(self, response: AppendResponse) -> int:
        """The last place where the sender's log may agree with this one."""
        if response.version < 2:  # it gives no hint: step back by one
            return response.index - 1
        return self._state.log.last_not_after(response.hint_index, response.hint_term)[0]

    # ---- entries

    def send(self, node: str) -> None:
        """Send what the member lacks, as far as its window allows; if that is nothing, how far the log is committed."""
        peer = self.peers[node]
        if peer.mode is Mode.SNAPSHOT:
            self._send_chunk(node, peer)
        elif peer.next_index < self._state.log.first_index:
            self._begin_snapshot(node, peer)
        elif peer.mode is Mode.PROBE:
            if not peer.paused:
                peer.pause(self._state.now)
                self._send_entries(node, peer)
        else:
            while self._may_send(peer):
                last, size_bytes = self._send_entries(node, peer)
                peer.sent(last, size_bytes, self._state.now)
            if not peer.inflight and peer.commit_told < self._state.commit:
                self._send_heartbeat(node, peer)

    def send_all(self) -> None:
        for node in self.peers:
            self.send(node)

    def _may_send(self, peer: Progress) -> bool:
        log = self._state.log
        if peer.next_index > log.last_index or not peer.window_open:
            return False
        if len(peer.inflight) < UNFILLED_INFLIGHT:
            return True
        waiting = log.last_index - peer.next_index + 1
        return waiting >= APPEND_ENTRIES or log.size_bytes(peer.next_index, log.last_index) >= APPEND_BYTES

    def _send_entries(self, node: str, peer: Progress) -> tuple[int, int]:
        state = self._state
        entries, size_bytes = state.log.batch(peer.next_index, APPEND_BYTES, APPEND_ENTRIES)
        prev_index = peer.next_index - 1
        prev_term = state.log.term_at(prev_index)
        assert prev_term is not None  # since first_index <= next_index <= last_index + 1
        append = Append(
            **state.heading, prev_index=prev_index, prev_term=prev_term, commit=state.commit, entries=entries
        )
        state.send(node, append)
        last = prev_index + len(entries)
        peer.commit_told = min(state.commit, last)
        return last, size_bytes

    # ---- snapshots

    def _begin_snapshot(self, node: str, peer: Progress) -> None:
        snapshot = self._state.log.snapshot
        assert snapshot is not None  # nothing else cuts off the beginning of a log
        peer.send_snapshot(snapshot)
        self._send_chunk(node, peer)

    def _send_chunk(self, node: str, peer: Progress) -> None:
        snapshot = peer.snapshot
        if snapshot is None or peer.paused:
            return
        peer.pause(self._state.now)
        total = len(snapshot.data)
        offset = peer.offset if peer.offset < total else max(0, total - SNAPSHOT_CHUNK_BYTES)
        chunk = SnapshotChunk(
            **self._state.heading,
            index=snapshot.index,
            index_term=snapshot.term,
            membership=snapshot.membership,
            offset=offset,
            total_bytes=total,
            data=snapshot.data[offset : offset + SNAPSHOT_CHUNK_BYTES],
        )
        self._state.send(node, chunk)
