"""What a leader does in its term: take proposals, commit, hold its quorum, answer reads, hand over.

Source: Ongaro's thesis, 3.6.2, 3.10 (transfer), 4.2.2 (a leader that leaves the voters), 6.2 (check-quorum).

Theory: a `Leadership` lives as long as its term of office, so nothing of it can leak into the next. It begins with an
empty entry of its own term, for only entries of that term are committed by counting; older ones are committed with
them.

Rules: the leader's own log counts once it is durable. A leader that no majority of voters answered for the longest
election timeout steps down. One that hands over takes nothing new until that has succeeded or been given up.
Uncommitted entries are bounded; what is over that is refused.
"""

from __future__ import annotations

from kos_cluster.core.raft import config
from kos_cluster.core.raft.events import Accepted, Change, ChangeConfig, Propose, Transfer
from kos_cluster.core.raft.messages import AppendResponse, HeartbeatResponse, TimeoutNow
from kos_cluster.core.raft.quorum import majority, majority_commit
from kos_cluster.core.raft.reads import LeaderReads
from kos_cluster.core.raft.replication import Replication
from kos_cluster.core.raft.state import State
from kos_cluster.core.raft.values import Entry, Kind, Role

COMMAND_LIMIT_BYTES = 1 << 20  # of one command
UNCOMMITTED_LIMIT = 4096  # entries that a leader holds without knowing them committed
UNCOMMITTED_BYTES = 16 << 20  # of commands in them


