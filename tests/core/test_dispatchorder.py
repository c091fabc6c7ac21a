"""Whose batch an owner sends next, and how many at once."""

from __future__ import annotations

import pytest

from kos_cluster.core import ownership as own
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.placement import Placement
from kos_cluster.core.records import Load, Needs, count_of
from tests.core.owner import dispatches, done, machine, opened


def test_an_owners_jobs_take_turns_by_their_priority():
    core = machine(nodes=1, slots=1)
    for job, priority in (("low", 0), ("high", 2)):
        core.handle(own.Opened(own.JobSpec(job, job, priority=priority, single=True)), 1.0)
    sent = dispatches([*core.handle(own.Added("low", 1000), 1.0), *core.handle(own.Added("high", 1000), 1.0)])
    order = []
    for number in range(100):
        order.append(sent[-1].job)
        sent += dispatches(done(core, sent[-1], 2.0 + number, elapsed_s=1.0))
    assert order.count("high") == pytest.approx(80, abs=3)
    assert "low" in order[:10]


def test_a_job_that_comes_after_a_million_tasks_has_the_next_slot():
    core = machine(nodes=1, slots=1)
    core.handle(own.Opened(own.JobSpec("million", "m", single=True)), 1.0)
    (sent,) = dispatches(core.handle(own.Added("million", 1_000_000), 1.0))
    for number in range(50):
        (sent,) = dispatches(done(core, sent, 2.0 + number, elapsed_s=1.0))
    core.handle(own.Opened(own.JobSpec("single", "s")), 60.0)
    assert dispatches(core.handle(own.Added("single", 1), 60.0)) == []
    (one,) = dispatches(done(core, sent, 61.0, elapsed_s=1.0))
    (two,) = dispatches(done(core, one, 62.0, elapsed_s=1.0))
    assert "single" in (one.job, two.job)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_a_job_that_comes_while_short_tasks_are_sent_ahead_has_the_next_place(slots: int):
    """Of every kind: a single task, one whose duration is known, one that travels alone."""
    core = machine(nodes=1, slots=slots)
    core.handle(own.Opened(own.JobSpec("million", "m")), 1.0)
    sent = dispatches(core.handle(own.Added("million", 1_000_000), 1.0))
    for number in range(50):
        sent += dispatches(done(core, sent.pop(0), 2.0 + number, elapsed_s=0.001))
    assert len(sent) == 2 * slots  # one batch runs on each slot, one waits
    for spec in (own.JobSpec("new", "s"), own.JobSpec("alone", "a", single=True)):
        core.handle(own.Opened(spec), 60.0)
        assert dispatches(core.handle(own.Added(spec.job, 1), 60.0)) == []
    following = []
    for _ in range(3):
        following += dispatches(done(core, sent.pop(0), 61.0, elapsed_s=0.001))
        sent += following[-1:]
    assert {"new", "alone"} < {d.job for d in following}


def test_a_job_of_short_tasks_makes_nobody_wait_at_a_node_that_is_not_its_own():
    core = machine(nodes=2, slots=1)
    for name, on, single in (("short", "id1", False), ("pinned", "id0", True)):
        spec = own.JobSpec(name, name, needs=Needs(on=on), single=single, priority=10 if single else 0)
        core.handle(own.Opened(spec), 1.0)
    sent = dispatches(core.handle(own.Added("short", 10_000), 1.0))
    for number in range(20):
        sent += dispatches(done(core, sent.pop(0), 2.0 + number, elapsed_s=0.001))
    assert [d.node for d in dispatches(core.handle(own.Added("pinned", 10), 60.0))] == ["id0"]
    for number in range(20):
        sent += dispatches(done(core, sent.pop(0), 61.0 + number, elapsed_s=0.001))
    assert {d.job for d in sent} == {"short"}


def test_a_node_where_others_wait_holds_one_more_batch_a_slot():
    """So that its queue can give the owner more than every other turn."""
    core = machine(nodes=1, slots=1)
    core.handle(own.Opened(own.JobSpec("j", "f", single=True)), 1.0)
    assert len(dispatches(core.handle(own.Added("j", 100), 1.0))) == 1
    for queued, others_wait, more in (
        (0, False, 0),
        (1, False, 0),
        (1, None, 0),
        (1, True, 1),
        (2, None, 0),
        (3, True, 0),
    ):
        event = own.NodeLoad("id0", Load(running=1, queued=queued), others_wait)
        assert len(dispatches(core.handle(event, 2.0))) == more


def test_a_wide_task_goes_to_wait_at_a_node_that_narrow_ones_keep_full():
    core = machine(nodes=1, slots=2)
    core.handle(own.Opened(own.JobSpec("narrow", "n", single=True)), 1.0)
    sent = dispatches(core.handle(own.Added("narrow", 100), 1.0))
    core.handle(own.Opened(own.JobSpec("wide", "w", needs=Needs(cpus=2))), 1.0)
    core.handle(own.Added("wide", 3), 1.0)
    after = dispatches(done(core, sent[0], 1.5, elapsed_s=1.0))
    assert [d.job for d in after] == ["narrow"]
    assert [d.job for d in dispatches(core.tick(3.5))] == ["wide"]
    assert dispatches(core.tick(9.0)) == []  # one at a time


def test_a_cap_bounds_what_runs_at_once():
    core = machine(nodes=4, slots=4)
    assert len(dispatches(opened(core, 100, max_parallel=3))) == 3


def test_jobs_of_a_group_share_their_cap():
    core = machine(nodes=4, slots=4)
    sent = []
    for job in ("a", "b"):
        core.handle(own.Opened(own.JobSpec(job, "f", max_parallel=3, group="g")), 1.0)
        sent += dispatches(core.handle(own.Added(job, 2), 1.0))
    assert [d.job for d in sent] == ["a", "a", "b"]
    assert [d.job for d in dispatches(done(core, sent[0]))] == ["b"]
    core.handle(own.Opened(own.JobSpec("c", "f", max_parallel=3, group="other")), 3.0)
    assert len(dispatches(core.handle(own.Added("c", 3), 3.0))) == 3


def test_a_task_that_travels_alone_waits_for_no_other():
    core = machine(nodes=1, slots=1)
    waiting = dispatches(opened(core, 50, single=True))
    for _ in range(49):  # quick as they are, none is sent before the one that is out has ended
        assert [count_of(d.runs) for d in waiting] == [1]
        waiting = dispatches(done(core, waiting.pop()))


def test_jobs_that_need_the_same_are_not_tried_at_the_nodes_one_by_one(monkeypatch: pytest.MonkeyPatch):
    """But one that needs another thing is, wherever in the line it stands."""
    core = machine(nodes=2, slots=1)
    opened(core, 10, single=True, needs=Needs(on="id0"))
    for number in range(100):
        core.handle(own.Opened(own.JobSpec(f"like{number}", "f", needs=Needs(on="id0"))), 1.0)
        core.handle(own.Added(f"like{number}", 1), 1.0)
    tried: list[Needs] = []
    place = NodeIndex.place

    def counted(index: NodeIndex, needs: Needs, *args: object, **keywords: object) -> Placement:
        tried.append(needs)
        return place(index, needs, *args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(NodeIndex, "place", counted)
    core.handle(own.Opened(own.JobSpec("other", "f", needs=Needs(on="id1"))), 1.0)
    (sent,) = dispatches(core.handle(own.Added("other", 1), 1.0))
    assert (sent.job, sent.node) == ("other", "id1")
    assert len(tried) < 5
