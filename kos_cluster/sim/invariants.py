"""What must be true of Raft after every event, whatever has failed.

Theory of operation. The rules watch every machine from outside: what it was given, returned, sent, made durable,
applied. From the writes that it returned they keep a copy of its log, and one record for the whole world of what was
ever appended, voted and committed. Each event changes little, so each check looks at little:

    rule                     checked when                  against
    election safety          a node becomes leader         the leader that the term has
    elections                a (pre-)candidate wins        votes that were delivered to it in this term, its own durable
    leader completeness      a node becomes leader         the last entry that earlier terms committed
    log matching             entries are appended          the entry, and the term before it, first seen there
    durable before said      a message leaves              the sender's disk: term, vote, log
                             an entry is applied           the same
    commit                   the world's commit advances   the leader's term, and the disks of a majority
                             a late answer comes           what its sender acknowledged in this term
    state-machine safety     commit, apply, restore        the entry first committed, the reply or state there
    monotony                 after every event             the node's term and commit before
    voter changes            a leader appends one          the change before it is committed; quorums overlap
                             a membership comes in force   the latest in the node's log
    check-quorum             a leader ticks                whom it heard of late
    honest peers             a message is ignored          no member sends what is impossible

A violation is an exception; the run ends with it. After Ongaro's "Consensus: Bridging Theory and Practice" (figure 3.2
and chapters 4 and 6). The chain of (term before, entry) by induction is the log matching property of the whole log.

Rules: nothing here changes a machine. A world runs the same with and without its rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from kos_cluster.core.raft import events, messages
from kos_cluster.core.raft.values import Entry, Kind, Membership, Restored, Role, Snapshot, Timing
from kos_cluster.sim.disk import Log, holds

if TYPE_CHECKING:
    from kos_cluster.sim.replica import Replica

SILENT_LIMIT_S = 2.5 * Timing().election_max_s  # a leader that no quorum answered for so long must have stepped down
_membership = msgspec.msgpack.Decoder(Membership)


class Violation(Exception):
    """An invariant does not hold. `rule` is its name."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class _View:
    """What the rules know of one life of one node."""

    def __init__(self, restored: Restored, now: float) -> None:
        self.log = Log(restored)
        self.term = restored.hard_state.term
        self.commit = 0
        self.led_term = 0
        self.votes: tuple[int, set[str]] = (0, set())
        self.pre_votes: tuple[int, set[str]] = (0, set())
        self.acked: tuple[int, dict[str, int]] = (0, {})  # as leader of a term: what each acknowledged in it
        self.late_answer = ""  # who has just answered what it was sent in an earlier term
        self.told_to_stand = 0  # in which term a leader asked it to
        self.heard: dict[str, float] = {}
        self.leads_since = now
        self.write_failed = False


def majority(voters: Sequence[str]) -> int:
    """How many of these voters are a quorum."""
    return len(voters) // 2 + 1


