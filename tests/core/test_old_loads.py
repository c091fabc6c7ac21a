"""Owners whose news of the nodes' loads is old: their tasks end all the same, and keep the slots busy.

Several owners place on the same nodes. What each hears of a node's load is as old as gossip lets an entry become before
it is dropped; a node that is full refuses. All in virtual time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from kos_cluster.core import ownership as own
from kos_cluster.core.loadgossip import STALE_S
from kos_cluster.core.records import Load, Member, MemberState, Versions

OWNERS, TASKS = 3, 400  # of each
NODES, SLOTS, QUEUED_LIMIT = 6, 4, 2
TASK_S = 1.0  # mean
TICK_S = 0.1  # in which an owner looks again at what it could not place
LATENCY_S = 0.001
HERD, HERD_NODES = 600, 20


def up(id_: str, port: int) -> own.NodeUp:
    versions = Versions("0", 1, "3.11.0", "", "3")
    return own.NodeUp(Member(id_, id_, "h", port, SLOTS, versions, 1, MemberState.ALIVE))


class Node:
    """Runs tasks in its slots, first come, first served; beyond its queue it refuses."""

    def __init__(self) -> None:
        self.running: dict[tuple[int, int], own.Dispatch] = {}
        self.queued: list[tuple[int, own.Dispatch]] = []


class World:
    def __init__(self, seed: int) -> None:
        self._durations = random.Random(seed)
        self._nodes = {f"id{number}": Node() for number in range(NODES)}
        self._owners = [own.Ownership(random.Random(seed + number)) for number in range(OWNERS)]
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self.now = 0.0
        self.committed = [0] * OWNERS
        self.refused = 0

    def run(self) -> None:
        for owner in range(OWNERS):
            for number, id_ in enumerate(self._nodes):
                self._tell(owner, up(id_, number))
            self._tell(owner, own.Opened(own.JobSpec("j", "f", single=True)))
            self._tell(owner, own.Added("j", TASKS))
            self._tick(owner)
        self._measure()
        while min(self.committed) < TASKS:
            self.now, _, call, args = heapq.heappop(self._agenda)
            call(*args)

    def _after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._agenda, (self.now + delay_s, next(self._order), call, args))

    def _measure(self) -> None:
        """Measure each node's load; when the next one is measured, the owners hear of this one."""
        for id_, node in self._nodes.items():
            load = Load(running=len(node.running), queued=len(node.queued))
            for owner in range(OWNERS):
                self._after(STALE_S, self._tell, owner, own.NodeLoad(id_, load))
        self._after(STALE_S, self._measure)

    def _tick(self, owner: int) -> None:
        self._carry_out(owner, self._owners[owner].tick(self.now))
        self._after(TICK_S, self._tick, owner)

    def _tell(self, owner: int, event: own.Event) -> None:
        self._carry_out(owner, self._owners[owner].handle(event, self.now))

    def _carry_out(self, owner: int, effects: list[own.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, own.Dispatch):
                self._after(LATENCY_S, self._arrive, owner, effect)
            elif isinstance(effect, own.Commit):
                self.committed[owner] += 1

    def _arrive(self, owner: int, sent: own.Dispatch) -> None:
        node = self._nodes[sent.node]
        if len(node.running) < SLOTS:
            self._begin(owner, sent)
        elif len(node.queued) < QUEUED_LIMIT:
            node.queued.append((owner, sent))
        else:
            self.refused += 1
            self._after(LATENCY_S, self._tell, owner, own.BatchRefused(sent.batch, "it is full"))

    def _begin(self, owner: int, sent: own.Dispatch) -> None:
        self._nodes[sent.node].running[owner, sent.batch] = sent
        lasts_s = self._durations.expovariate(1 / TASK_S)
        self._after(lasts_s, self._end, owner, sent, lasts_s)

    def _end(self, owner: int, sent: own.Dispatch, lasted_s: float) -> None:
        node = self._nodes[sent.node]
        del node.running[owner, sent.batch]
        if node.queued:
            self._begin(*node.queued.pop(0))
        outcomes = own.Outcomes(sent.batch, sent.node, sent.runs, frozenset(), lasted_s)
        self._after(LATENCY_S, self._tell, owner, outcomes)


def test_owners_with_old_news_of_loads_keep_the_nodes_busy_and_every_task_ends() -> None:
    for seed in range(3):
        world = World(seed)
        world.run()
        assert world.committed == [TASKS] * OWNERS
        assert world.refused, "what was heard was not true any more"
        ideal_s = OWNERS * TASKS * TASK_S / (NODES * SLOTS)
        assert world.now < 1.3 * ideal_s


def placed(rng: random.Random) -> str:
    """The node of an owner's only task; it has heard that the first node is idle, and the others are less so."""
    owner = own.Ownership(rng)
    for number in range(HERD_NODES):
        owner.handle(up(f"id{number}", number), 0.0)
        owner.handle(own.NodeLoad(f"id{number}", Load(running=min(number, 1))), 0.0)
    owner.handle(own.Opened(own.JobSpec("j", "f", single=True)), 0.0)
    (sent,) = [effect for effect in owner.handle(own.Added("j", 1), 0.0) if isinstance(effect, own.Dispatch)]
    return sent.node


def test_owners_with_the_same_old_news_do_not_all_go_where_it_was_idle() -> None:
    """The less loaded of two at random: twice a node's share goes there, neither all that there is nor no more."""
    went_there = Counter(placed(random.Random(seed)) for seed in range(HERD))["id0"]
    share = HERD / HERD_NODES
    assert 1.5 * share < went_there < 2.5 * share
