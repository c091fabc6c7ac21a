"""The owner of an engine's tasks: its thread, what becomes of them when it ends, and what it tells."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kos_cluster.core.records import AttemptEnd
from kos_cluster.errors import StateError
from kos_cluster.services.engines import owner as owners
from kos_cluster.services.engines.calls import BEGUN, Ended
from kos_cluster.services.engines.engine import Connection, Write
from kos_cluster.services.engines.owner import EngineOwner
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.mesh import Mesh
from kos_cluster.tasks.submission import new_job_id

WAIT_S = 20.0
PAYLOAD = b"arguments"


class Engine:
    """A connection whose calls end when a test says so, or at once."""

    def __init__(self) -> None:
        self.usable = True
        self.at_once = False
        self.sent: list[concurrent.futures.Future[Ended]] = []
        self.writes: list[Write] = []
        self.changed = threading.Event()

    def submit(self, call: Any, *, write: Write, **_: Any) -> concurrent.futures.Future[Ended]:
        future: concurrent.futures.Future[Ended] = concurrent.futures.Future()
        if self.at_once:
            future.set_result(Ended(AttemptEnd.DONE, b"N."))
        else:
            self.sent.append(future)
            self.writes.append(write)
        self.changed.set()
        return future

    def close(self) -> None:
        self.usable = False


class Sink:
    def __init__(self) -> None:
        self.progressed = threading.Event()

    def progress(self, *_: Any) -> None:
        self.progressed.set()

    def finished(self, *_: Any) -> None:
        pass


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def owner(engine: Engine) -> Iterator[EngineOwner]:
    blocks = SimpleNamespace(used=lambda _: None, unused=lambda _: None)
    credentials = SimpleNamespace(peer=SimpleNamespace(name="user"))
    mesh = SimpleNamespace(
        blocks=blocks, credentials=credentials, jobs=SimpleNamespace(elsewhere=[]), announce=lambda: None
    )
    made = EngineOwner("night", 1, cast(Connection, engine), cast(Mesh, mesh))
    yield made
    made.close()


def job_on(owner: EngineOwner) -> tuple[Job, Sink]:
    sink = Sink()
    job = Job(new_job_id(), JobSpec(b"function"), cast(Any, sink), owner, "")
    owner.open(job)
    return job, sink


def noted(owner: EngineOwner) -> None:
    """Wait until the owner has done what it was told."""
    done = threading.Event()
    owner._note(done.set)
    assert done.wait(WAIT_S)


def until_sent(engine: Engine) -> None:
    assert engine.changed.wait(WAIT_S)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before_s)


def test_jobs_are_opened_by_some_threads_while_those_of_others_end(
    owner: EngineOwner, engine: Engine, hasty: None
) -> None:
    engine.at_once = True

    def run(_: int) -> None:
        for _ in range(150):
            job, _sink = job_on(owner)
            future = job.add(PAYLOAD)
            job.close()
            owner.summaries()
            assert future.result(WAIT_S) is None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert not owner.closed


def test_an_error_in_its_thread_ends_all_that_waits_for_it(
    owner: EngineOwner, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    job, _ = job_on(owner)
    future = job.add(PAYLOAD)
    until_sent(engine)

    def fail() -> None:
        raise ZeroDivisionError("in a note")

    owner._note(fail)
    with pytest.raises(StateError, match=r"thread of engine night has failed \(ZeroDivisionError.*report it"):
        future.result(WAIT_S)
    assert owner.closed
    with pytest.raises(StateError, match="closed"):
        job.add(PAYLOAD)
    assert "in a note" in capfd.readouterr().err
    owner.close()
    assert not engine.usable  # it is left nevertheless


def test_what_is_added_while_it_closes_is_refused_and_what_was_added_before_ends(
    owner: EngineOwner, engine: Engine
) -> None:
    job, _ = job_on(owner)
    first = job.add(PAYLOAD)
    until_sent(engine)
    stopping, go_on = threading.Event(), threading.Event()

    def stays(_: object) -> None:
        stopping.set()
        assert go_on.wait(WAIT_S)

    engine.sent[0].add_done_callback(stays)
    closing = threading.Thread(target=owner.close)
    closing.start()
    try:
        assert stopping.wait(WAIT_S)
        with pytest.raises(StateError, match="closed"):
            job.add(PAYLOAD)
        with pytest.raises(StateError, match="closed"):
            job_on(owner)
    finally:
        go_on.set()
        closing.join()
    assert first.cancelled()
    owner.close()  # again


def test_progress_is_shown_however_many_notes_come(
    owner: EngineOwner, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(owners, "PROGRESS_EVERY_S", 0.02)
    job, sink = job_on(owner)
    job.add(PAYLOAD)
    until_sent(engine)
    turns: list[int] = []

    def again() -> None:  # there is always a note
        turns.append(1)
        if not sink.progressed.is_set() and len(turns) < 100_000:
            owner._note(again)

    owner._note(again)
    assert sink.progressed.wait(WAIT_S)
    assert len(turns) < 100_000


def test_a_call_that_begins_when_it_was_cancelled_has_no_attempt_that_never_ends(
    owner: EngineOwner, engine: Engine
) -> None:
    job, _ = job_on(owner)
    future = job.add(PAYLOAD)
    until_sent(engine)
    future.cancel()
    noted(owner)
    engine.writes[0](BEGUN, "node1")
    noted(owner)
    (story,) = owner.stories(job.id, [0])
    assert [attempt.end for attempt in story.attempts if attempt.end is AttemptEnd.OPEN] == []


def test_a_second_thread_that_closes_it_waits_until_it_is_closed(owner: EngineOwner, engine: Engine) -> None:
    closing: list[Callable[[], None]] = [owner.close] * 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda close: close(), closing))
    assert owner.closed and not engine.usable