class RaftRules:
    """The rules of one world's group."""

    def __init__(self, replicas: dict[str, Replica]) -> None:
        self._replicas = replicas
        self._views: dict[str, _View] = {}
        self.leaders: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        self._appended: dict[tuple[int, int], tuple[int | None, Entry]] = {}
        self.committed: dict[int, Entry] = {}
        self.frontier = 0  # the last index that anybody knows to be committed
        self._committed_in: dict[int, int] = {}  # leader's term -> the last index that it committed
        self._promised: dict[str, int] = {}  # node -> the highest term that it has spoken in
        self._replies: dict[int, Any] = {}
        self._states: dict[int, bytes] = {}
        self._changed = False  # somebody became, or ceased to be, a member: strangers may speak now

    # ---- what happens

    def booted(self, replica: Replica, restored: Restored) -> None:
        name = replica.host.name
        if restored.hard_state.term < self._promised.get(name, 0):
            raise Violation(
                "durable before said",
                f"{name} starts in term {restored.hard_state.term} but spoke in {self._promised[name]}",
            )
        self._views[name] = _View(restored, replica.host.now)

    def received(self, replica: Replica, sender: str, message: messages.Message) -> None:
        view = self._views[replica.host.name]
        view.heard[sender] = replica.host.now
        if isinstance(message, messages.VoteResponse) and message.granted:
            term, voters = view.pre_votes if message.pre else view.votes
            if message.term > term:
                voters = set()
            if message.term >= term:
                voters.add(sender)
                if message.pre:
                    view.pre_votes = (message.term, voters)
                else:
                    view.votes = (message.term, voters)
        elif isinstance(message, messages.AppendResponse):
            self._acknowledged(replica, view, sender, message)
        elif isinstance(message, messages.TimeoutNow):
            view.told_to_stand = message.term

    def returned(self, replica: Replica, effects: Sequence[events.Effect]) -> None:
        """What the machine answered, before it is put in order."""
        for effect in effects:
            if isinstance(effect, events.Persist):
                self._persist(replica, effect)
            elif isinstance(effect, events.RoleChanged):
                self._role_changed(replica, effect)
            elif isinstance(effect, (events.MembershipChanged, events.RestoreSnapshot)):
                self._in_force(replica)
            elif isinstance(effect, events.Ignored) and not self._changed and effect.sender != replica.host.name:
                # Its own snapshot may come too late: one of the leader's is on its way to the disk.
                raise Violation("honest peers", f"{replica.host.name} ignored {effect.sender}: {effect.why}")
        raft = replica.raft
        if raft is None:
            return
        view = self._views[replica.host.name]
        if view.late_answer:
            self._uncounted(replica, view)
        if raft.term != view.term:
            if raft.term < view.term:
                raise Violation("monotony", f"{replica.host.name} went from term {view.term} to {raft.term}")
            view.term = raft.term
        if raft.commit != view.commit:
            self._commit(replica, view, raft.commit)

    def sent(self, replica: Replica, send: events.Send) -> None:
        message = send.message
        kept = replica.disk.kept
        name = replica.host.name
        if getattr(message, "pre", False):
            return
        term = message.term
        if term > kept.hard_state.term:
            raise Violation(
                "durable before said",
                f"{name} spoke in term {term} while its disk holds term {kept.hard_state.term}: {message}",
            )
        if term > self._promised.get(name, 0):
            self._promised[name] = term
        if isinstance(message, messages.AppendResponse) and not message.rejected:
            # One of an earlier term may have been overtaken on the disk, within one batch, by what a newer leader cut.
            if term == kept.hard_state.term and kept.last < message.index:
                raise Violation(
                    "durable before said",
                    f"{name} says that it has entry {message.index} while its disk ends at {kept.last}",
                )
        elif isinstance(message, messages.VoteResponse) and message.granted:
            self._vote(replica, term, send.to)
        elif isinstance(message, messages.VoteRequest):
            self._vote(replica, term, name)

    def applied(self, replica: Replica, entry: Entry, reply: Any) -> None:
        known = self.committed.get(entry.index)
        name = replica.host.name
        if not holds(replica.disk.kept, entry.index, entry.term):
            raise Violation("durable before said", f"{name} applied {entry.index}, which its disk does not hold")
        if known is None:
            self._check_known(name, entry)
        elif known is not entry and known != entry:
            raise Violation("state-machine safety", f"{name} applied {entry}, others committed {known}")
        first = self._replies.setdefault(entry.index, reply)
        if first is not reply and first != reply:
            raise Violation(
                "state-machine safety", f"entry {entry.index} gave {reply} at {name} and {first} where it came first"
            )

    def compacted(self, replica: Replica, index: int, data: bytes) -> None:
        first = self._states.setdefault(index, data)
        if first != data:
            raise Violation("state-machine safety", f"{replica.host.name} has another state after entry {index}")

    def restored(self, replica: Replica, snapshot: Snapshot) -> None:
        name = replica.host.name
        if self._states.get(snapshot.index) != snapshot.data:
            raise Violation("state-machine safety", f"{name} restored a state at {snapshot.index} that nobody had")
        if snapshot.membership != self.membership_at(snapshot.index):
            raise Violation(
                "voter changes",
                f"{name} restored {snapshot.membership} at {snapshot.index}; the log says "
                f"{self.membership_at(snapshot.index)}",
            )
        if snapshot.index < replica.applied.index:
            raise Violation(
                "monotony", f"{name} restored {snapshot.index} after it had applied {replica.applied.index}"
            )

    def ticked(self, replica: Replica) -> None:
        """A leader that has not heard a quorum for long must have stepped down."""
        raft = replica.raft
        if raft is None or raft.role is not Role.LEADER:
            return
        now, name = replica.host.now, replica.host.name
        view = self._views[name]
        voters = raft.membership.voters
        late_s = now - SILENT_LIMIT_S
        if view.leads_since > late_s:
            return
        heard = sum(voter == name or view.heard.get(voter, 0.0) > late_s for voter in voters)
        if heard < majority(voters):
            raise Violation("check-quorum", f"{name} still leads term {raft.term}, but heard only {heard} of {voters}")

    def write_failed(self, replica: Replica) -> None:
        self._views[replica.host.name].write_failed = True

    def halted(self, replica: Replica, effect: events.Halt) -> None:
        if not self._views[replica.host.name].write_failed:
            raise Violation("halt", f"{replica.host.name} halted without cause: {effect.reason}")

    def membership_at(self, index: int) -> Membership | None:
        """What the committed log says at an index."""
        for at in range(index, 0, -1):
            entry = self.committed.get(at)
            if entry is not None and entry.kind is Kind.CONFIG:
                return _membership.decode(entry.data)
        return None

    # ---- the rules

    def _persist(self, replica: Replica, batch: events.Persist) -> None:
        view = self._views[replica.host.name]
        name = replica.host.name
        now, before = batch.hard_state, view.log.hard_state
        if now.term == before.term and before.voted_for not in (None, now.voted_for):
            raise Violation(
                "election safety",
                f"{name} changed its vote in term {now.term} from {before.voted_for} to {now.voted_for}",
            )
        if batch.entries:
            start = batch.entries[0].index
            for entry in batch.entries:
                if entry.index <= view.commit and view.log.term(entry.index) not in (entry.term, None):
                    raise Violation("log matching", f"{name} overwrites its committed entry {entry.index}")
            if not batch.reset and start > view.log.last + 1:
                raise Violation("log matching", f"{name} leaves a gap between {view.log.last} and {start}")
            term_before = view.log.term(start - 1)
            for entry in batch.entries:
                self._append(name, entry, term_before)
                term_before = entry.term
            if replica.raft is not None and replica.raft.role is Role.LEADER:
                self._voter_change(replica, view, batch)
        view.log.take(batch)
        if view.log.last < view.commit:
            raise Violation("log matching", f"{name} cuts its log at {view.log.last}, but had committed {view.commit}")

    def _append(self, name: str, entry: Entry, before: int | None) -> None:
        first = self._appended.get((entry.index, entry.term))
        if first is None:
            self._appended[entry.index, entry.term] = (before, entry)
            return
        if first[1] is not entry and first[1] != entry:
            raise Violation("log matching", f"{name} has {entry} where another node has {first[1]}")
        if before is None:
            return
        if first[0] is None:
            self._appended[entry.index, entry.term] = (before, entry)
        elif first[0] != before:
            raise Violation(
                "log matching",
                f"{name} has entry {entry.index} of term {entry.term} after one of term {before}, others after "
                f"one of term {first[0]}",
            )

    def _voter_change(self, replica: Replica, view: _View, batch: events.Persist) -> None:
        raft = replica.raft
        assert raft is not None
        for entry in batch.entries:
            if entry.kind is not Kind.CONFIG or entry.term != raft.term or view.log.term(entry.index) == entry.term:
                continue
            previous = self._last_config(view.log, entry.index)
            name = replica.host.name
            self._changed = True
            if previous is None:
                continue
            index, old = previous
            if index > raft.commit:
                raise Violation("voter changes", f"{name} appends one at {entry.index} while that at {index} is open")
            if view.log.term(raft.commit) != raft.term:
                raise Violation("voter changes", f"{name} appends one before it has committed in its term {raft.term}")
            new = _membership.decode(entry.data)
            everybody = set(old.voters) | set(new.voters)
            if not new.voters or majority(old.voters) + majority(new.voters) <= len(everybody):
                raise Violation("voter changes", f"quorums of {old.voters} and {new.voters} need not meet")

    def _in_force(self, replica: Replica) -> None:
        raft, name = replica.raft, replica.host.name
        assert raft is not None
        log = self._views[name].log
        latest = self._last_config(log, log.last + 1)
        if latest is not None and raft.membership != latest[1]:
            raise Violation("voter changes", f"{name} goes by {raft.membership}; its log says {latest[1]}")

    def _last_config(self, log: Log, before: int) -> tuple[int, Membership] | None:
        for index in range(before - 1, log.first - 1, -1):
            entry = log.entry(index)
            if entry is not None and entry.kind is Kind.CONFIG:
                return index, _membership.decode(entry.data)
        if log.snapshot is not None:
            return log.snapshot.index, log.snapshot.membership
        return None

    def _vote(self, replica: Replica, term: int, candidate: str) -> None:
        name = replica.host.name
        hard = replica.disk.kept.hard_state
        if hard.term == term and hard.voted_for != candidate:
            raise Violation(
                "durable before said", f"{name} votes for {candidate} in term {term}; its disk says {hard.voted_for}"
            )
        first = self._votes.setdefault((name, term), candidate)
        if first != candidate:
            raise Violation("election safety", f"{name} votes for {candidate} and {first} in term {term}")

    def _role_changed(self, replica: Replica, effect: events.RoleChanged) -> None:
        view = self._views[replica.host.name]
        if effect.role is Role.CANDIDATE:
            self._stands(replica, view, effect.term)
        elif effect.role is Role.LEADER and view.led_term != effect.term:
            view.led_term = effect.term
            view.leads_since = replica.host.now
            self._elected(replica, view, effect.term)

    def _stands(self, replica: Replica, view: _View, term: int) -> None:
        """Nobody raises the term without hope: a majority said before that it would vote, or the leader asked."""
        raft, name = replica.raft, replica.host.name
        assert raft is not None
        voters = raft.membership.voters
        if view.told_to_stand == term - 1:
            return
        hopes = view.pre_votes[1] if view.pre_votes[0] == term else set()
        granted = sum(voter == name or voter in hopes for voter in voters)
        if granted < majority(voters):
            raise Violation("elections", f"{name} stands in term {term} with only {granted} pre-votes of {voters}")

    def _elected(self, replica: Replica, view: _View, term: int) -> None:
        raft, name = replica.raft, replica.host.name
        assert raft is not None
        first = self.leaders.setdefault(term, name)
        if first != name:
            raise Violation("election safety", f"{name} and {first} both lead term {term}")
        voters = raft.membership.voters
        granted = view.votes[1] if view.votes[0] == term else set()
        hard = replica.disk.kept.hard_state
        own = name in voters and (hard.term, hard.voted_for) == (term, name)
        count = own + sum(voter != name and voter in granted for voter in voters)
        if count < majority(voters):
            raise Violation("elections", f"{name} leads term {term} with only {count} votes of {voters}")
        earlier = [index for in_term, index in self._committed_in.items() if in_term < term]
        last = max(earlier, default=0)
        if last and not holds(view.log, last, self.committed[last].term):
            raise Violation("leader completeness", f"{name} leads term {term} without the committed entry {last}")

    def _commit(self, replica: Replica, view: _View, commit: int) -> None:
        name = replica.host.name
        if commit < view.commit:
            raise Violation("monotony", f"{name} went back from commit {view.commit} to {commit}")
        if commit > self.frontier:
            self._advance(replica, view, commit)
        for index in range(view.commit + 1, commit + 1):
            entry = view.log.entry(index)
            if entry is None:
                continue
            known = self.committed.setdefault(index, entry)
            if known is not entry and known != entry:
                raise Violation("state-machine safety", f"{name} committed {entry}, others {known}")
        view.commit = commit

    def _advance(self, replica: Replica, view: _View, commit: int) -> None:
        """Somebody is the first to know a commit: the leader, by counting."""
        raft, name = replica.raft, replica.host.name
        assert raft is not None
        if self.frontier == 0:  # the founding entry, by decree
            self.frontier = commit
            return
        if self.leaders.get(raft.term) != name:  # it may have stepped down with this very commit
            raise Violation("commit", f"{name}, no leader of term {raft.term}, is the first to commit {commit}")
        entry = view.log.entry(commit)
        if entry is None or entry.term != raft.term:
            raise Violation("commit", f"{name} commits {entry} of an earlier term by counting in term {raft.term}")
        voters = raft.membership.voters
        count = sum(holds(self._replicas[voter].disk.kept, commit, entry.term) for voter in voters)
        if count < majority(voters):
            raise Violation("commit", f"{name} commits {commit} that only {count} of {voters} have on their disks")
        self.frontier = commit
        self._committed_in[raft.term] = commit

    def _acknowledged(self, replica: Replica, view: _View, sender: str, message: messages.AppendResponse) -> None:
        raft = replica.raft
        if raft is None or raft.role is not Role.LEADER or message.term > raft.term:
            return
        if view.acked[0] != raft.term:
            view.acked = (raft.term, {})
        if message.term < raft.term:
            view.late_answer = sender
        elif not message.rejected:
            view.acked[1][sender] = max(view.acked[1].get(sender, 0), message.index)

    def _uncounted(self, replica: Replica, view: _View) -> None:
        """An answer of an earlier term has changed nothing of what the leader takes for replicated."""
        sender, view.late_answer = view.late_answer, ""
        raft = replica.raft
        assert raft is not None
        for follower in raft.followers():
            known = view.acked[1].get(sender, 0)
            if follower.node == sender and raft.term == view.acked[0] and follower.match_index > known:
                raise Violation(
                    "commit",
                    f"{raft.node} counts {sender} for entry {follower.match_index} by an answer of an earlier term; "
                    f"in term {raft.term} it acknowledged {known}",
                )

    def _check_known(self, name: str, entry: Entry) -> None:
        if entry.index > self.frontier:
            raise Violation("commit", f"{name} applied {entry.index}; nobody has committed more than {self.frontier}")
        self.committed[entry.index] = entry
