"""Lost results: what becomes of tasks that miss them, and of those who read them, when making them again ends badly."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import random
import threading
import time
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.core import ownership
from kos_cluster.core.ownership import Ownership
from kos_cluster.core.records import Member
from kos_cluster.errors import BlockLostError, InputFailedError, StateError
from kos_cluster.net import wire
from kos_cluster.node import machine
from kos_cluster.tasks import blocks, executor, serialise
from kos_cluster.tasks.blocks import BlockRef, _Stayed
from kos_cluster.tasks.failures import Failure, failure_of
from kos_cluster.tasks.futures import Future
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.jobtable import JobTable
from kos_cluster.tasks.mesh import Mesh
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.remaking import Remaking

WAIT_S = 60.0
MIB = 1 << 20


class Owner(Mesh):
    """A connection without thread and links, to two nodes of four slots; what is sent there is noted."""

    def __init__(self) -> None:
        nothing: Any = SimpleNamespace(
            **dict.fromkeys(("settled", "tell_all", "lend", "dropped", "forget", "announce"), lambda *_: None)
        )
        self.closed, self.pid, self.instance = False, os.getpid(), "1"
        self.sent: list[ownership.Dispatch] = []
        self._now_s = 0.0
        self._core = Ownership(random.Random(1))
        self._outgoing = self._attachment = self._beat = self.holding = nothing
        self.jobs = JobTable(self, self._core, nothing, nothing)
        self._jobs = self.jobs.by_id
        uses = dict.fromkeys(("used", "unused", "adopt", "drop_elsewhere"), lambda *_: None)
        self.blocks = SimpleNamespace(**uses)  # type: ignore[assignment]
        self.remaking = Remaking(self, self._core, self._jobs, nothing, self._feed, self.jobs.begin, self.jobs.close)
        self._thread = threading.Thread()
        for number in (1, 2):
            member = Member(f"n{number}", f"node{number}", "127.0.0.1", number, 4, machine.versions(), 1)
            self._feed(ownership.NodeUp(member))

    async def _main(self) -> None:
        """It ends at once."""

    def _post(self, call: Any, *args: Any) -> None:
        call(*args)

    def ask(self, question: Any) -> Any:
        return question()

    def _dispatch(self, dispatch: ownership.Dispatch) -> None:
        self.sent.append(dispatch)

    def _now(self) -> float:
        self._now_s += 1.0
        return self._now_s

    def submit(self, job: str, **options: Any) -> Future:
        """One task more."""
        if job not in self._jobs:
            self.open(Job(job, JobSpec(b"f", options=Options(**options)), None, self, ""))  # type: ignore[arg-type]
        return self._jobs[job].add(serialise.dumps_args((), {}))

    # ---- what the node says

    def ends(self, job: str, payload: bytes, **more: Any) -> None:
        """The job's newest batch, of one task, ends so."""
        sent = self.newest(job)
        failed = [index for index, _ in sent.runs] if more.pop("failed", False) else []
        self._accept(sent.node, wire.Result(sent.batch, 1, sent.runs, failed, {}, 0.1, True, **more), [payload])

    def stays(self, job: str, block: str) -> None:
        self.ends(job, stayed(block), blocks=[block], stayed={0: MIB})

    def fails(self, job: str, failure: Failure) -> None:
        self.ends(job, pickle.dumps(failure), failed=True)

    def misses(self, job: str, *blocks: str) -> None:
        """Its task could not begin."""
        failure = failure_of(BlockLostError("no node has it"), node="node1", task=f"{job}.0", attempt=1)
        self.ends(job, pickle.dumps(failure), failed=True, lost={self.newest(job).runs[0][0]: list(blocks)})

    def newest(self, job: str) -> ownership.Dispatch:
        return [each for each in self.sent if each.job == job][-1]

    def attempts(self, job: str) -> int:
        return sum(each.job == job for each in self.sent)


def stayed(block: str) -> bytes:
    return pickle.dumps(_Stayed(BlockRef(block, MIB, "n1", "node1")))


def block(number: int) -> str:
    return f"{number:032x}"


def held(owner: Owner, retries: Sequence[int] = (3,)) -> tuple[list[Future], Future]:
    """Tasks "m0", "m1" … whose results stayed and are lost, and task "t" that takes them all and misses them."""
    makers = [owner.submit(f"m{number}", retries=tries) for number, tries in enumerate(retries)]
    for number in range(len(makers)):
        owner.stays(f"m{number}", block(number))
    taker = owner.submit("t")
    owner.misses("t", *map(block, range(len(makers))))
    return makers, taker


unpickled: list[str] = []  # in these threads


class Loud(Exception):
    """Its user's code runs where it is unpickled."""

    def __reduce__(self) -> Any:
        return _loud, ()


