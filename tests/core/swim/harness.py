"""A few SWIM machines on a network in memory that a test can cut, with a clock that it turns."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial

import msgspec

from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.core.swim import LAN, Effect, Event, Join, Known, Profile, Received, Record, Send, Swim
from kos_cluster.core.swim.messages import body_of, sealed

VERSIONS = Versions("0", 1, "3.11.0", "", "3")


def member(number: int, incarnation: int = 100, **more: object) -> Member:
    plain = Member(f"id{number}", f"node{number}", f"host{number}", 7567, 2, VERSIONS, incarnation)
    return msgspec.structs.replace(plain, **more)


def sign(id_: str, content: bytes) -> bytes:
    return f"signed by {id_}: {hash_of(content)}".encode()


def hash_of(content: bytes) -> int:
    return sum((index + 1) * byte for index, byte in enumerate(content))


def verify(id_: str, content: bytes, signature: bytes) -> bool:
    return signature == sign(id_, content)


def record(of: Member, signer: str = "") -> Record:
    return Record(body_of(of), sign(signer or of.id, sealed(body_of(of))))


def known(of: Member) -> Known:
    return Known(of, record(msgspec.structs.replace(of, state=MemberState.ALIVE)))


def machine(
    number: int = 0, others: int = 3, profile: Profile = LAN, now: float = 0.0, seed: int = 1, incarnation: int = 100
) -> Swim:
    """One machine that knows nodes 1 to `others` besides itself, and has nothing to tell."""
    own = member(number, incarnation)
    rows = [known(own), *(known(member(n)) for n in range(others + 1) if n != number)]
    return Swim(own, profile, random.Random(seed), partial(sign, own.id), verify, now, rows)


def sends(effects: list[Effect], kind: type) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, kind)]


class Net:
    """Machines 0 to n-1. `cut(a, b)` says whether nothing passes from a to b."""

    def __init__(self, count: int, seed: int = 1, profile: Profile = LAN, acquainted: bool = True) -> None:
        self.now = 0.0
        self.seed = seed
        self.profile = profile
        self.cut: Callable[[int, int], bool] = lambda a, b: False
        self.unruly = (
            0.0  # the share of messages that get lost, and of those that come late, and of those that come twice
        )
        self.trace: list[tuple[float, int, Effect]] = []
        self.sent_bytes = 0
        self.swims: dict[int, Swim] = {}
        self._rng = random.Random(f"net {seed}")
        self._mail: list[tuple[float, int, int, Event]] = []
        self._serial = 0
        for number in range(count):
            rows = [known(member(n)) for n in range(count)] if acquainted else []
            self.start(number, rows=rows)

    def start(self, number: int, incarnation: int = 100, rows: list[Known] | None = None) -> Swim:
        own = member(number, incarnation)
        rng = random.Random(f"{self.seed} {number} {incarnation}")
        self.swims[number] = Swim(own, self.profile, rng, partial(sign, own.id), verify, self.now, rows or [])
        return self.swims[number]

    def crash(self, number: int) -> None:
        del self.swims[number]

    def join(self, number: int, seed: int) -> None:
        self.handle(number, Join((member(seed).address,)))

    def handle(self, number: int, event: Event) -> None:
        self._carry_out(number, self.swims[number].handle(event, self.now))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            number, due = min(((n, s.deadline) for n, s in self.swims.items()), key=lambda item: item[1])
            if self._mail and self._mail[0][0] <= min(due, until):
                self.now, _, number, event = heapq.heappop(self._mail)
                if number in self.swims:
                    self.handle(number, event)
            elif due <= until:
                self.now = max(self.now, due)
                self._carry_out(number, self.swims[number].tick(self.now))
            else:
                self.now = until
                return

    def states(self, number: int) -> dict[str, MemberState]:
        return {m.id: m.state for m in self.swims[number].members()}

    def all_see(self, number: int) -> set[MemberState | None]:
        """What the others hold of a node."""
        return {self.states(n).get(f"id{number}") for n in self.swims if n != number}

    def agreed(self) -> bool:
        """Whether all hold all that run alive."""
        wanted = {f"id{n}" for n in self.swims}
        return all(
            {id_ for id_, state in self.states(n).items() if state is MemberState.ALIVE} == wanted for n in self.swims
        )

    def _carry_out(self, number: int, effects: list[Effect]) -> None:
        for effect in effects:
            self.trace.append((self.now, number, effect))
            if isinstance(effect, Send):
                self.sent_bytes += len(msgspec.msgpack.encode(effect.message))
                to = int((effect.id or effect.address.partition(":")[0]).lstrip("idhost"))
                if not self.cut(number, to):
                    self._post(to, Received(f"id{number}", effect.message))

    def _post(self, to: int, event: Event) -> None:
        luck = self._rng.random()
        if luck < self.unruly:
            return
        for _ in range(2 if luck < 2 * self.unruly else 1):
            late_s = 3.0 if self._rng.random() < self.unruly else 0.0008
            self._serial += 1
            heapq.heappush(self._mail, (self.now + 0.0002 + late_s * self._rng.random(), self._serial, to, event))
