"""Two-phase commit: all participants of a transaction carry it out, or none does, whoever dies meanwhile.

Theory of operation (Bernstein, Hadzilacos & Goodman, 1987, chapter 7; presumed abort: Mohan & Lindsay, 1983; an agreed
decision instead of a single log: Gray & Lamport, 2006). The coordinator is whoever leads; what it must not forget is in
the replicated state (`replicated.transactions`), and what it may forget, votes and acks, is here: a successor asks for
the votes again. It proposes a decision when all have voted, one has voted no, or time is over, and tells participants
nothing but what the state says. So a deposed coordinator that goes on is harmless: its state is old, never wrong.

A participant that voted yes is bound until it hears the decision. When that takes longer than `LEASE_S` it asks whoever
leads now. The answer is abort if the state has applied the transaction's beginning and holds no such transaction: a
commit is only removed when all have acked it, and then nobody asks.

Rules for whoever carries out a participant's effects: `Reserved(txn, True)` only after the reservation is durable;
`Carry` durable before the messages after it in the list are sent. Messages may be lost, doubled and late.

    coordinator, by the state's transaction        sends or proposes, again each `AGAIN_S`
    open, votes missing                            Prepare to those that have not voted
    open, all voted yes                            decide to commit
    open, a no, or past the deadline               decide to abort
    committed                                      Decided(commit) to those that have not acked; acks
    gone, aborted                                  Decided(abort), once; who misses it asks

    participant   event                  next        effect
    -             Prepare                reserving   Reserve
    reserving     Reserved, yes          prepared    vote yes
    reserving     Reserved, no           -           vote no
    reserving     Decided(abort)         doomed
    doomed        Reserved, yes          ended       Carry(abort)
    doomed        Reserved, no           -
    prepared      Prepare                prepared    vote yes
    prepared      Decided                ended       Carry, ack of a commit
    prepared      longer than a lease    prepared    Ask
    ended         Prepare                ended       vote no
    ended         Decided(commit)        ended       ack
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from kos_cluster.core.replicated.commands import AckTransaction, DecideTransaction
from kos_cluster.core.replicated.replies import Decision
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.replicated.transactions import Transaction

AGAIN_S = 0.5  # after which a coordinator repeats what was not answered
LEASE_S = 2.0  # for which a participant stays prepared without asking
ASK_MOST_S = 30.0  # between two questions; from `LEASE_S` on it doubles up to this
PREPARED_LIMIT = 1024  # transactions that a participant holds at once; it votes no beyond
ENDED_LIMIT = 4096  # ended transactions that a participant remembers


# ---- messages


class Prepare(msgspec.Struct, frozen=True, tag=True):
    txn: int
    payload: bytes


class Vote(msgspec.Struct, frozen=True, tag=True):
    txn: int
    yes: bool


class Decided(msgspec.Struct, frozen=True, tag=True):
    txn: int
    commit: bool


class Acked(msgspec.Struct, frozen=True, tag=True):
    """The commit is durable at the sender."""

    txn: int


class Ask(msgspec.Struct, frozen=True, tag=True):
    """How did it end?"""

    txn: int


ToParticipant = Prepare | Decided
ToCoordinator = Vote | Acked | Ask


# ---- coordinator


class Send(msgspec.Struct, frozen=True):
    """Effect of the coordinator: a message to a participant."""

    to: str
    message: ToParticipant


class Propose(msgspec.Struct, frozen=True):
    """Effect: propose a command. If it is lost it is proposed again; to apply it twice changes nothing."""

    command: DecideTransaction | AckTransaction


class _Round:
    """What one coordinator has heard of one transaction."""

    def __init__(self, participants: tuple[str, ...]) -> None:
        self.participants = participants
        self.yes: set[str] = set()
        self.no = False
        self.acked: set[str] = set()
        self.committed = False  # as it was told to the participants
        self.again_s = 0.0


class Coordinator:
    """The leader's side. Make a new one on taking over; call `tick` after each applied command too."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self._rounds: dict[int, _Round] = {}

    def handle(self, sender: str, message: ToCoordinator, now: float) -> list[Send | Propose]:
        """A message of a participant whose identity was authenticated."""
        if isinstance(message, Ask):
            return self._answer(sender, message.txn)
        round_ = self._rounds.get(message.txn)
        if round_ is None or sender not in round_.participants:
            return []
        if isinstance(message, Acked):
            round_.acked.add(sender)
        elif message.yes:
            round_.yes.add(sender)
        else:
            round_.no = True
        if round_.no or len(round_.participants) in (len(round_.yes), len(round_.acked)):
            round_.again_s = 0.0  # nothing is missing any more
        return self.tick(now)

    def tick(self, now: float) -> list[Send | Propose]:
        """Carry on what is open, by the state as it is now."""
        effects: list[Send | Propose] = []
        open_ = {transaction.txn: transaction for transaction in self._state.transactions.snapshot()}
        for txn in [txn for txn in self._rounds if txn not in open_]:
            round_ = self._rounds.pop(txn)
            if self._state.transactions.decision(txn) is Decision.ABORTED:
                effects += [Send(name, Decided(txn, False)) for name in round_.participants]
        for txn, transaction in open_.items():
            round_ = self._rounds.setdefault(txn, _Round(tuple(transaction.participants)))
            early = round_.again_s - AGAIN_S <= now < round_.again_s  # else due, or the wall clock was set back
            if not early or transaction.committed != round_.committed:
                round_.again_s, round_.committed = now + AGAIN_S, transaction.committed
                effects += self._carry_on(transaction, round_, now)
        return effects

    def _carry_on(self, transaction: Transaction, round_: _Round, now: float) -> list[Send | Propose]:
        txn = transaction.txn
        if transaction.committed:
            acked = tuple(name for name in transaction.unacked if name in round_.acked)
            waiting = [name for name in transaction.unacked if name not in round_.acked]
            acks = [Propose(AckTransaction(txn, acked))] if acked else []
            return [*acks, *(Send(name, Decided(txn, True)) for name in waiting)]
        if round_.no or now >= transaction.deadline_s:
            return [Propose(DecideTransaction(txn, False))]
        missing = [(name, what) for name, what in transaction.participants.items() if name not in round_.yes]
        if not missing:
            return [Propose(DecideTransaction(txn, True))]
        return [Send(name, Prepare(txn, payload)) for name, payload in missing]

    def _answer(self, sender: str, txn: int) -> list[Send | Propose]:
        transaction = self._state.transactions.get(txn)
        if transaction is None:
            # Not applied here yet: another one may know more, so this one says nothing.
            return [Send(sender, Decided(txn, False))] if txn <= self._state.applied_index else []
        return [Send(sender, Decided(txn, True))] if transaction.committed else []


