"""A node's queue: fair turns, slots, environments, lending, stopping; and a seeded life in which nothing is lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core import queue as q
from kos_cluster.core.capacity import SLOTS_ALONE, Capacity
from kos_cluster.core.records import Cause

A = ("alice", "1")
B = ("bob", "1")


def spec(number: int, owner: q.Owner = A, job: str = "j", env: str = "e", **more: object) -> q.BatchSpec:
    return q.BatchSpec((owner, number), job, env, **more)  # type: ignore[arg-type]


class Node:
    """Runs the machine and answers for its workers, which are ready at once."""

    def __init__(self, slots: int, capacity: Capacity = SLOTS_ALONE) -> None:
        self.queue = q.NodeQueue(slots, capacity)
        self.now = 0.0
        self.assigned: list[tuple[int, q.Key]] = []
        self.ran: list[int] = []  # numbers of the batches that have ended
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
        worker, key = self.assigned.pop(position)
        self.ran.append(key[1])
        self.feed(q.BatchDone(worker, retire=False))

    def end_retired(self) -> None:
        """Those that were told to end do."""
        for worker in [e.worker for e in self.effects if isinstance(e, q.Retire)]:
            self.feed(q.WorkerExited(worker, False, "exit code 0"))

    @property
    def order(self) -> list[int]:
        return [number for _, (_, number) in self.assigned]


def test_a_batch_starts_at_once_on_a_blank_worker():
    node = Node(1)
    node.arrive(spec(1))
    assert node.order == [1]
    assert node.queue.running == 1


def test_an_owner_is_told_whether_others_wait_and_not_that_they_run():
    node = Node(1)
    node.arrive(spec(1, owner=A))
    node.arrive(spec(2, owner=B))
    assert (node.queue.others_wait(A), node.queue.others_wait(B)) == (True, False)
    node.finish()
    node.arrive(spec(3, owner=A))
    assert (node.queue.others_wait(A), node.queue.others_wait(B)) == (False, True)


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
    node.now = 1.0
    node.finish()
    assert [key for _, key in node.assigned] == [(B, 0)]
    node.finish()
    assert node.order == [1]


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


def test_a_full_queue_refuses_every_owner_until_a_batch_has_ended():
    node = Node(1)
    owners = [(f"u{number}", "1") for number in range(q.QUEUE_LIMIT // q.OWNER_LIMIT)]
    for owner in owners:
        for number in range(q.OWNER_LIMIT):
            assert not [e for e in node.arrive(spec(number, owner)) if isinstance(e, q.Refuse)]
    late = spec(0, ("one more", "1"))
    for refused in (late, spec(q.OWNER_LIMIT, owners[0])):
        (refusal,) = node.arrive(refused)
        assert refusal == q.Refuse(refused.key, f"the node's queue is full ({q.QUEUE_LIMIT} batches)")
    node.finish()
    assert not [e for e in node.arrive(late) if isinstance(e, q.Refuse)]
    assert node.queue.running + node.queue.queued == q.QUEUE_LIMIT


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
    machine = q.NodeQueue(3, Capacity(4 << 30, ("0", "1"), {"licence": 2}))
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
                    memory_bytes=rng.choice([0, 0, 1 << 30, 4 << 30]),
                    gpus=rng.choice([0, 0, 0, 1, 2]),
                    resources=rng.choice([(), (), (("licence", 1),), (("licence", 2),)]),
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
        account = machine.account
        assert account.memory_bytes <= 4 << 30 and account.gpus_in_use <= 2 and account.resources["licence"] <= 2
    for _ in range(1000):
        now += 1.0
        take(machine.tick(now))
        if not running:
            break
        finish()
    assert set(ended) == set(sent)
    assert machine.running == 0
    assert machine.queued == 0
    assert (machine.account.memory_bytes, machine.account.resources) == (0, {"licence": 0})
    assert machine.account.gpus_in_use == 0


# ---- memory, GPUs and named resources

GIB = 1 << 30
RICH = Capacity(4 * GIB, ("0", "1"), {"licence": 2})


def rich(slots: int = 8) -> Node:
    return Node(slots, RICH)


@pytest.mark.parametrize(
    ("takes", "at_once"),
    [
        ({"memory_bytes": 2 * GIB}, 2),
        ({"gpus": 1}, 2),
        ({"gpus": 2}, 1),
        ({"resources": (("licence", 1),)}, 2),
        ({"resources": (("licence", 2),)}, 1),
        ({}, 5),
    ],
)
def test_what_a_batch_takes_bounds_what_runs_and_comes_back(takes: dict[str, object], at_once: int):
    node = rich()
    for number in range(5):
        node.arrive(spec(number, **takes))
    assert node.order == list(range(at_once))
    account = node.queue.account
    assert account.memory_bytes <= 4 * GIB and account.gpus_in_use <= 2 and account.resources["licence"] <= 2
    while node.assigned:
        node.finish()
        node.end_retired()
    assert node.ran == list(range(5))
    assert (account.slots_in_use, account.memory_bytes, account.gpus_in_use, account.resources) == (
        0,
        0,
        0,
        {"licence": 0},
    )


def test_one_that_must_wait_for_memory_does_not_keep_another_line_waiting():
    node = rich()
    node.arrive(spec(1, memory_bytes=4 * GIB))
    node.arrive(spec(2, memory_bytes=1 * GIB))
    node.arrive(spec(1, B, "small"))
    assert [key for _, key in node.assigned] == [(A, 1), (B, 1)]


@pytest.mark.parametrize(
    ("takes", "said"),
    [
        ({"memory_bytes": 5 * GIB}, "it needs 5 GiB, it has 4 GiB"),
        ({"gpus": 3}, "it needs 3 GPUs, it has 2"),
        ({"resources": (("licence", 3),)}, "it needs 3 of licence, it has 2"),
        ({"resources": (("scanner", 1),)}, "it needs 1 of scanner, it has 0"),
        ({"gpus": -1}, "it needs less than nothing"),
        ({"cpus": 0}, "it needs less than nothing"),
        ({"memory_bytes": -1}, "it needs less than nothing"),
        ({"resources": (("licence", -5),)}, "it needs less than nothing"),
        ({"resources": (("licence", 1), ("licence", 1))}, "it names a resource twice"),
    ],
)
def test_what_can_never_be_given_is_refused_with_the_arithmetic(takes: dict[str, object], said: str):
    node = rich()
    (refused,) = node.arrive(spec(1, **takes))
    assert isinstance(refused, q.Refuse) and said in refused.reason
    assert node.queue.account.resources == {"licence": 0}


def test_each_gpu_has_one_holder_and_is_free_when_its_process_has_ended():
    node = rich()
    for number in range(3):
        node.arrive(spec(number, gpus=1))
    given = {e.key[1]: e.gpus for e in node.effects if isinstance(e, q.Assign)}
    assert given == {0: ("0",), 1: ("1",)}
    worker = node.assigned[0][0]
    node.finish()
    assert q.Retire(worker) in node.effects
    assert node.order == [1]  # the memory of GPU 0 is not free yet
    assert node.queue.tick(q.RETIRE_S - 0.1) == []
    assert node.queue.tick(q.RETIRE_S) == [q.Kill(worker)]
    node.feed(q.WorkerExited(worker, False, "SIGKILL"))
    assert node.order == [1, 2]
    assert next(e.gpus for e in node.effects if isinstance(e, q.Assign) and e.key == (A, 2)) == ("0",)


def test_a_waiting_task_lends_its_slots_and_keeps_the_rest():
    node = rich(1)
    node.arrive(spec(1, gpus=2, memory_bytes=GIB))
    node.feed(q.TaskWaits((A, 1), True))
    account = node.queue.account
    assert (account.slots_in_use, account.gpus_in_use, account.memory_bytes) == (0, 2, GIB)
    node.arrive(spec(2, B, "child"))
    assert node.order == [1, 2]


def test_a_worker_over_its_memory_is_killed_at_once_and_the_loss_says_how_much():
    node = rich()
    node.arrive(spec(1, memory_bytes=GIB))
    node.arrive(spec(2))
    worker = node.assigned[0][0]
    assert node.queue.bounded() == [(worker, (A, 1))]
    assert node.feed(q.OverMemory(worker, "it held 2 GiB")) == [q.Kill(worker)]
    assert node.feed(q.OverMemory(worker, "it held 3 GiB")) == [] and node.queue.bounded() == []
    (lost,) = [e for e in node.feed(q.WorkerExited(worker, False, "SIGKILL")) if isinstance(e, q.Lose)]
    assert (lost.cause, lost.detail) == (Cause.MEMORY_LIMIT, "it held 2 GiB")


def test_over_its_high_water_mark_a_node_takes_nothing_and_gives_back_what_is_queued():
    node = Node(1)
    node.arrive(spec(1))
    node.arrive(spec(2))
    node.arrive(spec(3), held=True)
    full = "its memory is 97% full"
    refused = node.feed(q.Pressed(full))
    assert [(e.key[1], e.reason) for e in refused if isinstance(e, q.Refuse)] == [(2, full), (3, full)]
    assert node.queue.pressed and node.queue.queued == 0
    (late,) = node.arrive(spec(4))
    assert isinstance(late, q.Refuse) and late.reason == full
    node.finish()
    node.feed(q.Pressed(""))
    node.arrive(spec(5))
    assert node.order == [5]
