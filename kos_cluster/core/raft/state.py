"""What one node knows, and the effects of the step that it is in.

The parts of the machine share this value. Each step (one event or tick) changes it and says things through it. `flush`
then closes the step: at most one Persist holds everything that must become durable, and it comes first.

Rules: every message waits for the write that holds the term and vote it was sent under; an acknowledgement waits for
the last write of the log besides. Entries are applied, in order, once they are committed and durable here: what a node
has shown to its readers, it still has after a crash. An entry that is not understood is never passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypedDict

from kos_cluster.core.raft import config
from kos_cluster.core.raft.events import (
    Apply,
    Effect,
    Halt,
    Ignored,
    MembershipChanged,
    Persist,
    Refused,
    RestoreSnapshot,
    RoleChanged,
    Send,
)
from kos_cluster.core.raft.log import SNAPSHOT_LIMIT_BYTES, Log
from kos_cluster.core.raft.messages import WIRE_VERSION, Message
from kos_cluster.core.raft.values import (
    ENTRY_VERSION,
    Entry,
    HardState,
    Kind,
    Membership,
    Restored,
    Role,
    Snapshot,
    Timing,
)
from kos_cluster.errors import StateError


class Heading(TypedDict):
    """The fields that begin every message."""

    group: str
    term: int
    version: int


class State:
    """A node of a group."""

    def __init__(self, node: str, group: str, restored: Restored, random: Random, now: float, timing: Timing) -> None:
        self.node, self.group, self.timing, self.now = node, group, timing, now
        self.term, self.voted_for = restored.hard_state.term, restored.hard_state.voted_for
        self.role, self.leader = Role.FOLLOWER, None  # type: Role, str | None
        self.log = Log(restored)
        self.commit = max(restored.hard_state.commit, self.log.base_index, _index_of(restored.snapshot))
        if self.commit > self.log.last_index:
            raise StateError(
                f"The log ends at entry {self.log.last_index}, but {self.commit} entries are known to be committed.",
                "Remove this node from the cluster and join again.",
            )
        self.applied = 0
        self.halted = ""  # why the machine does nothing any more
        self.memberships = _history(self.log)
        self.heard_leader_s = float("-inf")
        self.election_due_s = now
        self.written = 0  # the last write known to be durable
        self.hard_write = 0  # the write that holds the present term and vote
        self.log_write = 0  # the last write that holds a change of the log
        self._random = random
        self._writes = 0  # numbers given out
        self._effects: list[Effect] = []
        self._changed_from: int | None = None  # the first entry that changed in this step
        self._snapshot: Snapshot | None = None  # a snapshot that came in this step
        self._reset = False  # the log was replaced in this step
        self._restoring: tuple[int, Snapshot] | None = None  # a snapshot to restore once its write is durable
        if self.log.snapshot is not None:
            self._restoring = (0, self.log.snapshot)
        self._told: tuple[Role, int, str | None] = (self.role, self.term, self.leader)
        self._membership_told = self.memberships.index
        self.restart_timer()
        if self.membership.voters == (node,):
            self.election_due_s = now  # there is nobody else to wait for

    # ---- what follows from it

    @property
    def membership(self) -> Membership:
        return self.memberships.current

    @property
    def is_voter(self) -> bool:
        return self.node in self.membership.voters

    @property
    def may_stand(self) -> bool:
        """A voter, or one until a change that is not committed: it may alone have that entry (thesis 4.2.2)."""
        memberships = self.memberships
        return self.is_voter or (memberships.index > self.commit and self.node in memberships.previous.voters)

    @property
    def hears_leader(self) -> bool:
        """A leader was heard so lately that no election is due."""
        return self.role is Role.LEADER or (
            self.leader is not None and self.now < self.heard_leader_s + self.timing.election_min_s
        )

    @property
    def heading(self) -> Heading:
        return {"group": self.group, "term": self.term, "version": WIRE_VERSION}

    # ---- saying

    def send(self, to: str, message: Message, after: int = 0) -> None:
        self._effects.append(Send(to, message, max(after, self.hard_write)))

    def emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def ignore(self, sender: str, why: str) -> None:
        self._effects.append(Ignored(sender, why))

    def refuse(self, id: int, reason: str) -> None:
        self._effects.append(Refused(id, reason, self.leader))

    # ---- changing

    def restart_timer(self) -> None:
        """The next election is a random time away; a learner, which stands in none, waits longer to miss its leader."""
        timing = self.timing
        self.election_due_s = self.now + self._random.uniform(timing.election_min_s, timing.election_max_s)
        if not self.may_stand:
            self.election_due_s += timing.learner_heartbeat_s

    def follow(self, term: int, leader: str | None) -> None:
        """Be a follower in this term, which is never an older one."""
        if term > self.term:
            self.enter_term(term, None)
        if self.role is Role.LEADER:
            self.restart_timer()
        self.role, self.leader = Role.FOLLOWER, leader

    def enter_term(self, term: int, vote: str | None) -> None:
        self.term, self.voted_for = term, vote
        self.hard_write = self._writes + 1

    def vote(self, candidate: str) -> None:
        if self.voted_for != candidate:
            self.voted_for = candidate
            self.hard_write = self._writes + 1

    def append(self, entries: Sequence[Entry]) -> None:
        """Put these into the log, in place of what is at and after the first of them."""
        first = entries[0].index
        if first <= self.log.last_index:
            self.memberships.truncate(first)
        self.log.append(entries)
        for entry in entries:
            membership = config.decode(entry.data) if entry.kind == Kind.CONFIG else None
            if membership is not None:
                self.memberships.append(entry.index, membership)
        self._changed_from = min(first, self._changed_from or first)
        self.log_write = self._writes + 1

    def commit_to(self, index: int) -> None:
        """Everything up to `index` is committed."""
        self.commit = max(self.commit, min(index, self.log.last_index))

    def compact(self, index: int, data: bytes) -> str:
        """Put a snapshot in place of the entries up to `index`; returns why not, or ""."""
        if not _index_of(self.log.snapshot) < index <= self.applied:
            return f"a snapshot at {index} is of no use: {self.applied} entries are applied"
        if len(data) > SNAPSHOT_LIMIT_BYTES:
            return f"a snapshot of {len(data)} bytes cannot travel; {SNAPSHOT_LIMIT_BYTES} are allowed"
        term = self.log.term_at(index)
        assert term is not None  # since it lies between the snapshot and what is applied
        self._snapshot = Snapshot(index, term, self.memberships.at(index), data)
        self.log.compact(self._snapshot)
        self.memberships.compact(index)
        return ""

    def install(self, snapshot: Snapshot) -> None:
        """Put a snapshot of the leader's in place of the whole log."""
        self.log.reset(snapshot)
        self.memberships = config.MembershipHistory(snapshot.index, snapshot.membership)
        self.commit = snapshot.index
        self._snapshot, self._reset, self._changed_from = snapshot, True, None
        self.log_write = self._writes + 1
        self._restoring = (self.log_write, snapshot)

    def persisted(self, number: int) -> None:
        """All writes up to `number` are durable."""
        self.written = max(self.written, min(number, self._writes))
        self.log.written(self.written)

    def halt(self, reason: str) -> None:
        self.halted = reason
        self.role, self.leader = Role.FOLLOWER, None
        self.emit(Halt(reason))

    # ---- the end of a step

    def flush(self) -> list[Effect]:
        """Everything that this step came to, in the order in which it is to be carried out."""
        self._apply()
        if self.memberships.index != self._membership_told:
            self._membership_told = self.memberships.index
            self.emit(MembershipChanged(self.membership, self.memberships.index))
        if (self.role, self.term, self.leader) != self._told:
            self._told = (self.role, self.term, self.leader)
            self.emit(RoleChanged(*self._told))
        effects, self._effects = self._effects, []
        if max(self.hard_write, self.log_write) > self._writes or self._snapshot is not None:
            effects.insert(0, self._persist())
        return effects

    def _persist(self) -> Persist:
        self._writes += 1
        log = self.log
        entries = () if self._changed_from is None else tuple(log.between(self._changed_from, log.last_index))
        log.writing(self._writes)
        persist = Persist(
            self._writes,
            HardState(self.term, self.voted_for, self.commit),
            log.first_index,
            entries,
            self._snapshot,
            self._reset,
        )
        self._changed_from, self._snapshot, self._reset = None, None, False
        return persist

    def _apply(self) -> None:
        if self.halted:
            return
        if self._restoring is not None:
            number, snapshot = self._restoring
            if number > self.written:
                return
            self._restoring, self.applied = None, snapshot.index
            self.emit(RestoreSnapshot(snapshot))
        last = min(self.commit, self.log.durable)
        if last <= self.applied:
            return
        entries = self.log.between(self.applied + 1, last)
        known = next((place for place, entry in enumerate(entries) if not is_known(entry)), len(entries))
        if known:
            self.applied += known
            self.emit(Apply(tuple(entries[:known])))
        if known < len(entries):
            self.halt(why_strange(entries[known]))


def is_known(entry: Entry) -> bool:
    """This code can apply the entry."""
    if entry.version > ENTRY_VERSION or entry.kind not in tuple(Kind):
        return False
    return entry.kind != Kind.CONFIG or config.decode(entry.data) is not None


def why_strange(entry: Entry) -> str:
    """What to tell of an entry that is not known."""
    return (
        f"Entry {entry.index} of the log is of version {entry.version} ({entry.kind}); this version of KOS "
        f"knows entries up to version {ENTRY_VERSION}. Upgrade KOS on this node and start it again."
    )


def _index_of(snapshot: Snapshot | None) -> int:
    return snapshot.index if snapshot else 0


def _history(log: Log) -> config.MembershipHistory:
    snapshot = log.snapshot
    history = config.MembershipHistory(_index_of(snapshot), snapshot.membership if snapshot else Membership())
    for entry in log.between(_index_of(snapshot) + 1, log.last_index):
        membership = config.decode(entry.data) if entry.kind == Kind.CONFIG else None
        if membership is not None:
            history.append(entry.index, membership)
    return history
