"""Membership measured: the real SWIM machines of many nodes, under virtual time, on a network that loses nothing.

Theory of operation. `Nodes` keeps one heap of deliveries and deadlines. A message takes a random time from
`DELAY_LEAST_S` to `DELAY_MOST_S`; what it weighs is what its MessagePack weighs. A node that crashed takes nothing any
more; one that stalls takes nothing until it wakes, and then all that has come meanwhile, its timers first or last by
the toss of a coin. Everything depends on the seed.

    dissemination   rounds of gossip until an update has reached all, beside a model in which each infected node pushes
                    to three others each round, and for ever; and the bytes that a node sends for it, and without it
    detection       from a crash until all others hold that node dead
    stalls          hours in which some of the nodes stall again and again: who is wrongly declared dead

`measure` runs them all and returns a `Report`.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.core.swim import (
    FAST,
    LAN,
    Effect,
    Event,
    Known,
    MemberChanged,
    Profile,
    Received,
    Record,
    Send,
    Swim,
    UpdateSelf,
)
from kos_cluster.core.swim.messages import body_of, sealed

DELAY_LEAST_S = 0.0002  # of a message on a LAN
DELAY_MOST_S = 0.001  # of the same
SIZES = (30, 100, 1000, 5000)
PROFILES = {"lan": LAN, "fast": FAST}
STALLING = (1, 2, 3, 4)  # nodes that stall
FIRST_SLOTS = 100  # an update is told apart by its number of slots
RUMOUR_S = 5.0  # virtual; after which nobody tells an update any more
PUSH_FANOUT = 3  # of the model
MODEL_RUNS = 20
SPREAD_LIMIT_S = 60.0  # virtual; an update that has not reached all by then never will
DETECTION_LIMIT_S = 120.0  # virtual
STALL_S = 10.0  # the longest stall
BETWEEN_STALLS_S = 20.0  # the longest time between two stalls of a node
_VERSIONS = Versions("1.0.0", 1, "3.11.7", "2.1.0", "3.1.0")


class Spread(msgspec.Struct, frozen=True):
    """How an update reached `nodes` nodes, and what membership costs each of them."""

    nodes: int
    rounds: float  # mean time in rounds of gossip
    model_rounds: float  # mean of the push-only model
    ratio: float
    update_bytes: float  # sent by each node for one update, until nobody tells it any more
    quiet_bytes_s: float  # sent by each node a second while nothing changes, anti-entropy included


class Detection(msgspec.Struct, frozen=True):
    """Seconds from a crash until all others hold the node dead."""

    profile: str
    nodes: int
    crashes: int
    p50_s: float
    p99_s: float
    most_s: float


class Stalls(msgspec.Struct, frozen=True):
    """Virtual hours in which 1 to 4 of 8 nodes stall again and again, and the deaths that were declared."""

    profile: str
    hours: float
    stalls: int
    healthy_declared_dead: int
    stalled_declared_dead: int  # stalls during which the stalled node was
    back_s: float  # mean time from the end of such a stall until all others hold it alive again
    back_most_s: float


class Report(msgspec.Struct, frozen=True):
    """All that `measure` found."""

    seed: int
    spread: list[Spread]
    detection: list[Detection]
    stalls: list[Stalls]


class Nodes:
    """Simulated nodes that know each other from the start. `watch` is called for each effect that is not a message."""

    def __init__(self, count: int, profile: Profile, seed: str, watch: Callable[[int, Effect], None]) -> None:
        self.now = 0.0
        self.sent_bytes = 0
        self._rng = random.Random(f"network {seed}")
        self._watch = watch
        self._heap: list[tuple[float, int, int, Event | None]] = []
        self._serial = 0
        self._crashed: set[int] = set()
        self._backlog: dict[int, list[Event]] = {}  # of nodes that are stalled
        profile = msgspec.structs.replace(profile, members_limit=max(profile.members_limit, 2 * count))
        known = [_known(number) for number in range(count)]
        self.ids = [row.member.id for row in known]
        self._number = {id_: number for number, id_ in enumerate(self.ids)}
        self.swims = [
            Swim(
                row.member,
                profile,
                random.Random(f"{seed} {row.member.id}"),
                partial(_sign, row.member.id),
                _verify,
                0.0,
                known,
            )
            for row in known
        ]
        self._wakes = [float("inf")] * count
        for number in range(count):
            self._schedule(number)

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until then, or until `enough`, which is asked after each event."""
        while self._heap and self._heap[0][0] <= until and not enough():
            self.now, _, number, event = heapq.heappop(self._heap)
            if number in self._crashed:
                continue
            if event is None:
                self._wake(number)
            elif number in self._backlog:
                self._backlog[number].append(event)
            else:
                self.handle(number, event)
        if not enough():
            self.now = until

    def handle(self, number: int, event: Event) -> None:
        """Give a node an event now."""
        self._carry_out(number, self.swims[number].handle(event, self.now))

    def number_of(self, id: str) -> int:
        return self._number[id]

    def crash(self, number: int) -> None:
        self._crashed.add(number)

    def stall(self, number: int) -> None:
        self._backlog[number] = []

    def resume(self, number: int) -> None:
        """The node handles what has come while it was stalled."""
        backlog = self._backlog.pop(number)
        timers_first = self._rng.random() < 0.5
        if timers_first:
            self._carry_out(number, self.swims[number].tick(self.now))
        for event in backlog:
            self.handle(number, event)
        self._carry_out(number, self.swims[number].tick(self.now))

    def _wake(self, number: int) -> None:
        if self.now < self._wakes[number]:
            return  # an earlier plan; another wake is in the heap
        self._wakes[number] = float("inf")
        if number not in self._backlog:
            due = self.swims[number].deadline <= self.now
            self._carry_out(number, self.swims[number].tick(self.now) if due else [])

    def _carry_out(self, number: int, effects: Iterable[Effect]) -> None:
        sender = self.ids[number]
        for effect in effects:
            if not isinstance(effect, Send):
                self._watch(number, effect)
                continue
            self.sent_bytes += len(_encode(effect.message))
            at = self.now + DELAY_LEAST_S + (DELAY_MOST_S - DELAY_LEAST_S) * self._rng.random()
            self._push(at, self._number[effect.id], Received(sender, effect.message))
        self._schedule(number)

    def _schedule(self, number: int) -> None:
        deadline = self.swims[number].deadline
        if deadline < self._wakes[number]:
            self._wakes[number] = deadline
            self._push(max(deadline, self.now), number, None)

    def _push(self, at: float, number: int, event: Event | None) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, number, event))


