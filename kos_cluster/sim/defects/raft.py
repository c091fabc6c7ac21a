"""Defects of Raft, of the order of its effects, and of what it finds on a disk.

Each is a function in place of one of the product's, kept as short as the mistake is; the table at the end plants them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kos_cluster.core import ordering
from kos_cluster.core.raft import config, elections, events, following, leadership, machine, reads, state
from kos_cluster.core.raft import log as raft_log
from kos_cluster.core.raft import messages as m
from kos_cluster.core.raft.quorum import majority_commit
from kos_cluster.core.raft.replication import Replication
from kos_cluster.core.raft.values import Role, Snapshot
from kos_cluster.sim.defects import Mutant
from kos_cluster.sim.disk import Disk

_NETWORK = ("loss", "double", "delay", "stray", "partition", "oneway")
_CRASHES = ("crash", "disk", "pause", "partition")
_VOTERS = ("voters", "transfer", "partition", "crash", "delay")

# ---- what leaves before it is durable


def _answer_at_once(self: Any, to: str, term: int, granted: bool, pre: bool) -> None:
    answer = m.VoteResponse(group=self._state.group, term=term, version=m.WIRE_VERSION, granted=granted, pre=pre)
    self._state.emit(events.Send(to, answer, 0))


def _acknowledge_at_once(self: Any, to: str, index: int) -> None:
    self._state.send(to, m.AppendResponse(**self._state.heading, index=index))


def _take_and_release(self: Any, effects: Any) -> Any:
    released = [msgspec.structs.replace(e, after=0) if isinstance(e, events.Send) else e for e in effects]
    return _TAKE(self, released)


_TAKE = ordering.Ordering.take
_MERGE = ordering.merge


def _merge_forgetting_votes(earlier: events.Persist, later: events.Persist) -> events.Persist:
    return msgspec.structs.replace(_MERGE(earlier, later), hard_state=earlier.hard_state)


def _merge_without_cutting(earlier: events.Persist, later: events.Persist) -> events.Persist:
    merged = _MERGE(earlier, later)
    return msgspec.structs.replace(merged, entries=later.entries or earlier.entries)


def _load_torn(self: Any) -> Any:
    torn, self.torn = self.torn, None
    if torn is not None:
        self.kept.take(torn)
    return self.kept.restored()


def _apply_undurable(self: Any) -> None:
    durable, self.log.durable = self.log.durable, self.log.last_index
    _APPLY(self)
    self.log.durable = durable


_APPLY = state.State._apply

# ---- elections


def _tick_without_pre_vote(self: Any) -> None:
    if self._state.role is not Role.LEADER and self._state.now >= self._state.election_due_s:
        if self._state.is_voter:
            self._campaign(transfer=False)
        else:
            self._state.restart_timer()


def _count_any_vote(self: Any, sender: str, response: m.VoteResponse) -> None:
    if self._state.role is Role.CANDIDATE and response.granted and not response.pre:
        self._votes[sender] = True
        self._count()
    else:
        _ANSWERED(self, sender, response)


def _count_pre_votes_as_votes(self: Any, sender: str, response: m.VoteResponse) -> None:
    if self._state.role is Role.CANDIDATE and response.pre:
        response = msgspec.structs.replace(response, pre=False)
    _ANSWERED(self, sender, response)


_ANSWERED = elections.Elections.answered


def _vote_again(self: Any, candidate: str, request: m.VoteRequest) -> Any:
    if not self._state.log.is_covered_by(request.last_index, request.last_term):
        return False
    return request.term > self._state.term if request.pre else request.term == self._state.term


def _up_to_date(self: Any, last_index: int, last_term: int) -> bool:
    return True


# ---- old terms


def _hear_old_leader(self: Any, sender: str, message: Any) -> None:
    if isinstance(message, (m.Append, m.Heartbeat)) and self._state.role is not Role.LEADER:
        self._hear_leader(sender, msgspec.structs.replace(message, term=self._state.term))


def _count_old_answers(self: Any, sender: str, message: Any) -> None:
    if isinstance(message, m.AppendResponse):
        self._answer(sender, message)
    else:
        _STALE(self, sender, message)


_STALE = machine.Raft._stale

# ---- commitment


def _count_all(self: Any, own: int, any_term: bool, members: bool) -> None:
    node_state = self._state
    reached = {node: peer.match_index for node, peer in self.replication.peers.items()}
    reached[node_state.node] = own
    membership = node_state.membership
    index = majority_commit(membership.members if members else membership.voters, reached)
    if index <= node_state.commit or (not any_term and node_state.log.term_at(index) != node_state.term):
        return
    node_state.commit_to(index)
    self.replication.send_all()
    if self._reads.begin():
        self._send_round()
    self._confirm_reads()


def _count_own_unwritten(self: Any) -> None:
    _count_all(self, self._state.log.last_index, False, False)


def _count_old_terms(self: Any) -> None:
    _count_all(self, self._state.log.durable, True, False)


def _count_learners(self: Any) -> None:
    _count_all(self, self._state.log.durable, False, True)


def _beat_with_any_commit(self: Any, node: str, peer: Any) -> None:
    node_state, timing = self._state, self._state.timing
    peer.beat_due_s = node_state.now + timing.heartbeat_s
    peer.commit_told = node_state.commit
    node_state.send(node, m.Heartbeat(**node_state.heading, commit=node_state.commit, round=self.round))


def _beaten_into_committing(self: Any, sender: str, message: m.Heartbeat) -> None:
    self._state.commit_to(message.commit)
    self._state.send(sender, m.HeartbeatResponse(**self._state.heading, round=message.round))


def _commit_exactly(self: Any, index: int) -> None:
    self.commit = min(index, self.log.last_index)


# ---- followers


def _append(self: Any, sender: str, message: m.Append, cut_always: bool) -> None:
    node_state = self._state
    log = node_state.log
    if message.prev_index > log.last_index or message.prev_index < log.base_index:
        self._reject(sender, message)
        return
    if cut_always and log.term_at(message.prev_index) != message.prev_term:
        self._reject(sender, message)
        return
    new = [entry for entry in message.entries if cut_always or log.term_at(entry.index) != entry.term]
    if new:
        node_state.append(list(message.entries[message.entries.index(new[0]) :]))
    last = message.prev_index + len(message.entries)
    node_state.commit_to(min(message.commit, last))
    self._acknowledge(sender, last)


def _append_cutting(self: Any, sender: str, message: m.Append) -> None:
    _append(self, sender, message, True)


def _append_unchecked(self: Any, sender: str, message: m.Append) -> None:
    _append(self, sender, message, False)


# ---- voters, snapshots, quorums, reads


def _any_change(self: Any, change: events.Change) -> str:
    if self._state.log.term_at(self._state.commit) != self._state.term:
        return "no entry of this term is committed"
    return config.why_refuse(self._state.membership, change, 0, self.replication.in_contact)


def _change_at_once(self: Any, change: events.Change) -> str:
    if self._state.memberships.index > self._state.commit:
        return "one is open"
    return config.why_refuse(self._state.membership, change, 0, self.replication.in_contact)


def _compact_with_latest(self: Any, index: int, data: bytes) -> str:
    term = self.log.term_at(index)
    if term is None or not (self.log.snapshot.index if self.log.snapshot else 0) < index <= self.applied:
        return "of no use"
    self._snapshot = Snapshot(index, term, self.memberships.current, data)
    self.log.compact(self._snapshot)
    self.memberships.compact(index)
    return ""


def _install_without_membership(self: Any, snapshot: Snapshot) -> None:
    memberships = self.memberships
    _INSTALL(self, snapshot)
    self.memberships = memberships


_INSTALL = state.State.install


def _lead_without_quorum(self: Any) -> None:
    self.replication.tick()


def _now(self: Any) -> Any:
    return self._state.now


def _read_at_once(self: Any, id: int, source: str | None) -> bool:
    if source is None:
        self._state.emit(events.ReadReady(id, self._state.commit))
    else:
        self._state.send(source, m.ReadResponse(**self._state.heading, id=id, index=self._state.commit))
    return False


def _read_before_own_commit(self: Any, id: int, source: str | None) -> Any:
    self._next.append(((id, source), self._state.commit))
    return self._advance()


RAFT: dict[str, Mutant] = {
    "vote-not-durable": Mutant(
        "a vote leaves before it is durable", ((elections.Elections, "_answer", _answer_at_once),), _CRASHES
    ),
    "ack-not-durable": Mutant(
        "entries are acknowledged before they are durable",
        ((following.Following, "_acknowledge", _acknowledge_at_once),),
        _CRASHES,
    ),
    "ordering-releases": Mutant(
        "the ordering withholds nothing", ((ordering.Ordering, "take", _take_and_release),), _CRASHES
    ),
    "merge-forgets-vote": Mutant(
        "of two writes made one, the older term and vote are kept",
        ((ordering, "merge", _merge_forgetting_votes),),
        _CRASHES,
    ),
    "merge-drops-entries": Mutant(
        "of two writes made one, only the later entries are kept",
        ((ordering, "merge", _merge_without_cutting),),
        _CRASHES,
    ),
    "torn-tail-believed": Mutant(
        "a starting node believes a torn write", ((Disk, "load", _load_torn),), ("crash", "partition")
    ),
    "apply-not-durable": Mutant(
        "entries are applied before they are durable here", ((state.State, "_apply", _apply_undurable),), _CRASHES
    ),
    "no-pre-vote": Mutant(
        "a node that hears nobody raises its term at once",
        ((elections.Elections, "tick", _tick_without_pre_vote),),
        ("partition",),
    ),
    "votes-across-terms": Mutant(
        "votes of earlier terms count",
        ((elections.Elections, "answered", _count_any_vote),),
        ("delay", "delay", "stray", "pause"),
    ),
    "pre-votes-as-votes": Mutant(
        "promises to vote count as votes",
        ((elections.Elections, "answered", _count_pre_votes_as_votes),),
        (*_NETWORK, "pause", "crash"),
    ),
    "votes-twice": Mutant(
        "a node votes for two in one term",
        ((elections.Elections, "_would_vote", _vote_again),),
        (*_NETWORK, "pause", "crash"),
    ),
    "votes-for-any-log": Mutant(
        "a node votes for one whose log is behind its own",
        ((raft_log.Log, "is_covered_by", _up_to_date),),
        _CRASHES,
    ),
    "old-leader-heard": Mutant(
        "messages of a leader of an earlier term are taken",
        ((machine.Raft, "_stale", _hear_old_leader),),
        (*_NETWORK, "pause"),
    ),
    "answers-across-terms": Mutant(
        "acknowledgements of an earlier term count",
        ((machine.Raft, "_stale", _count_old_answers),),
        ("stray", "stray", "transfer", "pause", "loss"),
    ),
    "counts-own-unwritten": Mutant(
        "the leader counts itself before its disk has the entry",
        ((leadership.Leadership, "_count", _count_own_unwritten),),
        ("disk", "crash"),
    ),
    "commits-old-terms": Mutant(
        "an entry of an earlier term is committed by counting",
        ((leadership.Leadership, "_count", _count_old_terms),),
        _CRASHES,
    ),
    "counts-learners": Mutant(
        "learners count towards a commit", ((leadership.Leadership, "_count", _count_learners),), _VOTERS
    ),
    "heartbeats-commit": Mutant(
        "a heartbeat commits what the follower is not known to share",
        (
            (Replication, "_send_heartbeat", _beat_with_any_commit),
            (following.Following, "heartbeat", _beaten_into_committing),
        ),
        _CRASHES,
    ),
    "commit-goes-back": Mutant(
        "a late message takes back what is committed", ((state.State, "commit_to", _commit_exactly),), _NETWORK
    ),
    "append-cuts": Mutant(
        "a late append cuts off what came after it",
        ((following.Following, "append", _append_cutting),),
        _NETWORK,
    ),
    "append-unchecked": Mutant(
        "the entry before an append need not agree",
        ((following.Following, "append", _append_unchecked),),
        _CRASHES,
    ),
    "two-voter-changes": Mutant(
        "a change of voters begins while one is open",
        ((leadership.Leadership, "_why_no_change", _any_change),),
        _VOTERS,
    ),
    "early-voter-change": Mutant(
        "a leader changes voters before it has committed in its term",
        ((leadership.Leadership, "_why_no_change", _change_at_once),),
        _VOTERS,
    ),
    "snapshot-latest-voters": Mutant(
        "a snapshot takes the voters of the log's end",
        ((state.State, "compact", _compact_with_latest),),
        ("voters", "delay", "disk"),
    ),
    "snapshot-forgets-voters": Mutant(
        "an installed snapshot leaves the voters as they were",
        ((state.State, "install", _install_without_membership),),
        ("voters", "partition", "crash", "oneway"),
    ),
    "no-check-quorum": Mutant(
        "a leader that nobody answers goes on leading",
        (
            (leadership.Leadership, "tick", _lead_without_quorum),
            (leadership.Leadership, "_quorum_heard_s", _now),
        ),
        ("partition", "oneway"),
    ),
    "read-without-round": Mutant(
        "a leader answers reads without asking whether it still leads",
        ((reads.LeaderReads, "add", _read_at_once),),
        ("partition", "oneway", "pause"),
    ),
    "read-before-commit": Mutant(
        "a new leader answers reads before it has committed in its term",
        ((reads.LeaderReads, "add", _read_before_own_commit),),
        ("transfer", "disk", "delay"),
    ),
}
