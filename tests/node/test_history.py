"""What a node remembers of its tasks: stories with earlier attempts, the last output, all of it bounded."""

from __future__ import annotations

import pytest

from kos_cluster.core.records import INPUTS_TOLD_LIMIT, Attempt, AttemptEnd, TaskState
from kos_cluster.node import history
from kos_cluster.node.history import BatchRecord, History


def test_a_story_tells_what_happened_on_other_nodes_before() -> None:
    memory = History("ada")
    before = Attempt(1, "grace", 1.0, 2.0, 3.0, AttemptEnd.NODE_LOST, "silent")
    record = BatchRecord("job", "work", [(4, 2)], 2, 4.0, started_s=5.0, earlier={4: [before]})
    memory.arrived(record)
    running, other = memory.stories("job")
    assert (running.task, running.state) == ("job.4", TaskState.RUNNING)
    assert running.attempts[0] == before
    assert [a.number for a in other.attempts] == [2]
    record.done, record.ended_s = True, 6.0
    record.ends[5] = AttemptEnd.FAILED
    assert [story.state for story in memory.stories("job")] == [TaskState.DONE, TaskState.FAILED]
    (only,) = memory.stories("job.5")
    assert only.task == "job.5"
    assert memory.stories("job.6") == memory.stories("jo") == []


def test_what_failed_tasks_have_raised_is_told_of_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CAUSES_LIMIT", 2)
    memory = History("ada")
    failed = dict.fromkeys(range(3), AttemptEnd.FAILED)
    memory.arrived(BatchRecord("job", "work", [(0, 4)], 1, 1.0, done=True, ends=failed))
    memory.raised("job", {0: "ValueError: 0", 1: "ValueError: 1"})
    memory.raised("job", {2: "ValueError: 2"})
    told = {story.task: story.attempts[-1].cause for story in memory.stories("job")}
    assert told == {"job.0": "", "job.1": "ValueError: 1", "job.2": "ValueError: 2", "job.3": ""}


def test_jobs_are_told_the_newest_last() -> None:
    memory = History("ada")
    for job in ("old", "new", "old", "other"):
        memory.arrived(BatchRecord(job, "work", [(0, 1)], 1, 1.0))
    assert memory.jobs() == ["new", "old", "other"]


def test_attempts_of_one_task_stand_in_the_order_of_their_coming() -> None:
    memory = History("ada")
    first = BatchRecord("job", "work", [(0, 1)], 1, 1.0, ends={0: AttemptEnd.WORKER_LOST}, cause="SIGKILL")
    memory.arrived(first)
    told = first.attempt_of(0, "ada")
    memory.arrived(BatchRecord("job", "work", [(0, 1)], 2, 2.0, earlier={0: [told]}))
    (story,) = memory.stories("job.0")
    assert [(a.number, a.end, a.cause) for a in story.attempts] == [
        (1, AttemptEnd.WORKER_LOST, "SIGKILL"),
        (2, AttemptEnd.OPEN, ""),
    ]


def test_the_last_output_of_each_task_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LOG_TAIL_BYTES", 10)
    monkeypatch.setattr(history, "LOGS_LIMIT", 2)
    memory = History("ada")
    memory.wrote("job.0", b"forgotten")
    memory.wrote("job.1", b"0123456789")
    memory.wrote("job.1", b"abc\nde\n")
    memory.wrote("other.0", b"\xff\n")
    assert memory.logs("job") == [("job.1", b"789abc\nde\n")]
    assert memory.logs("job.0") == []
    assert memory.tail("job.1", 1) == "de"
    assert memory.tail("other.0", 5) == "\N{REPLACEMENT CHARACTER}"
    assert memory.tail("nobody", 5) == ""


def test_old_batches_are_forgotten() -> None:
    memory = History("ada")
    for number in range(history.BATCHES_LIMIT + 1):
        memory.arrived(BatchRecord(f"job{number}", "work", [(0, 1)], 1, float(number)))
    assert memory.stories("job0") == []
    assert memory.stories("job1")


def test_a_story_tells_whose_results_its_task_takes_of_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "TAKERS_LIMIT", 2)
    memory = History("ada")
    memory.arrived(BatchRecord("old", "work", [(0, 1)], 1, 1.0), {0: ("a.0",)})
    memory.arrived(BatchRecord("job", "work", [(0, 3)], 1, 2.0), {0: tuple(f"a.{n}" for n in range(20)), 2: ("b.1",)})
    assert [len(story.inputs) for story in memory.stories("job")] == [INPUTS_TOLD_LIMIT, 0, 1]
    assert memory.stories("old")[0].inputs == ()


def test_what_a_running_task_waits_for_is_told_while_it_runs() -> None:
    record = BatchRecord("job", "work", [(0, 1)], 1, 1.0, started_s=2.0, waits="it waits")
    assert record.attempt_of(0, "ada").cause == "it waits"
    record.done = True
    assert record.attempt_of(0, "ada").cause == ""