def dissemination(count: int, seed: int, updates: int = 3, quiet_s: float = 10.0, profile: Profile = LAN) -> Spread:
    """Let nothing happen for a while; then let a node change its record, several times, and see when all have it."""
    reached = wanted = 0

    def watch(_number: int, effect: Effect) -> None:
        nonlocal reached
        if isinstance(effect, MemberChanged) and effect.member.slots == wanted:
            reached += 1

    def everywhere() -> bool:
        return reached == count

    nodes = Nodes(count, profile, f"dissemination {count} {seed}", watch)
    rng = random.Random(f"dissemination {count} {seed}")
    nodes.run(quiet_s)
    quiet_bytes_s = nodes.sent_bytes / quiet_s / count
    began_all, sent_before, rounds = nodes.now, nodes.sent_bytes, []
    for update in range(updates):
        number, began = rng.randrange(count), nodes.now
        reached, wanted = 0, FIRST_SLOTS + update
        own = nodes.swims[number].members()[0]
        nodes.handle(number, UpdateSelf(msgspec.structs.replace(own, slots=wanted)))
        nodes.run(began + SPREAD_LIMIT_S, enough=everywhere)
        rounds.append((nodes.now - began) / profile.gossip_s)
        nodes.run(nodes.now + RUMOUR_S)
    extra_bytes = (nodes.sent_bytes - sent_before) / count - quiet_bytes_s * (nodes.now - began_all)
    model = [push_rounds(count, rng) for _ in range(MODEL_RUNS)]
    mean, model_mean = sum(rounds) / len(rounds), sum(model) / len(model)
    return Spread(count, mean, model_mean, mean / model_mean, extra_bytes / updates, quiet_bytes_s)


def detection(profile_name: str, crashes: int, seed: int, count: int = 8) -> Detection:
    """Crash one of `count` nodes at a random time, again and again in new clusters."""
    took = sorted(_crash(PROFILES[profile_name], f"crash {profile_name} {seed} {n}", count) for n in range(crashes))
    return Detection(profile_name, count, crashes, _quantile(took, 0.5), _quantile(took, 0.99), took[-1])


def _crash(profile: Profile, seed: str, count: int) -> float:
    rng = random.Random(seed)
    victim = rng.randrange(count)
    seen: set[int] = set()

    def watch(number: int, effect: Effect) -> None:
        if isinstance(effect, MemberChanged) and effect.member.state is MemberState.DEAD:
            seen.add(number)

    nodes = Nodes(count, profile, seed, watch)
    nodes.run((2 * count + rng.random()) * profile.probe_s)  # until the probes are out of step
    seen.clear()
    nodes.crash(victim)
    began = nodes.now
    nodes.run(began + DETECTION_LIMIT_S, enough=lambda: len(seen) == count - 1)
    return nodes.now - began


