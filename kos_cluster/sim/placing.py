"""A workload in virtual time: one owner that places its tasks on the queues of many nodes, and what that costs it.

Theory of operation. The owner is `core.ownership`, each node a `core.queue`; both are the product's machines. Between
them a message takes `LATENCY_S`, a batch as long as its tasks, and each node tells its load each `LOAD_S`, so what the
owner knows is old. Several jobs with different needs wait at once, all their tasks from the beginning. The `clock`
that is handed in measures the owner's machine alone, over its whole life: so the cost a task has placement in it, and
everything else that an owner decides.

Rules: at any size the tasks, their needs and their durations are the same for a seed, and they travel one at a time,
which is the worst case for who places them. Every task has exactly one result, or the run fails.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from kos_cluster.core import ownerevents as own
from kos_cluster.core import queue
from kos_cluster.core.capacity import Capacity
from kos_cluster.core.ownership import Ownership
from kos_cluster.core.records import LabelTerm, Load, Member, Needs, Versions, count_of

SIZES = (10, 100, 1000)  # nodes
SLOTS = 4  # of a node
TASK_S = 1.0  # mean duration; longer than what a batch aims at, so each task travels alone
LATENCY_S = 0.001
LOAD_S = 1.0  # between two reports of one node
GIB = 1 << 30
CAPACITY = Capacity(8 * GIB, (), {"licence": 2})
ZONES = ("a", "b")
OWNER = ("sim", "1")
KINDS = (
    Needs(),
    Needs(cpus=2),
    Needs(memory_bytes=2 * GIB),
    Needs(labels=(LabelTerm("zone", "a"),), resources=(("licence", 1),)),
)


@dataclass(frozen=True)
class Placed:
    """What one run cost and brought."""

    nodes: int
    tasks: int
    owner_s: float  # of the clock, in the owner's machine
    refused: int  # batches that a node would not take
    took_s: float  # virtual time to the last result
    used_share: float  # of all slots over that time

    @property
    def cost_us(self) -> float:
        """The owner's cost of one task, in microseconds."""
        return self.owner_s / self.tasks * 1e6


class Broken(Exception):
    """A task had no result, or more than one."""


def measure(nodes: int, tasks: int, seed: int, clock: Callable[[], float]) -> Placed:
    """Run this many tasks to the end on this many nodes. `clock` gives seconds of this process. Raises Broken."""
    return _Run(nodes, tasks, seed, clock).run()


class _Run:
    def __init__(self, nodes: int, tasks: int, seed: int, clock: Callable[[], float]) -> None:
        self._tasks = tasks
        self._clock = clock
        self._durations = random.Random(seed)
        self._owner = Ownership(random.Random(seed))
        self._queues = {f"n{number}": queue.NodeQueue(SLOTS, CAPACITY) for number in range(nodes)}
        self._batches: dict[int, own.Dispatch] = {}
        self._needs = {f"job{number}": needs for number, needs in enumerate(KINDS)}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._now = 0.0
        self._owner_s = 0.0
        self._committed = 0
        self._refused = 0
        self._busy_s = 0.0

    def run(self) -> Placed:
        for number, (node, each) in enumerate(self._queues.items()):
            self._at_node(node, each.start())
            self._tell(own.NodeUp(_member(node, number)))
            self._after(LOAD_S * number / len(self._queues), self._load, node)
        for job, share in zip(self._needs, self._shares(), strict=True):
            self._tell(own.Opened(own.JobSpec(job, job, self._needs[job], single=True)))
            self._tell(own.Added(job, share))
        while self._committed < self._tasks:
            self._now, _, call, args = heapq.heappop(self._events)
            call(*args)
        done = sum(summary.done for summary in self._owner.summaries())
        if done != self._tasks or self._committed != self._tasks:
            raise Broken(f"{done} of {self._tasks} tasks are done, and {self._committed} results were committed.")
        slots_s = len(self._queues) * SLOTS * self._now
        return Placed(len(self._queues), self._tasks, self._owner_s, self._refused, self._now, self._busy_s / slots_s)

    def _shares(self) -> Iterator[int]:
        """The tasks of each job."""
        for number in range(len(KINDS)):
            yield self._tasks // len(KINDS) + (number < self._tasks % len(KINDS))

    def _after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self._now + delay_s, next(self._order), call, args))

    def _tell(self, event: own.Event) -> None:
        """Hand the owner an event, and carry its effects out."""
        began = self._clock()
        effects = self._owner.handle(event, self._now)
        self._owner_s += self._clock() - began
        for effect in effects:
            if isinstance(effect, own.Dispatch):
                self._batches[effect.batch] = effect
                self._after(LATENCY_S, self._arrive, effect)
            elif isinstance(effect, own.Commit):
                self._committed += count_of(effect.runs)

    def _arrive(self, sent: own.Dispatch) -> None:
        needs = self._needs[sent.job]
        spec = queue.BatchSpec(
            (OWNER, sent.batch),
            sent.job,
            "env",
            needs.cpus,
            memory_bytes=needs.memory_bytes,
            gpus=needs.gpus,
            resources=needs.resources,
        )
        self._feed(sent.node, queue.Arrived(spec, held=False))

    def _feed(self, node: str, event: queue.Event) -> None:
        self._at_node(node, self._queues[node].handle(event, self._now))

    def _at_node(self, node: str, effects: list[queue.Effect]) -> None:
        for effect in effects:
            match effect:
                case queue.Assign(worker, key):
                    self._begin(node, worker, self._batches[key[1]])
                case queue.Fork(worker):
                    self._feed(node, queue.WorkerReady(worker))
                case queue.Refuse(key, reason):
                    self._refused += 1
                    self._after(LATENCY_S, self._tell, own.BatchRefused(key[1], reason))

    def _begin(self, node: str, worker: int, sent: own.Dispatch) -> None:
        lasts_s = self._durations.expovariate(1 / TASK_S)
        self._busy_s += lasts_s * self._needs[sent.job].cpus
        self._after(lasts_s, self._end, node, worker, sent, lasts_s)

    def _end(self, node: str, worker: int, sent: own.Dispatch, lasted_s: float) -> None:
        del self._batches[sent.batch]
        self._feed(node, queue.BatchDone(worker, retire=False))
        outcomes = own.Outcomes(sent.batch, node, sent.runs, frozenset(), lasted_s)
        self._after(LATENCY_S, self._tell, outcomes)

    def _load(self, node: str) -> None:
        each = self._queues[node]
        account = each.account
        load = Load(
            running=each.running,
            queued=each.queued,
            memory_available_bytes=CAPACITY.memory_bytes - account.memory_bytes,
            memory_declared_bytes=account.memory_bytes,
            resources_in_use=tuple(account.resources.values()),
        )
        self._after(LATENCY_S, self._tell, own.NodeLoad(node, load))
        self._after(LOAD_S, self._load, node)


def _member(node: str, number: int) -> Member:
    return Member(
        node,
        node,
        node,
        1,
        SLOTS,
        Versions("", 0, "", "", ""),
        1,
        memory_bytes=CAPACITY.memory_bytes,
        labels={"zone": ZONES[number % len(ZONES)]},
        resources=dict(CAPACITY.resources),
    )
