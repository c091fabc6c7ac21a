"""Work that waits at busy nodes goes to idle ones: asked for when it should be, and run exactly once."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kos_cluster.core import ownership as own
from kos_cluster.core import queue as q
from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import Load, Member, MemberState, Runs, Versions, indices_of, runs_of
from kos_cluster.core.takingback import ASK_AGAIN_S, STUCK_S

VERSIONS = Versions("0", 1, "3.11.0", "", "3")


def member(name: str, slots: int) -> Member:
    return Member(name, name, "h", 1, slots, VERSIONS, 1, MemberState.ALIVE, memory_bytes=1 << 33)


def machine(nodes: int, slots: int = 1) -> own.Ownership:
    core = own.Ownership(random.Random(0))
    for number in range(nodes):
        core.handle(own.NodeUp(member(f"n{number}", slots)), 0.0)
    return core


def dispatches(effects: list[own.Effect]) -> list[own.Dispatch]:
    return [e for e in effects if isinstance(e, own.Dispatch)]


def asked(effects: list[own.Effect]) -> list[own.TakeBackAt]:
    return [e for e in effects if isinstance(e, own.TakeBackAt)]


def with_tail(core: own.Ownership) -> own.Dispatch:
    """A batch of several tasks that is alone at its node; all others are done."""
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    (first,) = dispatches(core.handle(own.Added("j", 1), 1.0))
    core.handle(own.Outcomes(first.batch, first.node, first.runs, frozenset(), 1e-4), 1.0)
    waiting = dispatches(core.handle(own.Added("j", 40), 1.0))
    kept = waiting.pop(0)
    assert sum(count for _, count in kept.runs) > 1
    while waiting:
        one = waiting.pop(0)
        waiting += dispatches(core.handle(own.Outcomes(one.batch, one.node, one.runs, frozenset(), 1e-4), 1.0))
    return kept


def test_the_rest_of_a_batch_is_asked_for_once_its_task_lasts_and_another_node_idles():
    core = machine(2)
    batch = with_tail(core)
    core.handle(own.StartedRunning(batch.batch), 1.1)
    assert asked(core.tick(1.1)) == []
    assert asked(core.tick(2.0)) == [own.TakeBackAt(batch.node, [batch.batch])]
    assert asked(core.tick(2.1)) == []
    assert asked(core.tick(2.0 + ASK_AGAIN_S)) == [own.TakeBackAt(batch.node, [batch.batch])]
    indices = list(indices_of(batch.runs))
    back = runs_of(indices[1:])
    sent = dispatches(core.handle(own.Returned(batch.batch, back), 3.1))
    assert {d.node for d in sent} == {"n0", "n1"} - {batch.node} and {d.attempt for d in sent} == {1}
    assert dispatches(core.handle(own.Returned(batch.batch, back), 3.2)) == []
    story = core.story("j", indices[1])
    assert story is not None and len(story.attempts) <= 1
    assert core.summary("j").reruns == 0


def test_a_batch_that_waits_at_its_node_is_asked_for_and_does_not_go_there_again():
    core = machine(2)
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    (sent,) = dispatches(core.handle(own.Added("j", 1), 1.0))
    (wish,) = asked(core.tick(1.0 + 2 * STUCK_S))
    (again,) = dispatches(core.handle(own.Returned(sent.batch, sent.runs), 1.6))
    assert wish.node == sent.node != again.node
    assert core.outstanding(sent.node) == []


@pytest.mark.parametrize("busy", ["one", "loaded"])
def test_nothing_is_asked_for_while_no_node_idles(busy: str):
    core = machine(1 if busy == "one" else 2)
    batch = with_tail(core)
    core.handle(own.StartedRunning(batch.batch), 1.1)
    if busy == "loaded":
        for node in ("n0", "n1"):
            core.handle(own.NodeLoad(node, Load(running=1)), 1.2)
    assert asked(core.tick(9.0)) == []


def test_a_running_task_alone_is_not_asked_for():
    core = machine(2)
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    (sent,) = dispatches(core.handle(own.Added("j", 1), 1.0))
    core.handle(own.StartedRunning(sent.batch), 1.1)
    assert asked(core.tick(9.0)) == []


@pytest.mark.parametrize("by", ["job", "task"])
@pytest.mark.parametrize(("rate", "after_s"), [(None, 2.0), (1e7, 20.0), (1e9, STUCK_S)])
def test_what_reads_much_stays_until_it_has_waited_as_long_as_moving_that_takes(
    by: str, rate: float | None, after_s: float
):
    core, inputs = machine(2), Inputs(200_000_000, {"n0": 200_000_000})
    if rate is not None:
        core.handle(own.NodeLinks("n1", {"n0": rate}), 0.0)
    core.handle(own.Opened(own.JobSpec("j", "f", inputs=inputs if by == "job" else None)), 1.0)
    sent = dispatches(core.handle(own.Added("j", 1, held=by == "task"), 1.0))
    if by == "task":
        sent = dispatches(core.handle(own.Released("j", [(0, 1)], 0, inputs), 1.0))
    assert sent[0].node == "n0"
    assert asked(core.tick(1.0 + after_s - 0.05)) == []
    assert asked(core.tick(1.0 + after_s + 0.05)) == [own.TakeBackAt("n0", [sent[0].batch])]


# ---- the node


def node_with(*batches: q.BatchSpec, ready: bool = True) -> tuple[q.NodeQueue, list[q.Effect]]:
    node = q.NodeQueue(1)
    effects = node.start()
    if ready:
        effects += node.handle(q.WorkerReady(1), 0.0)
    for batch in batches:
        effects += node.handle(q.Arrived(batch, held=False), 0.0)
    return node, effects


A = ("alice", "1")


def test_a_node_gives_back_what_waits_and_withholds_what_has_not_begun():
    node, _ = node_with(q.BatchSpec((A, 1), "j", "e"), q.BatchSpec((A, 2), "j", "e"))
    effects = node.handle(q.TakeBack(((A, 1), (A, 2), (A, 3))), 1.0)
    assert effects == [q.Withhold(1, (A, 1)), q.GiveBack((A, 2))]
    assert node.queued == 0 and node.running == 1
    assert node.handle(q.TakeBack(((A, 2),)), 1.0) == []


def test_what_is_about_to_begin_stays():
    node, _ = node_with(q.BatchSpec((A, 1), "j", "e"), ready=False)
    assert node.handle(q.TakeBack(((A, 1),)), 1.0) == []
    node.handle(q.Arrived(q.BatchSpec((A, 2), "j", "e"), held=True), 1.0)
    assert node.handle(q.TakeBack(((A, 2),)), 1.0) == []


# ---- all of it, in virtual time

TICK_S = 0.2
LOAD_S = 0.5


@dataclass
class Run:
    """A batch with a worker."""

    sent: own.Dispatch
    owner: int
    order: list[int]
    position: int = 0


class World:
    """Owners and nodes that are the product's machines; messages between them take time and come twice at times."""

    def __init__(self, seed: int, nodes: int, slots: int, jobs: list[list[float]]) -> None:
        self.rng = random.Random(seed)
        self.jobs = jobs  # the durations of the tasks of each owner's job
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.ran: Counter[tuple[int, int]] = Counter()
        self.done: set[tuple[int, int]] = set()
        self.nodes = {f"n{number}": q.NodeQueue(slots) for number in range(nodes)}
        self.sent: dict[q.Key, own.Dispatch] = {}
        self.runs: dict[tuple[str, int], Run] = {}
        self.owners = [own.Ownership(random.Random(seed + number)) for number in range(len(jobs))]
        for name, node in self.nodes.items():
            self.at_node(name, node.start())
            self.after(self.rng.random() * LOAD_S, self.load, name)
            self.after(0.1, self.tick_node, name)
        for number, durations in enumerate(jobs):
            for name in self.nodes:
                self.tell(number, own.NodeUp(member(name, slots)))
            self.tell(number, own.Opened(own.JobSpec(f"j{number}", "f")))
            self.after(0.01 * number, self.tell, number, own.Added(f"j{number}", len(durations)))
            self.after(TICK_S, self.tick_owner, number)

    def after(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self.events, (self.now + delay_s, next(self.order), call, args))

    def message(self, call: Callable[..., None], *args: Any) -> None:
        for _ in range(1 + (self.rng.random() < 0.05)):
            self.after(self.rng.uniform(0.001, 0.02), call, *args)

    def run(self) -> float:
        total = sum(map(len, self.jobs))
        while len(self.done) < total:
            self.now, _, call, args = heapq.heappop(self.events)
            call(*args)
        return self.now

    def tell(self, owner: int, event: own.Event) -> None:
        self.at_owner(owner, self.owners[owner].handle(event, self.now))

    def tick_owner(self, owner: int) -> None:
        self.at_owner(owner, self.owners[owner].tick(self.now))
        self.after(TICK_S, self.tick_owner, owner)

    def at_owner(self, owner: int, effects: list[own.Effect]) -> None:
        for effect in effects:
            key = ((f"u{owner}", "1"), getattr(effect, "batch", 0))
            if isinstance(effect, own.Dispatch):
                self.sent[key] = effect
                spec = q.BatchSpec(key, effect.job, "e")
                self.after(0.002, self.feed, effect.node, q.Arrived(spec, held=False))
            elif isinstance(effect, own.TakeBackAt):
                keys = tuple(((f"u{owner}", "1"), number) for number in effect.batches)
                self.message(self.feed, effect.node, q.TakeBack(keys))
            elif isinstance(effect, own.Commit):
                self.done.update((owner, index) for index in indices_of(effect.runs))

    def feed(self, node: str, event: q.Event) -> None:
        self.at_node(node, self.nodes[node].handle(event, self.now))

    def tick_node(self, node: str) -> None:
        self.at_node(node, self.nodes[node].tick(self.now))
        self.after(0.1, self.tick_node, node)

    def load(self, node: str) -> None:
        load = Load(self.nodes[node].running, self.nodes[node].queued)
        for owner in range(len(self.owners)):
            self.message(self.tell, owner, own.NodeLoad(node, load))
        self.after(LOAD_S, self.load, node)

    def at_node(self, node: str, effects: list[q.Effect]) -> None:
        for effect in effects:
            match effect:
                case q.Fork(worker):
                    self.after(0.05, self.feed, node, q.WorkerReady(worker))
                case q.Assign(worker, key):
                    sent = self.sent[key]
                    run = self.runs[node, worker] = Run(sent, int(key[0][0][1:]), list(indices_of(sent.runs)))
                    self.after(0.1, self.started, node, worker, run)
                    self.begin(node, worker, run)
                case q.Withhold(worker):
                    run = self.runs[node, worker]
                    self.returned(run.owner, run.sent, run.order[run.position + 1 :])
                    del run.order[run.position + 1 :]
                case q.GiveBack(key):
                    sent = self.sent[key]
                    self.returned(int(key[0][0][1:]), sent, list(indices_of(sent.runs)))

    def started(self, node: str, worker: int, run: Run) -> None:
        if self.runs.get((node, worker)) is run:
            self.message(self.tell, run.owner, own.StartedRunning(run.sent.batch))

    def returned(self, owner: int, sent: own.Dispatch, indices: list[int]) -> None:
        if indices:
            self.message(self.tell, owner, own.Returned(sent.batch, runs_of(indices)))

    def begin(self, node: str, worker: int, run: Run) -> None:
        index = run.order[run.position]
        self.ran[run.owner, index] += 1
        self.after(self.jobs[run.owner][index], self.end, node, worker, run)

    def end(self, node: str, worker: int, run: Run) -> None:
        index = run.order[run.position]
        runs: Runs = [(index, 1)]
        lasted_s = self.jobs[run.owner][index]
        self.message(self.tell, run.owner, own.Outcomes(run.sent.batch, node, runs, frozenset(), lasted_s))
        run.position += 1
        if run.position < len(run.order):
            self.begin(node, worker, run)
        else:
            del self.runs[node, worker]
            self.feed(node, q.BatchDone(worker, retire=False))


@pytest.mark.parametrize("seed", range(15))
def test_tasks_that_last_hold_up_no_others_and_all_run_once(seed: int):
    rng = random.Random(seed)
    jobs = [[3.0 if rng.random() < 0.03 else 0.001 for _ in range(400)], [rng.expovariate(4) for _ in range(60)]]
    slots = 6
    world = World(seed, 3, slots // 3, jobs)
    end_s = world.run()
    assert set(world.ran.values()) == {1}
    assert len(world.ran) == 460
    longest_s = max(map(max, jobs))
    assert end_s <= sum(map(sum, jobs)) / slots + longest_s + 2.5
