"""Stragglers run a second time when their job asks for it: one result, one attempt that is cancelled, nothing lost."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core import ownership as own
from kos_cluster.core.records import AttemptEnd, Cause, Load, Runs, TaskState
from tests.core.test_takingback import dispatches, member


class Straggling:
    """A job of four tasks of a second on three nodes; the last one still runs."""

    def __init__(self, **spec: object) -> None:
        self.core = own.Ownership(random.Random(1))
        for number in range(3):
            self.core.handle(own.NodeUp(member(f"n{number}", 1)), 0.0)
        spec = {"speculate": True, "single": True, **spec}
        self.core.handle(own.Opened(own.JobSpec("j", "f", **spec)), 0.0)  # type: ignore[arg-type]
        sent = dispatches(self.core.handle(own.Added("j", 4), 0.0))
        while sent:
            self.first = sent.pop()
            self.core.handle(own.StartedRunning(self.first.batch), 0.1)
            if self.first.runs != [(3, 1)]:
                sent = dispatches(self.done(self.first, 1.0)) + sent
            elif sent:
                sent.insert(0, self.first)

    def done(self, sent: own.Dispatch, now: float, failed: bool = False) -> list[own.Effect]:
        failures = frozenset(index for index, _ in sent.runs) if failed else frozenset()
        return self.core.handle(own.Outcomes(sent.batch, sent.node, sent.runs, failures, 1.0), now)

    def second(self) -> own.Dispatch:
        (second,) = dispatches(self.core.tick(5.0))
        return second


def test_a_straggler_runs_once_more_on_another_node_and_only_once():
    job = Straggling()
    assert dispatches(job.core.tick(1.9)) == []
    second = job.second()
    assert (second.runs, second.attempt) == ([(3, 1)], 2) and second.node != job.first.node
    assert dispatches(job.core.tick(50.0)) == []


@pytest.mark.parametrize("winner", [1, 2])
@pytest.mark.parametrize("failed", [False, True])
def test_the_first_outcome_is_the_result_and_the_other_attempt_is_cancelled(winner: int, failed: bool):
    job = Straggling()
    both = [job.first, job.second()]
    won, lost = both[winner - 1], both[2 - winner]
    effects = job.done(won, 6.0, failed)
    assert own.Commit("j", [(3, 1)]) in effects and own.CancelAt(lost.node, [lost.batch]) in effects
    assert own.AttemptOver("j", [(3, 1)], lost.attempt) in effects and own.JobIdle("j") in effects
    assert not any(isinstance(effect, own.Commit) for effect in job.done(lost, 6.1))
    summary = job.core.summary("j")
    assert (summary.done, summary.failed, summary.running) == ((3, 1, 0) if failed else (4, 0, 0))
    story = job.core.story("j", 3)
    assert story is not None
    (cancelled,) = [a for a in story.attempts if a.end is AttemptEnd.CANCELLED]
    assert (cancelled.number, cancelled.cause) == (lost.attempt, f"attempt {won.attempt} was faster")
    assert job.core.outstanding(lost.node) == job.core.outstanding(won.node) == []


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("loss", ["worker", "node", "refused", "returned", "untouched", "input"])
def test_an_attempt_that_is_lost_leaves_the_task_to_the_other(which: int, loss: str):
    job = Straggling()
    both = [job.first, job.second()]
    gone, left = both[which], both[1 - which]
    runs: Runs = [(3, 1)]
    event: own.Event
    match loss:
        case "worker":
            event = own.BatchLost(gone.batch, runs, [], Cause.WORKER_DIED, "")
        case "untouched":
            event = own.BatchLost(gone.batch, [], runs, Cause.STOPPING, "")
        case "node":
            event = own.NodeDown(gone.node, "gone")
        case "input":
            event = own.InputLost(gone.batch, 3, "a block is lost")
        case "refused":
            event = own.BatchRefused(gone.batch, "full")
        case _:
            event = own.Returned(gone.batch, runs)
    assert dispatches(job.core.handle(event, 6.0)) == []
    assert job.core.summary("j").running == 1
    assert own.JobIdle("j") in job.done(left, 7.0)
    assert job.core.summary("j").done == 4


def test_when_both_are_lost_the_task_runs_again():
    job = Straggling()
    for sent in (job.first, job.second()):
        effects = job.core.handle(own.BatchLost(sent.batch, [(3, 1)], [], Cause.WORKER_DIED, ""), 6.0)
    (third,) = dispatches(effects)
    assert third.attempt == 3 and own.JobIdle("j") in job.done(third, 8.0)


def test_a_cancelled_task_is_stopped_at_both_places():
    job = Straggling()
    second = job.second()
    effects = job.core.handle(own.Cancelled("j", 3), 6.0)
    stopped = {(e.node, *e.batches) for e in effects if isinstance(e, own.CancelAt)}
    assert stopped == {(job.first.node, job.first.batch), (second.node, second.batch)}
    assert job.core.summary("j").cancelled == 1
    story = job.core.story("j", 3)
    assert story is not None and story.state is TaskState.CANCELLED


def test_a_time_out_is_the_end_of_both():
    job = Straggling()
    second = job.second()
    effects = job.core.handle(own.BatchLost(job.first.batch, [(3, 1)], [], Cause.TIMEOUT, ""), 6.0)
    assert own.CancelAt(second.node, [second.batch]) in effects
    assert any(isinstance(effect, own.GiveUp) for effect in effects) and own.JobIdle("j") in effects


def test_nothing_runs_twice_that_did_not_ask_for_it_or_has_no_idle_node():
    assert dispatches(Straggling(speculate=False).core.tick(50.0)) == []
    job = Straggling()
    for number in range(3):
        job.core.handle(own.NodeLoad(f"n{number}", Load(running=1)), 2.0)
    assert dispatches(job.core.tick(50.0)) == []


@pytest.mark.parametrize("cause", [Cause.WORKER_DIED, Cause.OUT_OF_MEMORY])
def test_second_attempts_count_among_the_retries(cause: Cause):
    job = Straggling(retries=2)
    now, attempts = 5.0, []
    while second := dispatches(job.core.tick(now)):
        attempts.append(second[0].attempt)
        job.core.handle(own.BatchLost(second[0].batch, [(3, 1)], [], cause, ""), now)
        now += 5.0
        assert len(attempts) < 10
    assert attempts == [2, 3]
    effects = job.core.handle(own.BatchLost(job.first.batch, [(3, 1)], [], Cause.WORKER_DIED, ""), now)
    (over,) = [effect for effect in effects if isinstance(effect, own.GiveUp)]
    assert over.runs == [(3, 1)] and dispatches(effects) == []


def test_no_two_attempts_have_one_number():
    job = Straggling(retries=3)
    second = job.second()
    effects = job.core.handle(own.BatchLost(second.batch, [(3, 1)], [], Cause.WORKER_DIED, ""), 6.0)
    assert own.AttemptOver("j", [(3, 1)], 2) in effects
    (third,) = dispatches(job.core.handle(own.BatchLost(job.first.batch, [(3, 1)], [], Cause.WORKER_DIED, ""), 6.5))
    assert third.attempt == 3


def test_a_repeated_outcome_of_an_earlier_task_ends_no_pair():
    job = Straggling()
    second = job.second()
    repeated = job.core.handle(own.Outcomes(job.first.batch, job.first.node, [(0, 1)], frozenset(), 1.0), 6.0)
    assert not [effect for effect in repeated if isinstance(effect, own.CancelAt)]
    assert own.Commit("j", [(3, 1)]) in job.done(second, 6.5)
