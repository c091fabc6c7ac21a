"""Why tasks are where they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kos_cluster.core.records import Attempt, AttemptEnd, HeldTasks, JobSummary, Needs, Story, TaskState
from kos_cluster.tasks.why import explain

NODES: list[dict[str, Any]] = [
    {"name": "one", "state": "alive", "slots": 2, "running": 2, "queued": 3},
    {"name": "two", "state": "dead", "slots": 2, "running": 0, "queued": 0},
]


def story(index: int, state: TaskState, **attempt: Any) -> Story:
    return Story(f"j.{index}", "f", state, (Attempt(attempt.pop("number", 1), "one", 100.0, **attempt),))


def job(total: int, **counts: int) -> JobSummary:
    return JobSummary("j", "f", "ann", total, **{"done": 0, "failed": 0, "running": 0, **counts}, since_s=0.0)


def told(*args: Any) -> list[tuple[str, int, str, str]]:
    return [(row.tasks, row.count, row.node, row.why) for row in explain(*args)]


def test_what_runs_is_queued_and_is_over_is_told_by_its_node() -> None:
    stories = [
        story(0, TaskState.RUNNING, started_s=101.0, number=2, chosen="2 of 2 slots free"),
        story(1, TaskState.SENT),
        story(2, TaskState.SENT),
        story(5, TaskState.SENT),
        story(7, TaskState.FAILED, end=AttemptEnd.OUT_OF_MEMORY, cause="the kernel ended it"),
    ]
    assert told("j", job(5, running=4, failed=1), stories, NODES, None, 110.0) == [
        ("j.0", 1, "one", "it runs, attempt 2 for 9 s; the node was chosen with 2 of 2 slots free"),
        ("j.1-2,5", 3, "one", "it is queued until a slot is free (2 of 2 busy, 3 queued)"),
        ("j.7", 1, "one", "it is over: out-of-memory, the kernel ended it"),
    ]


def test_what_waits_is_told_with_its_needs_and_each_nodes_reason_where_it_is_owned() -> None:
    standing = (Needs(2, 8 << 30, "one", ("numpy",)), ("one: it is drained", "two: it is lost"))
    assert told("j", job(3), [], NODES, standing, 0.0) == [
        (
            "j",
            3,
            "",
            "it needs 2 slots, 8 GiB, the node one, (better with numpy). one: it is drained; two: it is lost",
        )
    ]


CAN_BE_DONE = (
    " From here 'kos dry-run' with its options tells where such a task would go, and 'kos cancel j' ends it. "
    "Slots free: one 0 of 2"
)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (
            {"program": "train.py, process 7 on desk"},
            "knows why: train.py, process 7 on desk, of ann. In that program kos.connect().why('j') tells it.",
        ),
        (
            {"program": "a notebook, process 7 on desk"},
            "knows why: a notebook, process 7 on desk, of ann. In that notebook type '%kos why j'.",
        ),
        (
            {"program": "train.py, process 7 on desk", "parent": "k.3"},
            "knows why: train.py, process 7 on desk, of ann. That one is task k.3: see 'kos why k.3'.",
        ),
        ({}, "knows why, of ann. In that program kos.connect().why('j') tells it."),
    ],
)
def test_elsewhere_it_names_the_program_that_knows_and_says_what_can_be_done(known: dict[str, str], said: str) -> None:
    (row,) = told("j.2", msgspec.structs.replace(job(3), **known), [], NODES, None, 0.0)
    begin = "it has not been sent to a node, and only the process that submitted it "
    assert row == ("j.2", 1, "", begin + said + CAN_BE_DONE)


def test_of_a_detached_job_no_notebook_is_spoken_of() -> None:
    driven = msgspec.structs.replace(job(3), state="driven", driver="two", epoch=1)
    ((*_, why),) = told("j", driven, [], NODES, None, 0.0)
    assert why.startswith("it has not been sent to a node. two drives its job and has not told why: ")
    ((*_, why),) = told("j", msgspec.structs.replace(job(3), state="waiting"), [], NODES, None, 0.0)
    assert why == "no node drives its job yet: the coordinator gives it to one. Slots free: one 0 of 2"
    over = msgspec.structs.replace(driven, state="cancelled", done=1)
    (row,) = explain("j", over, [], NODES, None, 0.0)
    assert (row.count, row.state, row.why) == (2, TaskState.CANCELLED, "it has no result, and its job is cancelled")


def test_of_one_task_only_that_one_is_told() -> None:
    assert told("j.9", job(3), [], NODES, None, 0.0) == []
    assert len(told("j.1", job(3, running=1), [story(1, TaskState.SENT)], NODES, None, 0.0)) == 1
    assert told("j", None, [], NODES, None, 0.0) == []


def test_what_waits_for_results_of_others_is_told_by_what_it_waits_for() -> None:
    groups = (HeldTasks(0, 2, ("a.0", "a.1"), 3), HeldTasks(4, 1, ("b.7",)))
    summary = msgspec.structs.replace(job(6, running=1), held=groups)
    stories = [story(2, TaskState.SENT)]
    rows = told("j", summary, stories, NODES, (Needs(), ("one: it is drained",)), 0.0)
    assert rows[1:3] == [
        ("j.0-1", 2, "", "waits for a.0, a.1 and 3 more"),
        ("j.4", 1, "", "waits for b.7"),
    ]
    assert rows[3][:2] == ("j", 2)
    assert told("j.4", summary, [], NODES, None, 0.0) == [("j.4", 1, "", "waits for b.7")]
    (other,) = told("j.3", summary, [], NODES, None, 0.0)
    assert "only the process that submitted it knows why" in other[3]
