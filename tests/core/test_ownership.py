"""The owner's table under a seeded cluster that loses, delays, repeats and forgets: one result a task, always."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core import ownership as own
from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import (
    AttemptEnd,
    Cause,
    Load,
    Needs,
    Runs,
    TaskState,
    count_of,
    indices_of,
    runs_of,
)
from tests.core.owner import dispatches, done, machine, member, opened, waits


def test_tasks_with_a_result_of_an_earlier_owner_are_not_run():
    core = machine(nodes=1, slots=20)
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    sent = dispatches(core.handle(own.Added("j", 10, settled=[(0, 3), (5, 1), (9, 1)]), 1.0))
    assert sorted(i for d in sent for i in indices_of(d.runs)) == [3, 4, 6, 7, 8]
    summary = core.summary("j")
    assert (summary.total, summary.done, summary.running) == (10, 5, 5)
    ends = [effect for d in sent for effect in done(core, d)]
    assert own.JobIdle("j") in ends
    assert core.summary("j").done == 10


def test_a_job_whose_results_are_all_there_is_over_at_once():
    core = machine()
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    assert core.handle(own.Added("j", 4, settled=[(0, 4)]), 1.0) == [own.JobIdle("j")]


def test_first_tasks_go_alone_to_every_slot():
    sent = dispatches(opened(machine(nodes=2, slots=2), 100))
    assert [count_of(d.runs) for d in sent] == [1, 1, 1, 1]
    assert sorted(d.node for d in sent) == ["id0", "id0", "id1", "id1"]


def test_short_tasks_travel_in_growing_batches():
    core = machine()
    sent = dispatches(opened(core, 10_000))
    largest = 1
    while sent:
        following = dispatches(done(core, sent.pop(0)))
        largest = max([largest, *(count_of(d.runs) for d in following)])
        sent += following
    assert largest > 200
    assert core.summary("j").done == 10_000


def test_a_result_is_committed_once():
    core = machine()
    (d,) = dispatches(opened(core, 1))
    first = done(core, d)
    assert [e.runs for e in first if isinstance(e, own.Commit)] == [[(0, 1)]]
    assert not [e for e in done(core, d) if isinstance(e, own.Commit)]


def test_a_lost_node_means_another_attempt_elsewhere():
    core = machine()
    (d,) = dispatches(opened(core, 1))
    effects = core.handle(own.NodeDown(d.node, "power cut"), 3.0)
    (again,) = dispatches(effects)
    assert again.attempt == 2
    assert again.node != d.node
    assert own.AttemptOver("j", [(0, 1)], 1) in effects
    done(core, again, 4.0)
    story = core.story("j", 0)
    assert story is not None
    assert story.state is TaskState.DONE
    assert [(a.number, a.end, a.cause) for a in story.attempts] == [
        (1, AttemptEnd.NODE_LOST, "power cut"),
        (2, AttemptEnd.DONE, ""),
    ]


def test_retries_bound_the_attempts():
    core = machine(nodes=1)
    (d,) = dispatches(opened(core, 1, retries=2))
    for attempt in (1, 2):
        assert d.attempt == attempt
        lost = own.BatchLost(d.batch, d.runs, [], Cause.WORKER_DIED, "SIGKILL")
        (d,) = dispatches(core.handle(lost, 2.0))
    effects = core.handle(own.BatchLost(d.batch, d.runs, [], Cause.WORKER_DIED, "SIGKILL"), 2.0)
    assert [(e.end, e.attempts) for e in effects if isinstance(e, own.GiveUp)] == [(AttemptEnd.WORKER_LOST, 3)]


def test_without_retries_a_task_that_may_have_run_is_not_run_again():
    core = machine(nodes=1)
    (d,) = dispatches(opened(core, 1, retries=0))
    effects = core.handle(own.BatchLost(d.batch, d.runs, [], Cause.WORKER_DIED, "SIGKILL"), 2.0)
    assert not dispatches(effects)
    assert core.summary("j").failed == 1


def test_what_did_not_run_keeps_its_attempt():
    core = machine(nodes=1)
    (d,) = dispatches(opened(core, 1, retries=0))
    (again,) = dispatches(core.handle(own.BatchLost(d.batch, [], d.runs, Cause.WORKER_DIED, "SIGKILL"), 2.0))
    assert again.attempt == 1


def test_out_of_memory_is_tried_once_more_only():
    core = machine(nodes=1)
    (d,) = dispatches(opened(core, 1, retries=9))
    (d,) = dispatches(core.handle(own.BatchLost(d.batch, d.runs, [], Cause.OUT_OF_MEMORY, ""), 2.0))
    effects = core.handle(own.BatchLost(d.batch, d.runs, [], Cause.OUT_OF_MEMORY, ""), 2.0)
    assert [e.end for e in effects if isinstance(e, own.GiveUp)] == [AttemptEnd.OUT_OF_MEMORY]


def test_a_refusal_is_no_attempt_and_goes_elsewhere():
    core = machine(nodes=2, slots=1)
    (d,) = dispatches(opened(core, 1))
    (again,) = dispatches(core.handle(own.BatchRefused(d.batch, "full"), 2.0))
    assert again.node != d.node
    story = core.story("j", 0)
    assert story is not None and len(story.attempts) == 1


def test_refused_by_all_waits_and_is_tried_again():
    core = machine(nodes=1, slots=1)
    (d,) = dispatches(opened(core, 1))
    assert not dispatches(core.handle(own.BatchRefused(d.batch, "full"), 2.0))
    assert "refused" in waits(core)[0]
    assert dispatches(core.tick(2.0 + own.REFUSED_PAUSE_S))


def test_cancel_reaches_nodes_and_waiting_tasks():
    core = machine(nodes=1, slots=1)
    (d,) = dispatches(opened(core, 5))
    effects = core.handle(own.Cancelled("j"), 2.0)
    assert own.CancelAt(d.node, [d.batch]) in effects
    assert own.AttemptOver("j", [(0, 1)], 1) in effects
    assert own.Dropped("j", [(0, 5)]) in effects
    assert own.JobIdle("j") in effects
    assert not [e for e in done(core, d) if isinstance(e, own.Commit)]


def test_cancelling_one_task_spares_its_batchmates():
    core = machine(nodes=1, slots=1)
    (d,) = dispatches(opened(core, 200))
    sent = dispatches(done(core, d))
    batch = max(sent, key=lambda e: count_of(e.runs))
    victim = batch.runs[0][0]
    effects = core.handle(own.Cancelled("j", victim), 3.0)
    assert own.Dropped("j", [(victim, 1)]) in effects
    waiting = [*[b for b in sent if b is not batch], *dispatches(effects)]
    while waiting:
        waiting += dispatches(done(core, waiting.pop()))
    summary = core.summary("j")
    assert (summary.done, summary.failed) == (199, 1)


def test_what_waits_can_be_cancelled_and_the_rest_left_alone():
    core = machine(nodes=1, slots=1)
    sent = dispatches(opened(core, 10, max_parallel=1))
    effects = core.handle(own.Cancelled("j", waiting=True), 1.5)
    assert own.Dropped("j", [(1, 9)]) in effects and not [e for e in effects if isinstance(e, own.CancelAt)]
    assert own.JobIdle("j") in done(core, sent[0])
    assert (core.summary("j").done, core.summary("j").cancelled) == (1, 9)
    assert core.handle(own.Cancelled("nobody's", waiting=True), 4.0) == []


def test_impossible_needs_are_told_with_each_nodes_reason():
    core = machine(nodes=2, slots=2)
    assert core.impossible(Needs(cpus=3)) == (
        "needs 3 slots, the most are 2 on node0",
        "node0: needs 3 slots, it has 2",
        "node1: needs 3 slots, it has 2",
    )
    assert core.impossible(Needs(cpus=2)) == ()
    assert "asks for node9" in core.impossible(Needs(on="node9"))[0]


def test_unreadable_payloads_exclude_a_node():
    core = machine(nodes=1)
    core.handle(own.NodeUp(member(1), unreadable={"numpy": "it has numpy 1.26, this side 2.1"}), 0.0)
    assert all(d.node == "id0" for d in dispatches(opened(core, 8, needs=Needs(modules=("numpy",)))))


@dataclass
class Cluster:
    """A seeded network and nodes that misbehave in every way the design allows."""

    rng: random.Random
    core: own.Ownership
    held: dict[str, dict[int, own.Dispatch]] = field(default_factory=dict)
    network: list[own.Event] = field(default_factory=list)
    committed: dict[int, int] = field(default_factory=dict)
    ended: dict[int, str] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    now: float = 1.0

    def feed(self, event: own.Event) -> None:
        self.now += 0.01
        self.take(self.core.handle(event, self.now))

    def take(self, effects: list[own.Effect]) -> None:
        for effect in effects:
            match effect:
                case own.Dispatch():
                    assert effect.node not in self.down, "dispatched to a node that is down"
                    self.held.setdefault(effect.node, {})[effect.batch] = effect
                case own.Commit(_, runs):
                    for index in indices_of(runs):
                        assert index not in self.committed, "committed twice"
                        assert index not in self.ended
                        self.committed[index] = 1
                case own.GiveUp(_, runs) | own.Dropped(_, runs):
                    for index in indices_of(runs):
                        assert index not in self.committed
                        assert index not in self.ended
                        self.ended[index] = type(effect).__name__
                case own.CancelAt(node, batches):
                    for batch in batches:
                        self.held.get(node, {}).pop(batch, None)

    def step(self, faults: bool) -> None:
        choices = ["finish"] * 6 + ["deliver"] * 6
        if faults:
            choices += ["part", "lose", "crash", "recover", "refuse", "repeat", "load"]
        getattr(self, self.rng.choice(choices))()

    def pick(self) -> own.Dispatch | None:
        batches = [d for held in self.held.values() for d in held.values()]
        return self.rng.choice(batches) if batches else None

    def finish(self) -> None:
        d = self.pick()
        if d is None:
            return
        del self.held[d.node][d.batch]
        failed = frozenset(i for i in indices_of(d.runs) if self.rng.random() < 0.1)
        self.network.append(own.Outcomes(d.batch, d.node, d.runs, failed, self.rng.random() * 0.01))

    def part(self) -> None:
        """Some outcomes of a batch, more to come."""
        d = self.pick()
        if d is not None and count_of(d.runs) > 1:
            some = runs_of(sorted(self.rng.sample(list(indices_of(d.runs)), count_of(d.runs) // 2)))
            self.network.append(own.Outcomes(d.batch, d.node, some, frozenset(), 0.001))

    def lose(self) -> None:
        d = self.pick()
        if d is None:
            return
        del self.held[d.node][d.batch]
        indices = list(indices_of(d.runs))
        cut = self.rng.randrange(len(indices) + 1)
        ran, untouched = runs_of(indices[:cut]), runs_of(indices[cut:])
        cause = self.rng.choice([Cause.WORKER_DIED, Cause.OUT_OF_MEMORY, Cause.STOPPING, Cause.TIMEOUT])
        self.network.append(own.BatchLost(d.batch, ran, untouched, cause, "x"))

    def crash(self) -> None:
        node = f"id{self.rng.randrange(3)}"
        self.down.add(node)
        self.held.pop(node, None)
        self.feed(own.NodeDown(node, "crash"))

    def recover(self) -> None:
        for node in sorted(self.down):
            self.down.discard(node)
            self.feed(own.NodeUp(member(int(node[2:]))))

    def refuse(self) -> None:
        d = self.pick()
        if d is not None:
            del self.held[d.node][d.batch]
            self.network.append(own.BatchRefused(d.batch, "full"))

    def repeat(self) -> None:
        if self.network:
            self.network.append(self.rng.choice(self.network))

    def load(self) -> None:
        self.feed(own.NodeLoad("id0", Load(running=self.rng.randrange(4))))

    def deliver(self) -> None:
        if not self.network:
            return
        event = self.network.pop(self.rng.randrange(len(self.network)))
        if isinstance(event, own.BatchLost) and event.cause is Cause.STOPPING:
            known = self.core.dispatch_of(event.batch)
            if known is not None:
                self.down.add(known.node)  # until it has been started again
        self.feed(event)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 3))
def test_every_task_ends_exactly_once_whatever_happens(seed: int, tasks: int, retries: int):
    rng = random.Random(seed)
    cluster = Cluster(rng, machine(nodes=3, seed=seed))
    cluster.feed(own.Opened(own.JobSpec("j", "f", retries=retries)))
    cluster.feed(own.Added("j", tasks))
    for _ in range(200):
        cluster.step(faults=True)
    if rng.random() < 0.2:
        cluster.feed(own.Cancelled("j", rng.randrange(tasks)))
    cluster.recover()
    for _ in range(5000):
        if len(cluster.committed) + len(cluster.ended) == tasks:
            break
        cluster.step(faults=False)
        cluster.recover()
        cluster.now += 1.1
        cluster.take(cluster.core.tick(cluster.now))
    assert sorted([*cluster.committed, *cluster.ended]) == list(range(tasks))
    summary = cluster.core.summary("j")
    assert summary.running == 0
    assert summary.done + summary.failed == tasks


def test_all_outcomes_of_a_batch_may_come_apart_and_in_any_order():
    core = machine(nodes=1, slots=1)
    (d,) = dispatches(opened(core, 50))
    sent = dispatches(done(core, d))
    batch = max(sent, key=lambda e: count_of(e.runs))
    indices = list(indices_of(batch.runs))[::-1]
    seen: Runs = []
    for index in indices:
        effects = core.handle(own.Outcomes(batch.batch, "id0", [(index, 1)], frozenset(), 0.1), 3.0)
        seen += [run for effect in effects if isinstance(effect, own.Commit) for run in effect.runs]
        again = {i for d in dispatches(effects) for i in indices_of(d.runs)} & set(indices)
        assert not again, "what has not come yet is not run again"
    assert [start for start, _ in seen] == indices


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_unknown_message_is_no_error(count: int):
    core = machine()
    assert core.handle(own.Outcomes(99, "id0", [(0, count)], frozenset(), 0.0), 1.0) == []
    assert core.handle(own.BatchLost(99, [], [], Cause.CANCELLED, ""), 1.0) == []
    assert core.handle(own.Cancelled("nobody"), 1.0) == []


def test_what_a_stopping_node_gives_back_does_not_go_there_again():
    """Else it could be sent just as the node ends, and count as an attempt that may have run."""
    core = machine(nodes=1, slots=1)
    (d,) = dispatches(opened(core, 1, retries=0))
    assert not dispatches(core.handle(own.BatchLost(d.batch, [], d.runs, Cause.STOPPING, ""), 2.0))
    assert not dispatches(core.tick(9.0))
    (again,) = dispatches(core.handle(own.NodeUp(member(0)), 10.0))
    assert not dispatches(core.handle(own.BatchRefused(again.batch, "the node is stopping", stopping=True), 11.0))
    assert not dispatches(core.tick(19.0))
    assert dispatches(core.handle(own.NodeUp(member(0)), 20.0))


def test_a_drained_node_gets_no_more_work_and_finishes_what_it_has():
    core = machine(nodes=2, slots=1)
    first = dispatches(opened(core, 6))
    assert sorted(d.node for d in first) == ["id0", "id1"]
    at = {d.node: d for d in first}
    assert core.handle(own.NodeDrained("id0", True), 1.5) == []  # what runs there goes on
    assert {d.node for d in dispatches(done(core, at["id0"], elapsed_s=1.0))} == set()
    assert core.story("j", at["id0"].runs[0][0]).state is TaskState.DONE  # type: ignore[union-attr]
    (second,) = dispatches(done(core, at["id1"], elapsed_s=1.0))
    assert second.node == "id1"
    assert "node0: it is drained" in waits(core)
    (back,) = dispatches(core.handle(own.NodeDrained("id0", False), 3.0))
    assert back.node == "id0"


def test_a_node_that_is_welcomed_as_drained_gets_no_work():
    core = machine(nodes=0)
    core.handle(own.NodeUp(msgspec.structs.replace(member(0), drained=True)), 0.0)
    assert dispatches(opened(core, 3)) == []
    assert waits(core) == ("node0: it is drained",)
    assert len(dispatches(core.handle(own.NodeUp(member(0)), 2.0))) == 2


def test_what_another_owner_is_to_submit_goes_where_it_need_not_wait() -> None:
    core = machine(nodes=5, slots=2)
    for number in range(4):
        core.handle(own.NodeLoad(f"id{number}", Load(running=2, memory_available_bytes=1 << 30)), 1.0)
    core.handle(own.NodeLoad("id4", Load(running=1, memory_available_bytes=1 << 30)), 1.0)
    assert {core.place(Needs(1, 1 << 20), 1.0).node for _ in range(20)} == {"id4"}
    assert core.place(Needs(2), 1.0).node is not None  # it waits there for a slot
    never = core.place(Needs(3), 1.0)
    assert never.node is None and not never.possible and len(never.reasons) == 6
    assert never.reasons[0] == "needs 3 slots, the most free are 2 on node0"
    later = core.place(Needs(1, 2 << 30), 1.0)
    assert (
        later.node is None and later.possible and "needs 2 GiB, the largest free is 1 GiB on node0" in later.reasons[0]
    )


def test_held_tasks_are_sent_when_they_are_released_and_counted_before():
    core = machine(nodes=1, slots=8)
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    assert dispatches(core.handle(own.Added("j", 4, held=True), 1.0)) == []
    assert core.summary("j").total == 4
    sent = dispatches(core.handle(own.Released("j", [(1, 2)]), 1.0))
    assert sorted(i for d in sent for i in indices_of(d.runs)) == [1, 2]
    assert dispatches(core.handle(own.Released("j", [(1, 2)]), 1.0)) == [], "only once"
    story = core.story("j", 0)
    assert story is not None and story.state is TaskState.WAITING and not story.attempts


def test_a_held_task_whose_input_fails_is_failed_without_an_attempt():
    core = machine()
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    core.handle(own.Added("j", 2, held=True), 1.0)
    assert core.handle(own.HeldFailed("j", 0), 1.0) == []
    assert core.handle(own.HeldFailed("j", 1), 1.0) == [own.JobIdle("j")]
    assert (core.summary("j").failed, core.summary("j").cancelled) == (2, 0)
    assert core.handle(own.HeldFailed("j", 1), 1.0) == [own.JobIdle("j")], "which changes nothing"
    assert core.summary("j").failed == 2


def test_a_held_task_can_be_cancelled_and_is_never_sent_then():
    core = machine()
    core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
    core.handle(own.Added("j", 1, held=True), 1.0)
    assert core.handle(own.Cancelled("j", 0), 1.0) == [own.Dropped("j", [(0, 1)]), own.JobIdle("j")]
    assert dispatches(core.handle(own.Released("j", [(0, 1)]), 1.0)) == []


def test_a_task_that_waits_for_its_owner_leaves_its_slot_to_the_next():
    core = machine(nodes=1, slots=1)
    (first,) = dispatches(opened(core, 3, single=True))
    (second,) = dispatches(core.handle(own.BatchWaits(first.batch, True), 2.0))
    core.handle(own.BatchWaits(first.batch, True), 2.0)
    assert dispatches(core.handle(own.BatchWaits(second.batch, False), 2.0)) == []
    core.handle(own.BatchWaits(first.batch, False), 3.0)
    assert dispatches(done(core, first, elapsed_s=1.0)) == [], "the second has the slot"
    assert len(dispatches(done(core, second))) == 1


def test_a_task_goes_to_what_it_reads_by_itself():
    for number in range(4):
        core = machine(nodes=4)
        core.handle(own.Opened(own.JobSpec("j", "f")), 1.0)
        core.handle(own.Added("j", 2, held=True), 1.0)
        reads = Inputs(1 << 30, {f"id{number}": 1 << 30})
        (d,) = dispatches(core.handle(own.Released("j", [(1, 1)], 10, reads), 2.0))
        assert (d.node, d.runs) == (f"id{number}", [(1, 1)])


def test_it_waits_for_a_node_that_is_busy_with_other_work_instead_of_queueing_there():
    core = machine(nodes=2, slots=1)
    core.handle(own.Opened(own.JobSpec("long", "g", needs=Needs(on="node0"))), 1.0)
    (long,) = dispatches(core.handle(own.Added("long", 1), 1.0))
    assert long.node == "id0"
    (d,) = dispatches(opened(core, 1))
    done(core, d, elapsed_s=1e-4)
    core.handle(own.Added("j", 1, held=True), 3.0)
    reads = Inputs(1 << 22, {"id0": 1 << 22})
    assert not dispatches(core.handle(own.Released("j", [(1, 1)], 10, reads), 3.0)), "it would be there in no time"
    (late,) = dispatches(core.tick(4.0))
    assert late.node == "id1", "to move it has become cheaper"


def test_a_lost_result_is_made_by_the_next_attempt():
    core = machine()
    (d,) = dispatches(opened(core, 1, retries=1))
    done(core, d)
    assert core.may_run_again("j", 0)
    (again,) = dispatches(core.handle(own.ResultLost("j", 0, "its node is lost"), 3.0))
    assert (again.attempt, again.runs) == (2, [(0, 1)])
    assert (core.summary("j").done, core.summary("j").running) == (0, 1)
    assert own.JobIdle("j") in done(core, again)
    story = core.story("j", 0)
    assert story is not None
    assert [(a.number, a.end, a.cause) for a in story.attempts] == [
        (1, AttemptEnd.RESULT_LOST, "its node is lost"),
        (2, AttemptEnd.DONE, ""),
    ]
    assert not core.may_run_again("j", 0), "its tries are used up"
    assert core.handle(own.ResultLost("j", 0, "again"), 4.0) == []
    assert core.summary("j").done == 1
    assert not core.may_run_again("j", 1) and not core.may_run_again("k", 0)


def test_a_task_whose_input_is_lost_is_held_until_it_is_there():
    core = machine(nodes=1)
    (d,) = dispatches(opened(core, 1))
    assert core.tries_left(d.batch)
    assert not dispatches(core.handle(own.InputLost(d.batch, 0, "its input is lost"), 2.0))
    assert core.outstanding("id0") == [] and core.summary("j").running == 0
    core.handle(own.InputLost(d.batch, 0, "said twice"), 2.0)
    (again,) = dispatches(core.handle(own.Released("j", [(0, 1)]), 3.0))
    assert again.attempt == 2
    done(core, again)
    story = core.story("j", 0)
    assert story is not None and [a.end for a in story.attempts] == [AttemptEnd.INPUT_LOST, AttemptEnd.DONE]


def test_a_task_whose_lost_input_does_not_come_fails_and_one_that_is_cancelled_is_not_sent():
    core = machine(nodes=1)
    sent = dispatches(opened(core, 2))
    for d in sent:
        core.handle(own.InputLost(d.batch, d.runs[0][0], "its input is lost"), 2.0)
    core.handle(own.Cancelled("j", 1), 3.0)
    assert own.JobIdle("j") in core.handle(own.HeldFailed("j", 0), 3.0)
    assert not core.handle(own.Released("j", [(0, 2)]), 4.0)
    assert (core.summary("j").failed, core.summary("j").cancelled) == (2, 1)


def test_what_has_ended_since_a_nodes_load_was_heard_is_not_counted_as_its_load():
    core = machine(nodes=2, slots=1)
    (d,) = dispatches(opened(core, 1, needs=Needs(on="node0")))
    core.handle(own.NodeLoad("id0", Load(running=1)), 2.0)
    done(core, d, 3.0)
    core.handle(own.Opened(own.JobSpec("k", "g", inputs=Inputs(1 << 30, {"id0": 1 << 30}))), 3.0)
    (next_one,) = dispatches(core.handle(own.Added("k", 1), 3.0))
    assert next_one.node == "id0", "it is known to be free"
