"""Two-phase commit under loss, copies, disorder and death: never half, and nobody stays in doubt after healing."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise

import pytest

from kos_cluster.core import twophase
from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated.replies import Decision
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.twophase import (
    Acked,
    Ask,
    Carry,
    Coordinator,
    Decided,
    NeverPrepared,
    Participant,
    Prepare,
    Propose,
    Reserve,
    Reserved,
    Send,
    Tell,
    Vote,
)

SEEDS = 2000
NODES = ("a", "b", "c", "d")
STEPS = 160
TTL_S = 4.0


class Disk:
    """What one participant's resource has made durable."""

    def __init__(self) -> None:
        self.prepared: list[int] = []
        self.ended: dict[int, bool] = {}
        self.forgotten = 0


class World:
    """A log, coordinators that have applied some of it, participants with disks, and messages under way.

    Any coordinator may act at any time, however old its state, and any proposal may get into the log or be lost: worse
    than Raft ever is, so that the safety rests on the machines alone.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.log: list[bytes] = []
        self.states = [ClusterState() for _ in range(3)]
        self.coordinators = [Coordinator(state) for state in self.states]
        self.disks = {name: Disk() for name in NODES}
        self.participants = {name: Participant([], {}, 0, self.now) for name in NODES}
        self.mail: list[tuple[str, object]] = []  # (participant, or "" for a coordinator; message or (sender, message))
        self.carried: dict[int, dict[str, bool]] = defaultdict(dict)
        self.begun: dict[int, tuple[str, ...]] = {}
        self.faults = True

    def propose(self, command: c.Command) -> None:
        if self.faults and self.random.random() < 0.25:
            return
        self.log.append(c.encode(c.Proposal(self.now, command)))

    def begin(self) -> None:
        chosen = tuple(self.random.sample(NODES, self.random.randint(1, len(NODES))))
        self.propose(c.BeginTransaction(dict.fromkeys(chosen, b"x"), TTL_S))

    def apply_some(self, which: int, all_of_it: bool = False) -> None:
        state = self.states[which]
        while state.applied_index < len(self.log) and (all_of_it or self.random.random() < 0.7):
            index = state.applied_index + 1
            state.apply(index, self.log[index - 1])
            transaction = state.transactions.get(index)
            if transaction is not None:
                self.begun[index] = tuple(transaction.participants)

    def act(self, effects: list[Send | Propose]) -> None:
        for effect in effects:
            if isinstance(effect, Propose):
                self.propose(effect.command)
            else:
                self.mail.append((effect.to, effect.message))

    def carry_out(self, name: str, effects: list[object]) -> None:
        disk = self.disks[name]
        for effect in effects:
            match effect:
                case Reserve(txn, _):
                    yes = self.random.random() < 0.9
                    if yes:
                        disk.prepared.append(txn)
                    if not self.dies(name):
                        self.carry_out(name, self.participants[name].handle(Reserved(txn, yes), self.now))
                case Carry(txn, commit):
                    disk.prepared.remove(txn)
                    disk.ended[txn] = commit
                    assert self.carried[txn].setdefault(name, commit) == commit, f"{txn} ended in two ways at {name}"
                    if self.dies(name):
                        return
                case Tell(message):
                    self.mail.append(("", (name, message)))
                case NeverPrepared():
                    raise AssertionError(f"{name} was told to commit what it never prepared: {effect}")

    def dies(self, name: str) -> bool:
        """Perhaps the participant crashes here, and starts again from its disk."""
        if not self.faults or self.random.random() > 0.1:
            return False
        disk = self.disks[name]
        self.participants[name] = Participant(list(disk.prepared), dict(disk.ended), disk.forgotten, self.now)
        return True

    def deliver(self) -> None:
        if not self.mail:
            return
        place = self.random.randrange(len(self.mail)) if self.faults else 0
        to, message = self.mail[place]
        copied = self.faults and self.random.random() < 0.15
        if not copied:
            del self.mail[place]
        if self.faults and self.random.random() < 0.2:
            return
        if to:
            self.carry_out(to, self.participants[to].handle(message, self.now))
        else:
            which = self.random.randrange(3) if self.faults else 0
            sender, what = message
            self.act(self.coordinators[which].handle(sender, what, self.now))

    def step(self) -> None:
        self.now += self.random.choice((0.0, 0.0, 0.05, 0.6))
        match self.random.randrange(8):
            case 0:
                if len(self.begun) < 6:
                    self.begin()
            case 1:
                self.apply_some(self.random.randrange(3))
            case 2:
                which = self.random.randrange(3)
                self.act(self.coordinators[which].tick(self.now))
            case 3:
                which = self.random.randrange(3)
                self.coordinators[which] = Coordinator(self.states[which])  # dies; a successor knows the state alone
            case 4:
                name = self.random.choice(NODES)
                self.carry_out(name, self.participants[name].tick(self.now))
            case _:
                self.deliver()
        self.check()

    def check(self) -> None:
        for txn, by in self.carried.items():
            assert len(set(by.values())) == 1, f"transaction {txn} ended in two ways: {by}"

    def heal(self) -> None:
        """No more faults: one coordinator, which applies all, and time for everyone."""
        self.faults = False
        self.coordinators[0] = Coordinator(self.states[0])
        for _ in range(80):
            self.now += 0.5
            self.log.append(c.encode(c.Proposal(self.now, c.Tick())))
            self.apply_some(0, all_of_it=True)
            self.act(self.coordinators[0].tick(self.now))
            while self.mail:
                self.deliver()
            for name, participant in self.participants.items():
                self.carry_out(name, participant.tick(self.now))
            self.check()


def run(seed: int) -> World:
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    world.heal()
    return world


def run_all() -> None:
    for seed in range(SEEDS):
        run(seed)


def test_no_transaction_ends_in_two_ways_and_all_end_after_healing():
    ends = {True: 0, False: 0}
    for seed in range(SEEDS):
        try:
            world = run(seed)
            assert world.states[0].transactions.snapshot() == []
            for name, participant in world.participants.items():
                assert participant.in_doubt == [], name
                assert world.disks[name].prepared == [], name
            for txn, names in world.begun.items():
                decision = world.states[0].transactions.decision(txn)
                committed = decision is Decision.COMMITTED
                assert committed or decision is Decision.ABORTED
                assert all(value == committed for value in world.carried[txn].values())
                if committed:
                    assert set(world.carried[txn]) == set(names)
                ends[committed] += 1
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {error}")
    assert ends[True] > SEEDS / 10, ends  # the schedules are not all hopeless, nor harmless
    assert ends[False] > SEEDS / 10, ends


def test_the_simulation_sees_a_coordinator_that_presumes_abort_too_early(monkeypatch: pytest.MonkeyPatch):
    def answer(self: Coordinator, sender: str, txn: int) -> list[Send | Propose]:
        transaction = self._state.transactions.get(txn)
        return [Send(sender, Decided(txn, transaction is not None and transaction.committed))]

    monkeypatch.setattr(Coordinator, "_answer", answer)
    with pytest.raises(AssertionError, match=r"two ways|never prepared"):
        run_all()


def test_the_simulation_sees_a_participant_that_aborts_by_itself(monkeypatch: pytest.MonkeyPatch):
    def tick(self: Participant, now: float) -> list[object]:
        late = [txn for txn, prepared in self._prepared.items() if now >= prepared.ask_at_s]
        return [effect for txn in late for effect in self._decided(txn, False)]

    monkeypatch.setattr(Participant, "tick", tick)
    with pytest.raises(AssertionError, match=r"two ways|never prepared"):
        run_all()


# ---- step by step


def begun(participants: tuple[str, ...] = ("a", "b"), now: float = 0.0) -> ClusterState:
    state = ClusterState()
    apply(state, c.BeginTransaction(dict.fromkeys(participants, b"slot"), TTL_S), now)
    return state


def apply(state: ClusterState, command: c.Command, now: float = 0.0) -> object:
    return state.apply(state.applied_index + 1, c.encode(c.Proposal(now, command))).reply


def test_a_commit_needs_every_vote_and_is_repeated_until_all_have_acked():
    state = begun()
    coordinator = Coordinator(state)
    assert coordinator.tick(0.0) == [Send("a", Prepare(1, b"slot")), Send("b", Prepare(1, b"slot"))]
    assert coordinator.tick(0.1) == []
    assert coordinator.handle("a", Vote(1, True), 0.1) == []
    assert coordinator.tick(1.0) == [Send("b", Prepare(1, b"slot"))]
    (decide,) = coordinator.handle("b", Vote(1, True), 1.0)
    assert decide == Propose(c.DecideTransaction(1, True))
    apply(state, decide.command, 1.0)
    assert coordinator.tick(1.0) == [Send("a", Decided(1, True)), Send("b", Decided(1, True))]
    coordinator.handle("a", Acked(1), 1.1)
    assert coordinator.tick(2.0) == [Propose(c.AckTransaction(1, ("a",))), Send("b", Decided(1, True))]
    (ack,) = coordinator.handle("b", Acked(1), 2.1)
    apply(state, ack.command, 2.1)
    assert state.transactions.get(1) is None
    assert coordinator.tick(9.0) == []


def test_one_no_aborts_and_votes_of_strangers_do_not_count():
    state = begun()
    coordinator = Coordinator(state)
    coordinator.tick(0.0)
    assert coordinator.handle("z", Vote(1, False), 0.1) == []
    assert coordinator.handle("a", Vote(1, False), 0.1) == [Propose(c.DecideTransaction(1, False))]
    apply(state, c.DecideTransaction(1, False))
    assert coordinator.tick(0.2) == [Send("a", Decided(1, False)), Send("b", Decided(1, False))]


def test_a_successor_past_the_deadline_aborts_and_before_it_asks_for_the_votes_again():
    state = begun()
    assert [type(effect) for effect in Coordinator(state).tick(1.0)] == [Send, Send]
    assert Coordinator(state).tick(TTL_S) == [Propose(c.DecideTransaction(1, False))]


def test_who_has_not_applied_a_transaction_does_not_answer_for_it():
    state = begun()
    coordinator = Coordinator(state)
    assert coordinator.handle("a", Ask(2), 0.0) == []
    assert coordinator.handle("a", Ask(1), 0.0) == []
    apply(state, c.DecideTransaction(1, False))
    assert coordinator.handle("a", Ask(1), 0.0) == [Send("a", Decided(1, False))]


def test_a_participant_in_doubt_asks_ever_more_rarely_and_never_decides():
    participant = Participant([7], {}, 0, now=0.0)
    asked = []
    for tenth in range(3000):
        if participant.tick(tenth / 10) == [Tell(Ask(7))]:
            asked.append(tenth / 10)
    assert asked[0] == twophase.LEASE_S
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses == sorted(pauses) and max(pauses) <= twophase.ASK_MOST_S
    assert participant.in_doubt == [7]


def test_an_abort_that_overtakes_the_reservation_undoes_it():
    participant = Participant([], {}, 0, now=0.0)
    assert participant.handle(Prepare(3, b""), 0.0) == [Reserve(3, b"")]
    assert participant.handle(Decided(3, False), 0.1) == []
    assert participant.handle(Reserved(3, True), 0.2) == [Carry(3, False)]
    assert participant.handle(Prepare(3, b""), 0.3) == [Tell(Vote(3, False))]


def test_a_late_prepare_of_a_forgotten_transaction_reserves_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(twophase, "ENDED_LIMIT", 2)
    participant = Participant([1, 2, 3], {}, 0, now=0.0)
    for txn in (1, 2, 3):
        assert participant.handle(Decided(txn, True), 0.0) == [Carry(txn, True), Tell(Acked(txn))]
    assert participant.forgotten == 1
    assert participant.handle(Prepare(1, b""), 0.0) == [Tell(Vote(1, False))]
    assert participant.handle(Decided(1, True), 0.0) == [Tell(Acked(1))]


def test_a_full_participant_votes_no(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(twophase, "PREPARED_LIMIT", 1)
    participant = Participant([1], {}, 0, now=0.0)
    assert participant.handle(Prepare(2, b""), 0.0) == [Tell(Vote(2, False))]


def test_a_commit_for_a_lost_reservation_is_said_and_not_acked():
    participant = Participant([], {}, 0, now=0.0)
    assert participant.handle(Decided(4, True), 0.0) == [NeverPrepared(4)]