def stalls(profile_name: str, hours: float, seed: int, count: int = 8) -> Stalls:
    """Let 1 to 4 of `count` nodes stall again and again at random, each number of them for a part of the hours."""
    parts = [_Stalling(PROFILES[profile_name], f"stall {profile_name} {seed} {n}", count, n) for n in STALLING]
    for part in parts:
        part.run(hours * 3600 / len(parts))
    back = [took for part in parts for took in part.back_s] or [0.0]
    return Stalls(
        profile_name,
        hours,
        sum(part.stalls for part in parts),
        sum(part.healthy_dead for part in parts),
        sum(part.stalled_dead for part in parts),
        sum(back) / len(back),
        max(back),
    )


class _Stalling:
    """One cluster of which the first `stalling` nodes stall again and again."""

    def __init__(self, profile: Profile, seed: str, count: int, stalling: int) -> None:
        self.stalls = self.healthy_dead = self.stalled_dead = 0
        self.back_s: list[float] = []
        self._rng = random.Random(seed)
        self._stalling = stalling
        self._agenda = [(self._rng.random() * BETWEEN_STALLS_S, number, True) for number in range(stalling)]
        self._holders: dict[str, set[int]] = {}  # who is held dead -> by whom
        self._woke: dict[str, float] = {}  # when the stall ended that a node was held dead for
        self._nodes = Nodes(count, profile, seed, self._watch)

    def run(self, duration_s: float) -> None:
        heapq.heapify(self._agenda)
        while self._agenda[0][0] <= duration_s:
            at, number, stall = heapq.heappop(self._agenda)
            self._nodes.run(at)
            if stall:
                self.stalls += 1
                self._nodes.stall(number)
            else:
                self._woke[self._nodes.ids[number]] = at
                self._nodes.resume(number)
            longest_s = STALL_S if stall else BETWEEN_STALLS_S
            heapq.heappush(self._agenda, (at + self._rng.random() * longest_s, number, not stall))

    def _watch(self, number: int, effect: Effect) -> None:
        if not isinstance(effect, MemberChanged):
            return
        id_, state = effect.member.id, effect.member.state
        holders = self._holders.setdefault(id_, set())
        if state is MemberState.DEAD:
            if self._nodes.number_of(id_) >= self._stalling:
                self.healthy_dead += 1
            elif not holders:
                self.stalled_dead += 1
            holders.add(number)
        elif number in holders:
            holders.remove(number)
            if not holders and id_ in self._woke:
                self.back_s.append(self._nodes.now - self._woke.pop(id_))


def measure(
    seed: int = 1, sizes: Sequence[int] = SIZES, updates: int = 3, crashes: int = 200, stall_hours: float = 4.0
) -> Report:
    """Measure all of it. About three minutes with what is given here, most of it for 5,000 nodes."""
    return Report(
        seed,
        [dissemination(count, seed, updates) for count in sizes],
        [detection(name, crashes, seed) for name in PROFILES],
        [stalls(name, stall_hours, seed) for name in PROFILES],
    )


def push_rounds(count: int, rng: random.Random) -> int:
    """Rounds of a push-only epidemic: each infected node pushes to `PUSH_FANOUT` different others, each round."""
    infected = [0]
    is_infected = [True] + [False] * (count - 1)
    rounds = 0
    while len(infected) < count:
        rounds += 1
        for node in infected.copy():
            for target in rng.sample(range(count - 1), PUSH_FANOUT):
                other = target + (target >= node)
                if not is_infected[other]:
                    is_infected[other] = True
                    infected.append(other)
    return rounds


def _quantile(ascending: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


_encode = msgspec.msgpack.Encoder().encode


def _known(number: int) -> Known:
    id_ = hashlib.blake2b(str(number).encode(), digest_size=8).hexdigest()
    host = f"10.0.{number // 250}.{number % 250 + 1}"
    member = Member(
        id_,
        f"node{number + 1}",
        host,
        7567,
        8,
        _VERSIONS,
        1_700_000_000_000_000_000 + number,
        pid=4000,
        boot_id=id_ * 2,
    )
    body = body_of(member)
    return Known(member, Record(body, _sign(id_, sealed(body))))


def _sign(id: str, content: bytes) -> bytes:
    """Stands for a signature; 64 bytes, as Ed25519's are."""
    return hashlib.blake2b(content, key=id.encode(), digest_size=64).digest()


def _verify(id: str, content: bytes, signature: bytes) -> bool:
    return signature == _sign(id, content)