# ---- participant


class Reserved(msgspec.Struct, frozen=True):
    """Event: what became of `Reserve`."""

    txn: int
    yes: bool


class Tell(msgspec.Struct, frozen=True):
    """Effect of a participant: a message to whoever coordinates now."""

    message: ToCoordinator


class Reserve(msgspec.Struct, frozen=True):
    """Effect: take what the payload asks for, durably, so that it can still be done or undone after a crash."""

    txn: int
    payload: bytes


class Carry(msgspec.Struct, frozen=True):
    """Effect: do what was reserved, or undo it; durably, with the transaction's number among the ended."""

    txn: int
    commit: bool


class NeverPrepared(msgspec.Struct, frozen=True):
    """Effect: a commit came for what this participant does not hold. Its disk lost it; say so."""

    txn: int


ParticipantEffect = Tell | Reserve | Carry | NeverPrepared


class _Prepared:
    def __init__(self, now: float) -> None:
        self.ask_at_s = now + LEASE_S
        self.pause_s = LEASE_S


class Participant:
    """One participant. `prepared` and `ended` (number -> committed, oldest first) are what was durable at its start."""

    def __init__(self, prepared: Iterable[int], ended: dict[int, bool], forgotten: int, now: float) -> None:
        self._prepared = {txn: _Prepared(now) for txn in prepared}
        self._reserving: dict[int, bool] = {}  # number -> whether it was aborted meanwhile
        self._ended = dict(ended)
        self.forgotten = forgotten  # the largest number whose end is not remembered

    @property
    def in_doubt(self) -> list[int]:
        """Transactions that are prepared, with no decision heard."""
        return list(self._prepared)

    @property
    def reserving(self) -> Collection[int]:
        """Transactions whose `Reserve` waits for its `Reserved`."""
        return self._reserving.keys()

    def handle(self, event: ToParticipant | Reserved, now: float) -> list[ParticipantEffect]:
        match event:
            case Prepare(txn, payload):
                return self._prepare(txn, payload)
            case Reserved(txn, yes):
                return self._reserved(txn, yes, now)
            case Decided(txn, commit):
                return self._decided(txn, commit)

    def tick(self, now: float) -> list[ParticipantEffect]:
        """Ask about what is in doubt for too long."""
        effects: list[ParticipantEffect] = []
        for txn, prepared in self._prepared.items():
            if now >= prepared.ask_at_s:
                prepared.pause_s = min(2 * prepared.pause_s, ASK_MOST_S)
                prepared.ask_at_s = now + prepared.pause_s
                effects.append(Tell(Ask(txn)))
        return effects

    def _prepare(self, txn: int, payload: bytes) -> list[ParticipantEffect]:
        if txn in self._prepared:
            return [Tell(Vote(txn, True))]
        if txn in self._reserving:
            return []
        # A late copy of a Prepare whose transaction is over must not reserve again.
        if txn in self._ended or txn <= self.forgotten:
            return [Tell(Vote(txn, False))]
        if len(self._prepared) + len(self._reserving) >= PREPARED_LIMIT:
            return [Tell(Vote(txn, False))]
        self._reserving[txn] = False
        return [Reserve(txn, payload)]

    def _reserved(self, txn: int, yes: bool, now: float) -> list[ParticipantEffect]:
        doomed = self._reserving.pop(txn)
        if not yes:
            return [] if doomed else [Tell(Vote(txn, False))]
        if doomed:
            return self._end(txn, False)
        self._prepared[txn] = _Prepared(now)
        return [Tell(Vote(txn, True))]

    def _decided(self, txn: int, commit: bool) -> list[ParticipantEffect]:
        if txn in self._prepared:
            del self._prepared[txn]
            return self._end(txn, commit)
        if txn in self._reserving and not commit:
            self._reserving[txn] = True
            return []
        if not commit:
            return []
        if self._ended.get(txn, txn <= self.forgotten):
            return [Tell(Acked(txn))]
        return [NeverPrepared(txn)]

    def _end(self, txn: int, commit: bool) -> list[ParticipantEffect]:
        self._ended[txn] = commit
        while len(self._ended) > ENDED_LIMIT:
            oldest = next(iter(self._ended))
            del self._ended[oldest]
            self.forgotten = max(self.forgotten, oldest)
        return [Carry(txn, commit), *([Tell(Acked(txn))] if commit else [])]
