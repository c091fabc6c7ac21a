"""What is removed of an engine, when it was ended half-way or its name is another's by then."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import EngineError, LimitError, UnreachableError, UsageError
from kos_cluster.services.engines import control, supervisor
from kos_cluster.services.engines.registers import encoded, forget, say_began
from kos_cluster.services.engines.spec import Began, Record, Spec, State, Wanted, head_of, record_of, wanted_of
from tests.engines.supervised import ADDRESS, StandIn


def made(id_: str, state: State = State.SERVING, life: int = 1) -> Record:
    return Record("dask", "dask", id_, f"j-{id_}", state, 1, 1, 0, 0, False, 0.0, life=life, address=ADDRESS)


def written(cluster: StandIn, id_: str, state: State = State.SERVING) -> dict[str, str]:
    """All that can be written of an engine."""
    registers = {
        record_of("dask"): encoded(made(id_, state)),
        head_of("dask"): encoded(Began(id_, 1, ADDRESS)),
        wanted_of("dask"): encoded(Wanted("w", id_, 5)),
    }
    cluster.held |= registers
    return registers


def test_two_who_stop_a_failed_engine_leave_the_one_that_a_third_starts_meanwhile() -> None:
    cluster = StandIn(slots=2)
    written(cluster, "e1", State.FAILED)
    cluster.job = JobState.FAILED
    newer: dict[str, str] = {}

    def starts() -> None:
        control.stop(cast(Any, cluster), "dask")
        newer.update(written(cluster, "e2"))

    cluster.when_set[wanted_of("dask")] = starts  # between the first one's wish and what that finds
    control.stop(cast(Any, cluster), "dask")
    assert cluster.held == newer


def test_what_does_not_stop_in_time_is_removed_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "STOP_TIMEOUT_S", 0.0)
    cluster = StandIn(slots=2)
    written(cluster, "e1")
    with pytest.raises(EngineError, match="did not stop within"):
        control.stop(cast(Any, cluster), "dask")
    assert not cluster.held
    newer = written(cluster, "e2")
    forget(cast(Any, cluster), "dask", "e1")
    assert cluster.held == newer


def test_an_engine_is_stopped_while_the_registers_are_full() -> None:
    cluster = StandIn(slots=2)
    written(cluster, "e1")
    cluster.refuses = LimitError("They are full.")
    assert control.stop(cast(Any, cluster), "dask").id == "e1"
    assert (cluster.job, cluster.held) == (JobState.CANCELLED, {})


def test_a_head_that_begins_too_late_leaves_nothing() -> None:
    cluster = StandIn(slots=2)
    began = Began("e1", 1, ADDRESS)
    with pytest.raises(EngineError, match="was given up while its head started"):
        say_began(cast(Any, cluster), "dask", began)
    written(cluster, "e1")
    cluster.when_set[head_of("dask")] = lambda: forget(cast(Any, cluster), "dask", "e1")
    with pytest.raises(EngineError, match="was given up while its head started"):
        say_began(cast(Any, cluster), "dask", began)
    assert not cluster.held
    newer = written(cluster, "e2")
    with pytest.raises(EngineError, match="was given up while its head started"):
        say_began(cast(Any, cluster), "dask", began)
    assert cluster.held == newer


def test_the_head_of_a_life_that_is_over_does_not_hide_the_newer_one() -> None:
    cluster = StandIn(slots=2)
    cluster.held = {record_of("dask"): encoded(made("e1", life=2)), head_of("dask"): encoded(Began("e1", 2, ADDRESS))}
    before = dict(cluster.held)
    with pytest.raises(EngineError):
        say_began(cast(Any, cluster), "dask", Began("e1", 1, ADDRESS))
    assert cluster.held == before
    say_began(cast(Any, cluster), "dask", Began("e1", 2, ADDRESS, until_s=1.0))
    assert cluster.held != before


def test_an_engine_that_was_removed_in_part_is_gone_and_its_rest_goes_with_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = StandIn(slots=2)
    written(cluster, "e1")
    cluster.when_set[record_of("dask")] = _killed
    with pytest.raises(UnreachableError):
        forget(cast(Any, cluster), "dask", "e1")
    assert control.engines(cast(Any, cluster)) == []
    assert len(cluster.held) == 2
    running = supervisor._Supervisor(cast(Any, cluster), Spec("dask", "dask", "e2", 1))
    running._claim()
    assert list(cluster.held) == [record_of("dask")]


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_a_record_that_a_cancelled_supervisor_left_takes_no_name(
    monkeypatch: pytest.MonkeyPatch, state: JobState
) -> None:
    monkeypatch.setattr(control, "check_installed", lambda *_: None)
    cluster = StandIn(slots=2)
    written(cluster, "e1")
    cluster.job = state
    spec = Spec("dask", "dask", "e2", 1)
    if state is JobState.FAILED:  # it has failed by itself, and is listed as that
        with pytest.raises(UsageError, match=r"There is an engine 'dask' already \(dask, failed\)"):
            control.start(cast(Any, cluster), spec)
    else:
        assert control.start(cast(Any, cluster), spec).id == "e2"


def test_of_two_who_start_an_engine_of_one_name_one_is_told_of_the_other() -> None:
    cluster = StandIn(slots=2)
    running = supervisor._Supervisor(cast(Any, cluster), Spec("dask", "dask", "e1", 1))
    cluster.when_asked[record_of("dask")] = lambda: written(cluster, "e2")
    with pytest.raises(UsageError, match=r"There is an engine 'dask' already \(dask, serving\)"):
        running.run()
    assert '"id":"e2"' in cluster.held[record_of("dask")]


def _killed() -> None:
    raise UnreachableError("It was killed.")


@pytest.mark.parametrize(("state", "left"), [(JobState.CANCELLED, 0), (JobState.DRIVEN, 1), (JobState.WAITING, 1)])
def test_a_supervisor_that_is_interrupted_removes_its_record_only_if_its_job_was_cancelled(
    monkeypatch: pytest.MonkeyPatch, state: JobState, left: int
) -> None:
    """Else the driver of its job was lost: the next supervisor tells what was lost, and counts a restart."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    cluster = StandIn(slots=2)
    cluster.job = state
    running = supervisor._Supervisor(cast(Any, cluster), Spec("dask", "dask", "e1", 1))
    monkeypatch.setattr(running, "_live", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert len(cluster.held) == left
