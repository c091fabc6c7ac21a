"""What the model makes of snapshots: events, jobs that are kept, totals, bounded histories."""

from __future__ import annotations

from typing import Any

import pytest

from kos_cluster.core.records import JobSummary, Load, MemberState
from kos_cluster.services.monitor import model as models
from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.series import SAMPLES_LIMIT, History
from kos_cluster.services.monitor.snapshot import DONE, FAILED, GONE, RUNNING, Missed, job_sight
from tests.services.monitor.sights import job, node, snapshot


def told(model: Model) -> list[str]:
    return [f"{event.kind} {event.subject}" for event in model.events]


def after(*changes: Any, jobs: tuple[Any, ...] = ((), ())) -> list[str]:
    """What is told when node2 changes so, from one snapshot to the next; None: it is not there."""
    model = Model()
    first = 0
    for at_s, (change, seen) in enumerate(zip(changes, jobs, strict=True)):
        first = len(model.events)
        model.handle(snapshot(at_s, [node(1)] if change is None else [node(1), node(2, **change)], seen))
    return told(model)[first:]


@pytest.mark.parametrize(
    ("before", "now", "event"),
    [
        (None, {}, "joined node2"),
        ({}, {"state": MemberState.SUSPECT}, "suspected node2"),
        ({"state": MemberState.SUSPECT}, {"state": MemberState.DEAD}, "dead node2"),
        ({"state": MemberState.SUSPECT}, {}, "back node2"),
        ({"state": MemberState.DEAD}, {"started_ns": 2}, "restarted node2"),
        ({}, None, "left node2"),
        ({}, {"drained": True}, "drained node2"),
        ({"drained": True}, {}, "works-again node2"),
    ],
)
def test_what_happens_to_a_node_is_an_event(before: Any, now: Any, event: str) -> None:
    assert after(before, now) == [event]


def test_another_coordinator_is_an_election() -> None:
    model = Model()
    model.handle(snapshot(0, [node(1), node(2)]))
    model.handle(snapshot(1, [node(1, coordinator=False), node(2, coordinator=True)]))
    assert told(model)[-1] == "elected node2"
    assert model.coordinator == model.nodes[1]


@pytest.mark.parametrize(
    ("then", "events"),
    [
        ({"reruns": 3}, ["rerun j1"]),
        ({"state": DONE, "done": 10}, ["ended j1"]),
        ({"state": FAILED, "done": 8, "failed": 2}, ["failed j1"]),
        ({}, []),
    ],
)
def test_what_happens_to_a_job_is_an_event(then: dict[str, object], events: list[str]) -> None:
    assert after({}, {}, jobs=((job(),), (job(**then),))) == events


def test_lost_tasks_are_told_with_their_number() -> None:
    model = Model()
    model.handle(snapshot(0, [node(1)], [job(reruns=1)]))
    model.handle(snapshot(1, [node(1)], [job(reruns=4)]))
    assert model.events[-1].text == "3 tasks of train (j1) were lost and rerun."


def test_a_job_that_is_told_of_no_more_stays_and_is_gone() -> None:
    model = Model()
    model.handle(snapshot(0, [node(1)], [job("j1"), job("j2", state=DONE, done=10, running=0)]))
    model.handle(snapshot(5, [node(1)]))
    assert [(each.id, each.state, each.ended_s) for each in model.jobs.values()] == [("j1", GONE, 5), ("j2", DONE, 0)]
    assert told(model)[-1] == "ended j1"


def test_of_too_many_jobs_those_that_ended_first_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "JOBS_LIMIT", 3)
    model = Model()
    ended = [job(f"e{n}", state=DONE, done=10, running=0) for n in range(4)]
    for at_s in range(1, 5):
        model.handle(snapshot(at_s, [node(1)], [job("r"), *ended[:at_s]]))
    assert set(model.jobs) == {"r", "e3", "e2"}
    before = len(model.events)
    model.handle(snapshot(9, [node(1)], [job("r"), *ended]))
    assert len(model.events) == before, "those that are not shown began anew"


def test_events_are_bounded_and_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    for at_s in range(2 * models.EVENTS_LIMIT):
        model.handle(snapshot(at_s, [node(1, drained=at_s % 2 == 0)]))
    assert len(model.events) == models.EVENTS_LIMIT
    last = model.events[-1].number
    assert [event.number for event in model.events_after(last - 2)] == [last - 1, last]
    assert model.events_after(last) == []
    assert len(model.events_after(0)) == models.EVENTS_LIMIT


def test_a_cluster_that_does_not_answer_is_told_once_and_then_that_it_does() -> None:
    model = Model()
    model.handle(snapshot(0, [node(1)]))
    for at_s in (1, 2):
        model.handle(Missed(at_s, "No node answers."))
    assert model.trouble == "No node answers."
    model.handle(snapshot(3, [node(1)]))
    assert model.trouble == ""
    assert told(model)[2:] == ["unreachable lab", "reached lab"]


def test_totals_weigh_nodes_by_what_they_have() -> None:
    model = Model()
    dead = node(3, state=MemberState.DEAD, load=Load(), coordinator=False)
    big = node(2, slots=12, load=Load(running=6, cpu_percent=90.0, memory_percent=25.0), coordinator=False)
    model.handle(snapshot(0, [node(1), big, dead], [job(done=4, failed=1)]))
    totals = model.totals
    assert (totals.nodes, totals.up, totals.slots, totals.busy) == (3, 2, 16, 7)
    assert totals.cpu_share == pytest.approx((0.5 * 4 + 0.9 * 12) / 16)
    assert (totals.waiting, totals.running, totals.done, totals.failed) == (3, 2, 4, 1)
    assert totals.received_bytes_per_s is None, "no node tells"


def test_the_rate_is_of_tasks_that_ended_while_it_looked() -> None:
    model = Model()
    for at_s, done in enumerate((5, 7, 9, 9)):
        model.handle(snapshot(at_s, [node(1)], [job(total=100, done=done)]))
    assert model.totals.ended_per_s == pytest.approx(4 / 3)


def test_a_history_is_bounded_and_has_gaps_where_there_was_nothing() -> None:
    history = History(limit=4)
    history.add(0, {"a": 1.0})
    history.add(1, {"b": 2.0})
    assert (history.last("a"), history.last("b")) == ([1.0, None], [None, 2.0])
    for at_s in range(2, 40):
        history.add(at_s, {"b": float(at_s)})
    assert history.last("b") == [36.0, 37.0, 38.0, 39.0]
    assert history.times() == [36.0, 37.0, 38.0, 39.0]
    assert history.last("a") == []
    assert len(history) < 8


def test_the_model_remembers_each_node_for_ten_minutes_of_seconds() -> None:
    model = Model()
    for at_s in range(SAMPLES_LIMIT + 5):
        model.handle(snapshot(at_s, [node(1)]))
    assert len(model.history.last("cpu/id1")) == SAMPLES_LIMIT == 600


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"done": 3, "failed": 0}, RUNNING),
        ({"done": 4, "failed": 0}, DONE),
        ({"done": 3, "failed": 1}, FAILED),
        ({"done": 2, "failed": 2, "cancelled": 2}, "cancelled"),
        ({"done": 2, "failed": 2, "cancelled": 1}, FAILED),
        ({"done": 4, "failed": 0, "state": "waiting"}, RUNNING),
    ],
)
def test_a_job_is_in_one_state(counts: dict[str, object], state: str) -> None:
    summary = JobSummary("j", "f", "u", 4, running=0, since_s=0.0, **counts)  # type: ignore[arg-type]
    assert job_sight(summary).state == state