class Leadership:
    """The office of a leader; made when a node is elected."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.replication = Replication(state)
        self._reads = LeaderReads(state)
        self._transfer: tuple[Transfer, float] | None = None  # and when it is given up
        self._append(Kind.NOOP, b"")
        self.replication.tick()

    # ---- time

    @property
    def deadline(self) -> float:
        given_up_s = self._transfer[1] if self._transfer else float("inf")
        quorum_lost_s = self._quorum_heard_s() + self._state.timing.election_max_s
        return min(self.replication.deadline, quorum_lost_s, given_up_s)

    def tick(self) -> None:
        state = self._state
        if self._quorum_heard_s() + state.timing.election_max_s <= state.now:
            state.follow(state.term, None)
            return
        if self._transfer and state.now >= self._transfer[1]:
            transfer, self._transfer = self._transfer[0], None
            state.refuse(transfer.id, f"{transfer.to} did not take over in time")
        for node in self.replication.tick():
            self._offer_office(node)  # again, in case it was lost

    def _quorum_heard_s(self) -> float:
        """The last time by which a majority of the voters has been in contact."""
        heard = sorted(self.replication.heard_s(voter) for voter in self._state.membership.voters)
        return heard[len(heard) - majority(len(heard))]

    # ---- requests

    def propose(self, event: Propose) -> None:
        reason = self._why_busy() or self._why_too_much(len(event.command))
        if reason:
            self._state.refuse(event.id, reason)
        else:
            self._append(Kind.COMMAND, event.command, event.id)

    def change(self, event: ChangeConfig) -> None:
        reason = self._why_busy() or self._why_too_much(0) or self._why_no_change(event.change)
        if reason:
            self._state.refuse(event.id, reason)
        else:
            membership = config.changed(self._state.membership, event.change)
            self._append(Kind.CONFIG, config.encode(membership), event.id)

    def transfer(self, event: Transfer) -> None:
        reason = self._why_busy() or self._why_no_transfer(event.to)
        if reason:
            self._state.refuse(event.id, reason)
        else:
            self._transfer = (event, self._state.now + self._state.timing.election_max_s)
            self._offer_office(event.to)

    def read(self, id: int, source: str | None) -> None:
        """A read of this node, or (`source`) of another."""
        if self._reads.add(id, source):
            self._send_round()

    def resign(self) -> None:
        """Hand over at once, as well as can be: this node can serve no longer."""
        peers = self.replication.peers
        able = [v for v in self._state.membership.voters if v in peers and self.replication.in_contact(v)]
        if able:
            best = max(able, key=lambda voter: peers[voter].match_index)
            self._state.send(best, TimeoutNow(**self._state.heading))

    def close(self) -> None:
        """The office has ended: reads that still wait are told so."""
        self._reads.close()

    # ---- answers

    def appended(self, sender: str, response: AppendResponse) -> None:
        self.replication.appended(sender, response)
        if response.rejected:
            return
        self._count()
        if self._state.role is Role.LEADER and sender in self.replication.peers:
            self.replication.send(sender)
            self._offer_office(sender)

    def beaten(self, sender: str, response: HeartbeatResponse) -> None:
        self.replication.beaten(sender, response)
        self._confirm_reads()

    def persisted(self) -> None:
        """More of this node's own log is durable."""
        self._count()

    # ---- the log

    def _append(self, kind: Kind, data: bytes, id: int | None = None) -> None:
        state = self._state
        entry = Entry(state.log.last_index + 1, state.term, kind, data)
        state.append([entry])
        if id is not None:
            state.emit(Accepted(id, entry.index, entry.term))
        self.replication.follow_membership()
        self.replication.send_all()

    def _count(self) -> None:
        """Commit what a majority of voters has durably, if it is of this term."""
        state = self._state
        reached = {node: peer.match_index for node, peer in self.replication.peers.items()}
        reached[state.node] = state.log.durable
        index = majority_commit(state.membership.voters, reached)
        if index <= state.commit or state.log.term_at(index) != state.term:
            return
        state.commit_to(index)
        self.replication.follow_membership()
        self.replication.send_all()
        if self._reads.begin():
            self._send_round()
        self._confirm_reads()
        if not state.is_voter and state.memberships.index <= state.commit:
            self.resign()
            state.follow(state.term, None)

    # ---- reads

    def _send_round(self) -> None:
        self.replication.send_round(self._reads.round)
        self._confirm_reads()

    def _confirm_reads(self) -> None:
        if not self._reads.waiting:
            return
        answered = {node: peer.round for node, peer in self.replication.peers.items()}
        answered[self._state.node] = self._reads.round
        if self._reads.confirm(majority_commit(self._state.membership.voters, answered)):
            self._send_round()

    # ---- handing over

    def _offer_office(self, node: str) -> None:
        """If `node` is to lead and has the whole log, tell it to stand for election."""
        if self._transfer is None or self._transfer[0].to != node:
            return
        if self.replication.peers[node].match_index == self._state.log.last_index:
            self._state.send(node, TimeoutNow(**self._state.heading))

    # ---- refusals

    def _why_busy(self) -> str:
        return f"the leadership is being handed to {self._transfer[0].to}" if self._transfer else ""

    def _why_too_much(self, size_bytes: int) -> str:
        log, commit = self._state.log, self._state.commit
        if size_bytes > COMMAND_LIMIT_BYTES:
            return f"the command has {size_bytes} bytes; {COMMAND_LIMIT_BYTES} are allowed"
        if log.last_index - commit >= UNCOMMITTED_LIMIT:
            return f"{UNCOMMITTED_LIMIT} entries wait to be committed already"
        waiting_bytes = log.size_bytes(commit + 1, log.last_index)
        if waiting_bytes + size_bytes > UNCOMMITTED_BYTES:
            return f"commands of {waiting_bytes} bytes wait to be committed already"
        return ""

    def _why_no_change(self, change: Change) -> str:
        state = self._state
        if state.memberships.index > state.commit:
            return f"the change at entry {state.memberships.index} is not committed yet; one is made at a time"
        if state.log.term_at(state.commit) != state.term:
            return "this leader has not committed an entry of its term yet"
        peer = self.replication.peers.get(change.node)
        behind = max(0, state.commit - peer.match_index) if peer else 0
        return config.why_refuse(state.membership, change, behind, self.replication.in_contact)

    def _why_no_transfer(self, to: str) -> str:
        if to == self._state.node:
            return f"{to} is the leader already"
        if to not in self._state.membership.voters:
            return f"{to} is not a voter"
        return "" if self.replication.in_contact(to) else f"{to} does not answer"
