"""Detached jobs: one driver an epoch, the first result stands, and nothing that has not ended is dropped."""

from __future__ import annotations

import msgspec
import pytest

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import jobs
from kos_cluster.core.replicated.jobs import ENDED_KEPT_S, INLINE_LIMIT_BYTES, JobState
from kos_cluster.core.replicated.replies import JobChanged, ResultsCommitted
from kos_cluster.core.replicated.state import ClusterState
from tests.core.replicated.log import START_S, Log

A, B = "a" * 64, "b" * 64


def submit(id: str = "j", spec: bytes = b"spec", parts: tuple[c.Part, ...] = ()) -> c.SubmitJob:
    return c.SubmitJob(id, "u1", "ann", "sum", spec, parts)


def driven() -> Log:
    log = Log()
    log.reply(submit(parts=(c.Part(A, ("n1", "n2")),)))
    assert log.reply(c.AssignDriver("j", "n1", 0)).epoch == 1
    return log


def job(log: Log, id: str = "j") -> jobs.Job:
    found = log.state.jobs.get(id)
    assert found is not None
    return found


def inline(task: int, data: bytes = b"r") -> c.TaskResult:
    return c.TaskResult(task, data)


def test_a_job_is_submitted_driven_and_done():
    log = Log()
    assert log.apply(submit()).changes == (JobChanged("j"),)
    assert job(log).state is JobState.WAITING
    log.reply(c.AssignDriver("j", "n1", 0))
    assert (job(log).state, job(log).driver, job(log).epoch) == (JobState.DRIVEN, "n1", 1)
    log.reply(c.CommitResults("j", 1, (inline(0), inline(2))))
    log.reply(c.FinishJob("j", 1, c.JobEnd.DONE, 0, b"bye\n"))
    assert (job(log).state, job(log).exit_code, job(log).tail) == (JobState.DONE, 0, b"bye\n")
    assert sorted(job(log).results) == [0, 2]
    assert log.refused(c.CommitResults("j", 1, (inline(1),))).error == "StateError"


def test_a_new_driver_goes_on_and_the_former_one_is_refused_everything():
    log = driven()
    log.reply(c.CommitResults("j", 1, (inline(0),)))
    assert log.reply(c.AssignDriver("j", "n2", 1)).epoch == 2
    for command in (
        c.CommitResults("j", 1, (inline(1),)),
        c.FinishJob("j", 1, c.JobEnd.FAILED, 1, b""),
        c.AssignDriver("j", "n3", 1),
    ):
        assert "is in epoch 2 under n2; a command of epoch 1 is out of date" in log.refused(command).message
    log.reply(c.CommitResults("j", 2, (inline(1),)))
    assert sorted(job(log).results) == [0, 1]


def test_the_first_result_of_a_task_stands():
    log = driven()
    log.reply(c.CommitResults("j", 1, (inline(0, b"first"),)))
    reply = log.reply(c.CommitResults("j", 1, (inline(0, b"second"), inline(1), inline(1, b"twin"))))
    assert reply.committed == (1,) and 0 in reply.earlier
    assert job(log).results[0].inline == b"first" and job(log).results[1].inline == b"r"


def test_small_results_are_bounded_together_and_large_ones_lie_on_disks():
    log = driven()
    log.reply(c.CommitResults("j", 1, (inline(0, bytes(INLINE_LIMIT_BYTES)),)))
    refusal = log.refused(c.CommitResults("j", 1, (c.TaskResult(2, None, B, ("n1", "n2")), inline(1))))
    assert refusal.error == "LimitError" and "disks of 2 nodes" in refusal.hint
    # What is committed already does not count again.
    again = c.CommitResults("j", 1, (inline(0, bytes(9)), c.TaskResult(1, None, B, ("n1", "n2"))))
    assert log.reply(again) == ResultsCommitted((1,), (0,))


@pytest.mark.parametrize(
    "result",
    [
        c.TaskResult(0),
        c.TaskResult(0, b"x", A, ("n1",)),
        c.TaskResult(-1, b"x"),
        c.TaskResult(0, None, "nonsense", ("n1",)),
        c.TaskResult(0, None, A, ()),
        c.TaskResult(0, None, A, ("n1", "n1")),
        c.TaskResult(0, None, A, ("n1", "n2", "n3")),
        c.TaskResult(0, None, A, ("n" * 65,)),
    ],
)
def test_a_result_must_be_in_one_place(result: c.TaskResult):
    assert driven().refused(c.CommitResults("j", 1, (inline(5), result))).error == "UsageError"


def test_a_part_that_lost_a_holder_gets_another():
    log = driven()
    log.reply(c.CommitResults("j", 1, (c.TaskResult(0, None, B, ("n1", "n2")),)))
    for sha256 in (A, B):
        log.reply(c.MovePart("j", c.Part(sha256, ("n2", "n3"))))
    assert job(log).parts[A] == job(log).results[0].holders == ("n2", "n3")
    assert log.refused(c.MovePart("j", c.Part("c" * 64, ("n2",)))).error == "StateError"


