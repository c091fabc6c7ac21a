"""A node's lines under load, in virtual time: shares of users and jobs, priorities, wide tasks, bounds of memory."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import pytest

from kos_cluster.core import lines
from kos_cluster.core import queue as q
from kos_cluster.core.capacity import gib

ALICE, BOB = ("alice", "1"), ("bob", "1")


class Busy:
    """A node whose jobs always have batches that wait; `lasts_s` of each by its job."""

    def __init__(self, slots: int, lasts_s: dict[str, float]) -> None:
        self.queue = q.NodeQueue(slots)
        self.now = 0.0
        self.lasts_s = lasts_s
        self.had_s: Counter[str] = Counter()  # slots times seconds, of each job
        self.started: list[tuple[float, str]] = []
        self.always: dict[str, tuple[q.Owner, dict[str, int]]] = {}
        self._numbers = itertools.count()
        self._specs: dict[q.Key, q.BatchSpec] = {}
        self._ends: list[tuple[float, int, int, q.Key]] = []
        self.take(self.queue.start())

    def add(self, job: str, owner: q.Owner = ALICE, env: str = "e", **more: int) -> q.BatchSpec:
        spec = q.BatchSpec((owner, next(self._numbers)), job, env, **more)
        self._specs[spec.key] = spec
        self.take(self.queue.handle(q.Arrived(spec, held=False), self.now))
        return spec

    def keep(self, job: str, owner: q.Owner = ALICE, **more: int) -> None:
        """Such batches wait from now on, whatever has run."""
        self.always[job] = (owner, more)
        for _ in range(4 * self.queue.slots):
            self.add(job, owner, **more)

    def take(self, effects: list[q.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, q.Fork):
                self.take(self.queue.handle(q.WorkerReady(effect.worker), self.now))
            elif isinstance(effect, q.Assign):
                spec = self._specs[effect.key]
                self.started.append((self.now, spec.job))
                heapq.heappush(
                    self._ends,
                    (self.now + self.lasts_s.get(spec.job, 1.0), next(self._numbers), effect.worker, spec.key),
                )

    def run(self, until_s: float) -> None:
        next_tick = self.now
        while self.now < until_s:
            if not self._ends or next_tick <= self._ends[0][0]:
                self.now, next_tick = next_tick, next_tick + 0.1
                self.take(self.queue.tick(self.now))
                continue
            self.now, _, worker, key = heapq.heappop(self._ends)
            spec = self._specs[key]
            self.had_s[spec.job] += self.lasts_s.get(spec.job, 1.0) * spec.cpus  # type: ignore[assignment]
            self.take(self.queue.handle(q.BatchDone(worker, retire=False), self.now))
            if spec.job in self.always:
                owner, more = self.always[spec.job]
                self.add(spec.job, owner, **more)

    def first_start_s(self, job: str) -> float:
        return next(at for at, started in self.started if started == job)


def shares(node: Busy) -> dict[str, float]:
    total = sum(node.had_s.values())
    return {job: had_s / total for job, had_s in node.had_s.items()}


def test_jobs_share_the_time_and_not_the_turns_however_long_their_tasks_are():
    node = Busy(4, {"long": 5.0, "short": 0.05})
    for job in ("long", "short"):
        node.keep(job)
    node.run(400)
    assert shares(node)["long"] == pytest.approx(0.5, abs=0.06)


def test_users_share_first_and_then_each_users_jobs():
    node = Busy(4, {})
    for number in range(9):
        node.keep(f"a{number}")
    node.keep("b", BOB)
    node.run(400)
    assert shares(node)["b"] == pytest.approx(0.5, abs=0.05)
    assert shares(node)["a0"] == pytest.approx(0.5 / 9, abs=0.02)


def test_a_priority_doubles_a_jobs_share_of_its_users_and_takes_none_of_others():
    node = Busy(4, {})
    node.keep("a", priority=10)
    node.keep("b", BOB)
    node.keep("c", BOB, priority=2)
    node.run(600)
    assert shares(node)["a"] == pytest.approx(0.5, abs=0.05)
    assert shares(node)["c"] == pytest.approx(0.5 * 4 / 5, abs=0.05)


def test_a_single_task_waits_for_no_more_than_the_next_slot_that_is_free():
    node = Busy(1, {})
    for _ in range(200):
        node.add("million")
    node.run(10.5)
    node.add("single", BOB)
    node.add("mine")
    node.run(20)
    assert node.first_start_s("single") <= 12
    assert node.first_start_s("mine") <= 13


def test_within_a_job_the_first_come_goes_first():
    node = Busy(2, {})
    order = [node.add("a").key for _ in range(20)]
    seen: list[q.Key] = []
    take = node.take

    def noting(effects: list[q.Effect]) -> None:
        seen.extend(effect.key for effect in effects if isinstance(effect, q.Assign))
        take(effects)

    node.take = noting  # type: ignore[method-assign]
    node.run(30)
    assert order[2:] == seen


def test_slots_gather_for_a_wide_task_that_narrow_ones_would_pass_for_ever():
    node = Busy(4, {"narrow": 3.0})
    node.keep("narrow", BOB)
    node.run(0.7)
    for number in range(3):  # so that slots become free one after the other
        node.lasts_s["narrow"] = 3.0 + number
        node.run(node.now + 0.5)
    node.add("wide", cpus=4)
    node.run(60)
    assert node.first_start_s("wide") < 30
    assert node.had_s["narrow"] > 60 * 4 * 0.5


def test_only_the_time_counts_for_which_a_wide_task_is_first_in_turn():
    waiting: lines.Lines[lines.Waiter] = lines.Lines()
    wide, beside = (lines.Waiter(q.BatchSpec((("a", "1"), n), f"j{n}", "e", cpus=n), ("a", f"j{n}")) for n in (4, 1))

    def started(now: float) -> lines.Waiter | None:
        return waiting.next(lambda spec: spec.cpus == 1, lambda spec: True, now)

    waiting.add(wide)
    waiting.add(beside)
    assert started(0.0) is beside
    for now in range(1, 500):  # its user has more than enough, so another's turn it is
        waiting.charge_running([beside], float(now))
        other = lines.Waiter(beside.spec, ("b", "k"))
        waiting.add(other)
        assert started(float(now)) is other
        waiting.over(other, now + 0.1)
    waiting.over(beside, 500.0)
    passed_s = wide.passed_s
    assert passed_s < 3.0, "not the 500 s"
    for now in (600.0, 600.5, 602.0):
        assert started(now) is None
    assert wide.passed_s == pytest.approx(passed_s + 2.0)


@pytest.mark.parametrize(("waited_s", "gather"), [(0.0, False), (0.9, False), (1.1, True), (2.9, True), (3.1, False)])
def test_gathering_takes_turns_that_double(waited_s: float, gather: bool):
    assert lines.gathers(waited_s) is gather


def test_what_lends_its_slots_is_not_charged_for_them():
    node = Busy(1, {"parent": 50.0})
    parent = node.add("parent")
    node.take(node.queue.handle(q.TaskWaits(parent.key, True), node.now))
    node.keep("other", BOB)
    node.run(40)
    node.take(node.queue.handle(q.TaskWaits(parent.key, False), node.now))
    node.run(60)
    for _ in range(10):
        node.add("parent2")
    node.run(80)
    assert node.first_start_s("parent2") <= 63


def test_one_that_finds_no_worker_stays_first_and_is_charged_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(q, "WORKERS_LIMIT", 4)
    node = Busy(1, {})
    for number in range(4):
        node.add(f"set up {number}", env=str(number))
    node.run(5)
    node.add("new", env="new")
    node.run(8)
    assert (node.queue.queued, node.queue.running) == (1, 0)
    node.take(node.queue.handle(q.WorkerExited(1, False, "exit code 0"), node.now))
    assert node.first_start_s("new") == node.now


def test_the_payloads_of_one_owner_and_of_all_are_bounded():
    node = q.NodeQueue(1)
    size_bytes = 16 << 20
    owners = [(f"u{number}", "1") for number in range(10)]
    refused: Counter[str] = Counter()
    taken = 0
    for owner in owners:
        for number in range(10):
            spec = q.BatchSpec((owner, number), "j", "e", size_bytes=size_bytes)
            said = [e.reason for e in node.handle(q.Arrived(spec, held=False), 0.0) if isinstance(e, q.Refuse)]
            refused.update(said)
            taken += 0 if said else size_bytes
    assert taken <= q.QUEUE_LIMIT_BYTES
    assert set(refused) == {
        f"the owner has batches of {gib(q.OWNER_LIMIT_BYTES)} here already",
        f"the node's queue is full ({gib(q.QUEUE_LIMIT_BYTES)})",
    }
    for owner in owners:
        node.handle(q.OwnerGone(owner), 0.0)
    assert node._size_bytes == 0
