"""Many look-up machines on a seeded network with virtual time: delays, dead nodes, links that prove who is there.

Rules: a message reaches whoever is at the contact's address; when that is another node than the contact says, the
sender is told `Mistaken`. A dead node is silent, or refuses the link, by chance. Messages travel as bytes.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable
from typing import Protocol

import msgspec

from kos_cluster.core import kademlia
from kos_cluster.core.buckets import Contact
from kos_cluster.core.kademlia import Failed, Kademlia, Lookup, LookupDone, Message, Mistaken, Received, Seen, Send

DELAY_S = 0.05  # the longest
TICK_S = 0.5
WAIT_S = 120.0  # virtual; longer than any look-up may take


class Node(Protocol):
    """An honest machine, or a liar."""

    def handle(self, event: kademlia.Event, now: float) -> list[kademlia.Effect]: ...

    def tick(self, now: float) -> list[kademlia.Effect]: ...


class Network:
    """`count` nodes, of which none knows any other."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.contacts = [Contact(f"node{n}", f"10.0.{n >> 8}.{n & 255}", 7567) for n in range(count)]
        self.machines = {c.id: Kademlia(c, random.Random(f"{seed} {c.id}")) for c in self.contacts}
        self.nodes: dict[str, Node] = dict(self.machines)
        self.dead: set[str] = set()
        self.sent = 0
        self.largest = 0  # contacts in one honest answer
        self.done: list[tuple[str, LookupDone]] = []
        self.trace: list[str] = []
        self._by_id = {contact.id: contact for contact in self.contacts}
        self._at = {(contact.host, contact.port): contact for contact in self.contacts}
        self._queue: list[tuple[float, int, str, kademlia.Event]] = []
        self._order = itertools.count()

    def join(self, id_: str, through: Contact) -> None:
        """A node hears of a member and looks itself up."""
        self._carry(id_, self.nodes[id_].handle(Seen(through), self.now))
        self._carry(id_, self.nodes[id_].tick(self.now))
        self.settle()

    def contact_of(self, id_: str) -> Contact:
        """Where the node really is."""
        return self._by_id[id_]

    def move(self, id_: str, to: Contact) -> None:
        """The node is at another address from now on, and tells nobody; who was there before is nowhere."""
        old = self._by_id[id_]
        if self._at.get((old.host, old.port)) == old:
            del self._at[old.host, old.port]
        self._by_id[id_] = self._at[to.host, to.port] = to

    def grow(self) -> None:
        """All nodes join, one after the other, each through a random earlier one."""
        for number, contact in enumerate(self.contacts[1:], 1):
            self.join(contact.id, self.contacts[self.rng.randrange(number)])

    def refresh(self, ids: Iterable[str], ticks: int) -> None:
        """Let these nodes refresh their buckets."""
        for id_ in ids:
            for _ in range(ticks):
                self._carry(id_, self.nodes[id_].tick(self.now))
                self.settle()

    def look_up(self, seeker: str, target: str) -> LookupDone:
        """One look-up to its end, in virtual time."""
        before = len(self.done)
        self._carry(seeker, self.nodes[seeker].handle(Lookup(target), self.now))
        until = self.now + WAIT_S
        while True:
            ended = [done for id_, done in self.done[before:] if (id_, done.target) == (seeker, target)]
            if ended:
                self.settle()
                return ended[0]
            assert self.now < until, f"{seeker} still looks for {target} after {WAIT_S} s"
            self.run_until(self.now + TICK_S)
            self._carry(seeker, self.nodes[seeker].tick(self.now))

    def settle(self) -> None:
        """Deliver all that is under way."""
        while self._queue:
            self._deliver()

    def run_until(self, time_s: float) -> None:
        while self._queue and self._queue[0][0] <= time_s:
            self._deliver()
        self.now = time_s

    def tick(self) -> None:
        """All that are alive see the time."""
        for id_, node in self.nodes.items():
            if id_ not in self.dead:
                self._carry(id_, node.tick(self.now))

    def _deliver(self) -> None:
        self.now, _, id_, event = heapq.heappop(self._queue)
        if id_ not in self.dead:
            self._carry(id_, self.nodes[id_].handle(event, self.now))

    def _carry(self, id_: str, effects: list[kademlia.Effect]) -> None:
        for effect in effects:
            self.trace.append(f"{self.now:.6f} {id_} {effect}")
            if isinstance(effect, LookupDone):
                self.done.append((id_, effect))
            elif isinstance(effect, Send):
                self._send(id_, effect)

    def _send(self, id_: str, effect: Send) -> None:
        self.sent += 1
        at = self.now + self.rng.uniform(0.001, DELAY_S)
        there = self._at.get((effect.contact.host, effect.contact.port))
        if there is None or there.id in self.dead:
            if self.rng.random() < 0.5:
                heapq.heappush(self._queue, (at, next(self._order), id_, Failed(effect.contact)))
        elif there.id != effect.contact.id:
            heapq.heappush(self._queue, (at, next(self._order), id_, Mistaken(effect.contact)))
        else:
            message = msgspec.msgpack.decode(msgspec.msgpack.encode(effect.message), type=Message)
            if self.nodes[id_] is self.machines[id_] and isinstance(message, kademlia.Found):
                self.largest = max(self.largest, len(message.contacts))
            event = Received(self._by_id[id_], message)
            heapq.heappush(self._queue, (at, next(self._order), there.id, event))
