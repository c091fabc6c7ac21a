"""A node's queue: fair turns, slots, environments, lending, stopping; and a seeded life in which nothing is lost."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core import queue as q
from kos_cluster.core.records import Cause

A = ("alice", "1")
B = ("bob", "1")


def spec(number: int, owner: q.Owner = A, job: str = "j", env: str = "e", **more: object) -> q.BatchSpec:
    return q.BatchSpec((owner, number), job, env, **more)  # type: ignore[arg-type]


class Node:
    """Runs the machine and answers for its workers, which are ready at once."""

    def __init__(self, slots: int) -> None:
        self.queue = q.NodeQueue(slots)
        self.now = 0.0
        self.assigned: list[tuple[int, q.Key]] = []
        self.effects: list[q.Effect] = []
        self.take(self.queue.start())

    def take(self, effects: list[q.Effect]) -> None:
        for effect in effects:
            self.effects.append(effect)
            if isinstance(effect, q.Fork):
                self.feed(q.WorkerReady(effect.worker))
            elif isinstance(effect, q.Assign):
                self.assigned.append((effect.worker, effect.key))

    def feed(self, event: q.Event) -> list[q.Effect]:
        before = len(self.effects)
        self.take(self.queue.handle(event, self.now))
        return self.effects[before:]

    def arrive(self, batch: q.BatchSpec, held: bool = False) -> list[q.Effect]:
        return self.feed(q.Arrived(batch, held))

    def finish(self, position: int = 0) -> None:
        worker, _ = self.assigned.pop(position)
        self.feed(q.BatchDone(worker, retire=False))

    @property
    def order(self) -> list[int]:
        return [number for _, (_, number) in self.assigned]


def test_a_batch_starts_at_once_on_a_blank_worker():
    node = Node(1)
    node.arrive(spec(1))
    assert node.order == [1]
    assert node.queue.running == 1


def test_slots_bound_what_runs():
    node = Node(2)
    for number in range(5):
        node.arrive(spec(number))
    assert node.order == [0, 1]
    assert node.queue.queued == 3


def test_jobs_take_turns_so_a_large_one_starves_nobody():
    node = Node(1)
    for number in range(10):
        node.arrive(spec(number))
    node.arrive(spec(0, B, "single"))
    node.finish()
    node.finish()
    assert (B, 0) in [key for _, key in node.assigned] or node.queue.queued == 8


def test_a_worker_is_used_again_for_its_environment_only():
    node = Node(1)
    node.arrive(spec(1, env="x"))
    first = node.assigned[0][0]
    node.finish()
    node.arrive(spec(2, env="x"))
    assert node.assigned[0][0] == first
    node.finish()
    node.arrive(spec(3, env="y"))
    assert node.assigned[0][0] != first


def test_a_fresh_worker_serves_one_batch_and_retires():
    node = Node(1)
    node.arrive(spec(1, env="x", fresh=True))
    worker = node.assigned[0][0]
    node.finish()
    assert q.Retire(worker) in node.effects
    node.feed(q.WorkerExited(worker, False, "exit code 0"))
    node.arrive(spec(2, env="x", fresh=True))
    assert node.assigned[0][0] != worker


def test_a_held_batch_waits_for_its_parts():
    node = Node(1)
    node.arrive(spec(1), held=True)
    assert node.order == []
    node.feed(q.PartsComplete((A, 1)))
    assert node.order == [1]


def test_the_same_batch_twice_runs_once():
    node = Node(2)
    node.arrive(spec(1))
    node.arrive(spec(1))
    assert node.order == [1]


def test_a_waiting_task_lends_its_slot_so_that_its_children_run():
    node = Node(1)
    node.arrive(spec(1))
    node.arrive(spec(2, B, "child"))
    assert node.order == [1]
    node.feed(q.TaskWaits((A, 1), True))
    assert node.order == [1, 2]
    node.feed(q.TaskWaits((A, 1), False))
    assert node.queue.running == 2
    node.finish(0)
    node.finish(0)
    assert node.queue.running == 0


def test_a_running_batch_is_interrupted_then_killed():
    node = Node(1)
    node.arrive(spec(1))
    worker = node.assigned[0][0]
    assert q.Interrupt(worker) in node.feed(q.CancelBatches(((A, 1),)))
    assert node.queue.tick(q.GRACE_S / 2) == []
    assert node.queue.tick(q.GRACE_S) == [q.Kill(worker)]
    lost = node.feed(q.WorkerExited(worker, False, "SIGKILL"))
    assert [(e.key, e.cause) for e in lost if isinstance(e, q.Lose)] == [((A, 1), Cause.CANCELLED)]
    assert node.queue.running == 0


def test_a_timeout_stops_a_batch():
    node = Node(1)
    node.arrive(spec(1, timeout_s=5.0))
    assert node.queue.tick(4.9) == []
    assert [type(e) for e in node.queue.tick(5.0)] == [q.Interrupt]
    assert node.queue.stopping((A, 1)) is Cause.TIMEOUT


def test_memory_is_blamed_only_when_the_kernel_says_so():
    node = Node(2)
    node.arrive(spec(1))
    node.arrive(spec(2))
    causes = []
    for (worker, _), oom in zip(list(node.assigned), (True, False), strict=True):
        causes += [e.cause for e in node.feed(q.WorkerExited(worker, oom, "SIGKILL")) if isinstance(e, q.Lose)]
    assert causes == [Cause.OUT_OF_MEMORY, Cause.WORKER_DIED]


def test_an_owner_that_is_gone_frees_everything():
    node = Node(1)
    for number in range(3):
        node.arrive(spec(number))
    effects = node.feed(q.OwnerGone(A))
    assert len([e for e in effects if isinstance(e, q.Lose)]) == 2
    assert [type(e) for e in effects if not isinstance(e, q.Lose)] == [q.Interrupt]


def test_limits_refuse_with_the_number():
    node = Node(1)
    for number in range(q.OWNER_LIMIT):
        node.arrive(spec(number))
    (refusal,) = node.arrive(spec(q.OWNER_LIMIT))
    assert isinstance(refusal, q.Refuse) and str(q.OWNER_LIMIT) in refusal.reason
    (too_wide,) = Node(2).arrive(spec(1, cpus=3))
    assert isinstance(too_wide, q.Refuse) and "3 slots" in too_wide.reason


def test_many_environments_do_not_keep_many_workers():
    node = Node(1)
    for number in range(30):
        node.arrive(spec(number, env=f"e{number}"))
        node.finish()
    forked = sum(isinstance(e, q.Fork) for e in node.effects)
    retired = sum(isinstance(e, q.Retire) for e in node.effects)
    assert forked - retired <= 2 * 1 + 3


def test_stopping_gives_everything_back_and_takes_nothing():
    node = Node(1)
    node.arrive(spec(1))
    node.arrive(spec(2))
    lost = [e for e in node.feed(q.Stopping()) if isinstance(e, q.Lose)]
    assert [(e.key, e.cause) for e in lost] == [((A, 2), Cause.STOPPING)]
    (refusal,) = node.arrive(spec(3))
    assert isinstance(refusal, q.Refuse)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_every_batch_has_one_end_and_slots_come_back(seed: int):
    rng = random.Random(seed)
    machine = q.NodeQueue(3)
    alive: set[int] = set()
    running: dict[int, q.Key] = {}
    ended: dict[q.Key, str] = {}
    now, number = 0.0, 0

    def take(effects: list[q.Effect]) -> None:
        for effect in effects:
            match effect:
                case q.Fork(worker):
                    alive.add(worker)
                    take(machine.handle(q.WorkerReady(worker), now))
                case q.Assign(worker, key):
                    assert worker in alive and worker not in running
                    running[worker] = key
                case q.Refuse(key, _) | q.Lose(key, _, _, _):
                    assert key not in ended
                    ended[key] = type(effect).__name__
                case q.Kill(worker):
                    die(worker)
                case q.Retire(worker):
                    assert worker not in running
                    alive.discard(worker)
                    take(machine.handle(q.WorkerExited(worker, False, ""), now))

    def die(worker: int) -> None:
        alive.discard(worker)
        running.pop(worker, None)
        take(machine.handle(q.WorkerExited(worker, False, "SIGKILL"), now))

    def finish() -> None:
        worker = rng.choice(sorted(running))
        ended[running.pop(worker)] = "done"
        take(machine.handle(q.BatchDone(worker, rng.random() < 0.1), now))

    take(machine.start())
    sent: list[q.Key] = []
    for _ in range(150):
        now += rng.random() * 0.1
        match rng.randrange(8):
            case 0 | 1 | 2:
                number += 1
                owner = rng.choice([A, B])
                batch = spec(
                    number,
                    owner,
                    rng.choice("xyz"),
                    rng.choice("ef"),
                    cpus=rng.choice([1, 1, 2, 3]),
                    fresh=rng.random() < 0.2,
                    timeout_s=rng.choice([None, 0.3]),
                )
                sent.append(batch.key)
                take(machine.handle(q.Arrived(batch, False), now))
            case 3 | 4 if running:
                finish()
            case 5 if alive:
                die(rng.choice(sorted(alive)))
            case 6 if sent:
                take(machine.handle(q.CancelBatches((rng.choice(sent),)), now))
            case 7 if running:
                key = running[rng.choice(sorted(running))]
                take(machine.handle(q.TaskWaits(key, rng.random() < 0.5), now))
        take(machine.tick(now))
    for _ in range(1000):
        now += 1.0
        take(machine.tick(now))
        if not running:
            break
        finish()
    assert set(ended) == set(sent)
    assert machine.running == 0
    assert machine.queued == 0