def test_a_cancelled_job_takes_nothing_more():
    log = driven()
    assert log.reply(c.CancelJob("j", "bob")).epoch == 2
    assert (job(log).state, job(log).ended_by) == (JobState.CANCELLED, "bob")
    log.refused(c.CommitResults("j", 1, (inline(0),)))
    assert "is cancelled already" in log.refused(c.CancelJob("j", "bob")).message
    assert "is cancelled already" in log.refused(c.AssignDriver("j", "n2", 2)).message


def test_a_job_without_a_driver_takes_no_result():
    log = Log()
    log.reply(submit())
    assert "no driver yet" in log.refused(c.CommitResults("j", 0, (inline(0),))).message


def test_only_an_ended_job_is_dropped():
    log = driven()
    assert "Cancel it first" in log.refused(c.DropJob("j")).hint
    log.reply(c.FinishJob("j", 1, c.JobEnd.FAILED, 3, b"x" * 100_000))
    assert len(job(log).tail) == jobs.TAIL_LIMIT_BYTES
    log.reply(c.DropJob("j"))
    assert log.refused(c.DropJob("j")).error == "NoSuchTaskError"
    log.reply(submit())


def test_an_ended_job_is_kept_for_a_while():
    log = driven()
    log.reply(c.FinishJob("j", 1, c.JobEnd.DONE, 0, b""))
    log.reply(submit("open"))
    log.reply(c.Tick(), START_S + ENDED_KEPT_S - 1)
    job(log)
    log.reply(c.Tick(), START_S + ENDED_KEPT_S)
    assert [entry.id for entry in log.state.jobs.snapshot()] == ["open"]


def test_what_ended_first_makes_room_and_what_goes_on_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "JOBS_LIMIT", 3)
    log = Log()
    for id in ("a", "b", "c"):
        log.reply(submit(id))
    assert log.refused(submit("d")).error == "LimitError"
    for later, id in enumerate(("b", "a")):
        log.reply(c.CancelJob(id, "ann"), START_S + later)
    log.reply(submit("d"))
    assert sorted(entry.id for entry in log.state.jobs.snapshot()) == ["a", "c", "d"]


def test_all_jobs_together_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "TOTAL_LIMIT_BYTES", 3500)
    log = Log()
    log.reply(submit("a", bytes(1500)))
    log.reply(submit("b", bytes(400)))
    log.reply(c.AssignDriver("b", "n1", 0))
    refusal = log.refused(c.CommitResults("b", 1, (inline(0, bytes(2000)),)))
    assert "take" in refusal.message and refusal.error == "LimitError"
    log.reply(c.CancelJob("a", "ann"))
    log.reply(c.CommitResults("b", 1, (inline(0, bytes(2000)),)))
    assert [entry.id for entry in log.state.jobs.snapshot()] == ["b"]


def test_the_size_that_is_reckoned_is_not_less_than_what_a_snapshot_carries():
    log = Log()
    empty_bytes = len(log.state.snapshot())
    hashes = [f"{number:064x}" for number in range(200)]
    log.reply(submit("j", bytes(1000), tuple(c.Part(sha256, ("n" * 64,)) for sha256 in hashes)))
    log.reply(c.AssignDriver("j", "0123456789abcdef", 0))
    holders = ("n" * 64, "m" * 64)
    log.reply(c.CommitResults("j", 1, tuple(c.TaskResult(n, None, sha, holders) for n, sha in enumerate(hashes))))
    assert len(log.state.snapshot()) - empty_bytes <= job(log).size_bytes


def test_sizes_are_reckoned_alike_after_a_restart():
    log = driven()
    log.reply(c.CommitResults("j", 1, (inline(0, bytes(500)),)))
    log.reply(submit("k"))
    log.reply(c.CancelJob("k", "ann"))
    log.reply(c.DropJob("k"))
    log.reply(c.FinishJob("j", 1, c.JobEnd.DONE, 0, bytes(100)))
    restored = ClusterState.restore(log.state.snapshot())
    assert restored.jobs._size_bytes == log.state.jobs._size_bytes == job(log).size_bytes


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (submit("../x"), "UsageError"),
        (submit(""), "UsageError"),
        (submit(spec=bytes(jobs.SPEC_LIMIT_BYTES + 1)), "LimitError"),
        (submit(parts=(c.Part("x", ("n1",)),)), "UsageError"),
        (submit(parts=tuple(c.Part(f"{n:064x}", ("n1",)) for n in range(257))), "LimitError"),
        (msgspec.structs.replace(submit(), name="x" * 257), "LimitError"),
    ],
)
def test_what_cannot_be_kept_is_refused(command: c.SubmitJob, error: str):
    assert Log().refused(command).error == error


def test_an_id_serves_one_job():
    log = driven()
    assert "There is a job j already" in log.refused(submit()).message