def _loud() -> Loud:
    unpickled.append(threading.current_thread().name)
    return Loud()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other connection of this process has blocks, such as one of an earlier test that is not collected yet."""
    monkeypatch.setattr(blocks, "counting", weakref.WeakSet())


@pytest.fixture
def loud() -> Failure:
    failure = failure_of(Loud(), node="node1", task="m0.0", attempt=2)
    unpickled.clear()
    return failure


def test_what_was_raised_when_a_result_was_made_again_is_unpickled_by_who_asks(loud: Failure) -> None:
    owner = Owner()
    (made,), taker = held(owner)
    found: list[BaseException | None] = []
    reader = threading.Thread(target=lambda: found.append(made.exception()), name="reader")
    reader.start()
    owner.fails("m0", loud)
    assert taker.done() and "mesh" not in unpickled and threading.current_thread().name not in unpickled
    reader.join(WAIT_S)
    assert isinstance(found[0], Loud) and unpickled == ["reader"]
    with pytest.raises(InputFailedError, match=r"needs the result of task m0\.0, which was lost; .* failed on node1"):
        taker.result()
    error = taker.exception()
    assert error is not None and isinstance(error.__cause__, Loud)


@pytest.mark.parametrize(("size", "why"), [(2 * MIB, "arena of node node1 could not take"), (9, "takes 24 bytes now")])
def test_a_task_that_takes_what_was_made_again_and_does_not_stay_fails_and_says_so(size: int, why: str) -> None:
    owner = Owner()
    (made,), taker = held(owner)
    owner.ends("m0", pickle.dumps(bytes(size)))
    assert owner.attempts("t") == 1, "it would miss it again"
    with pytest.raises(InputFailedError, match=rf"Task m0\.0 has made it again, but it does not stay there: .*{why}"):
        taker.result()
    assert made.result(0) == bytes(size) and owner.attempts("m0") == 2, "it is here"


def test_what_was_made_again_and_stays_is_taken() -> None:
    owner = Owner()
    _made, taker = held(owner, [3, 3])
    owner.stays("m0", block(0))
    assert [each.waits_for for each in owner.remaking.told("t")] == [("m1.0",)]
    owner.stays("m1", block(1))
    assert owner.attempts("t") == 2 and not owner.remaking.told("t")
    owner.ends("t", pickle.dumps(5))
    assert taker.result() == 5
    owner.submit("u")
    owner.misses("u", block(0))
    assert owner.attempts("m0") == 3, "it is made again as often as it is lost"


def test_a_task_that_is_cancelled_waits_for_nothing_that_was_lost(
    loud: Failure, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner()
    (_made,), taker = held(owner)
    assert owner.remaking.told("t")
    taker.cancel()
    assert not owner.remaking.told("t")
    del owner._jobs["t"]  # as when many others have ended since
    owner._core.forget("t")
    owner.fails("m0", loud)
    assert not caplog.records, "nothing goes wrong where it would have been told"


def test_a_second_attempt_that_misses_what_is_lost_leaves_its_task_to_the_first(loud: Failure) -> None:
    owner = Owner()
    _made = owner.submit("m0")
    owner.stays("m0", block(0))
    owner.submit("t", speculate=True)
    owner.ends("t", pickle.dumps(1))
    straggler = owner.submit("t")
    first = owner.newest("t")
    owner._feed(ownership.StartedRunning(first.batch))
    owner._now_s += 60.0
    owner._carry_out(owner._core.tick(owner._now()))
    assert (owner.newest("t").attempt, owner.newest("t").runs) == (2, first.runs)
    owner.misses("t", block(0))
    owner.fails("m0", loud)
    owner.sent.append(first)
    owner.ends("t", pickle.dumps(5))
    assert straggler.result(0) == 5


def test_a_task_that_waits_for_what_was_lost_ends_with_the_connection_and_so_do_all_others() -> None:
    owner = Owner()
    (_made,), taker = held(owner)
    other = owner.submit("other")
    owner.close()
    owner._run()
    for future in (taker, other):
        with pytest.raises(StateError, match="The connection to the cluster was closed"):
            future.result(0)


def test_nothing_is_made_again_for_a_task_that_has_failed() -> None:
    owner = Owner()
    _made, taker = held(owner, [0, 3])
    with pytest.raises(InputFailedError, match=r"m0\.0, which was lost\. .* cannot be made again: its retries, 0"):
        taker.result()
    assert owner.attempts("m1") == 1


def test_who_reads_a_lost_result_waits_as_long_as_he_has_said() -> None:
    owner = Owner()
    made = owner.submit("m0")
    owner.stays("m0", block(0))
    for wait in (made.result, made.exception):
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match=r"The result of task m0\.0 is lost, and has not been made again"):
            wait(0.05)
        assert 0.05 <= time.monotonic() - begun < WAIT_S
    assert owner.attempts("m0") == 2, "it is made once"
    owner.ends("m0", pickle.dumps(7))
    assert made.result(0) == 7 and owner.attempts("m0") == 2, "it is not forgotten when it comes later"


def test_who_asks_only_after_it_could_not_be_made_again_is_told_what_its_task_raised(loud: Failure) -> None:
    owner = Owner()
    (made,), _taker = held(owner)
    owner.fails("m0", loud)
    assert isinstance(made.exception(0), Loud)


def test_a_map_with_a_timeout_waits_no_longer_for_what_is_lost() -> None:
    owner = Owner()
    made = owner.submit("m0")
    owner.stays("m0", block(0))
    cancelled: list[bool] = []

    class Taken(list[Any]):
        def take(self, index: int, _timeout: float | None) -> Any:
            return self[index]

        def cancel(self) -> None:
            cancelled.append(True)

    job: Any = Taken([made.settled()])
    with pytest.raises(TimeoutError):
        next(executor._results(job, time.monotonic() + 0.05))
    assert cancelled


def test_an_interrupt_while_it_is_made_again_is_not_taken_for_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    made = owner.submit("m0")
    owner.stays("m0", block(0))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner.remaking, "made_again", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.result()
    owner.remaking._make(owner.remaking._origins[block(0)], "no node has it")
    owner.ends("m0", pickle.dumps(7))
    assert made.result(0) == 7


def test_a_task_that_raises_a_timeout_when_it_is_run_again_has_failed() -> None:
    owner = Owner()
    made = owner.submit("m0")
    owner.stays("m0", block(0))
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        reader = threads.submit(made.exception, WAIT_S)
        while owner.attempts("m0") < 2:
            time.sleep(0.001)
        owner.fails("m0", failure_of(TimeoutError("mine"), node="node1", task="m0.0", attempt=2))
        error = reader.result(WAIT_S)
    assert isinstance(error, TimeoutError) and str(error) == "mine"
    assert made.exception() is error
