"""How a supervisor carries out what is wished of its engine, and goes on when registers or the head give it trouble."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

import kos_cluster as kos
from kos_cluster.cli import main as command
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import AuthError, EngineError, GangError, LimitError, PlacementError, StateError
from kos_cluster.services.engines import control, supervisor
from kos_cluster.services.engines.registers import encoded
from kos_cluster.services.engines.spec import Began, Record, Spec, State, Wanted, head_of, record_of, wanted_of
from tests.engines.supervised import ADDRESS, StandIn, Supervisor, record, supervised
from tests.mesh.conftest import until


def scale(cluster: StandIn, workers: int) -> Record:
    return control.scale(cast(Any, cluster), "dask", workers)


def test_a_wish_that_was_given_up_is_not_carried_out_later(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = StandIn(slots=2)
    with supervised(cluster, workers=1):
        monkeypatch.setattr(control, "SCALE_TIMEOUT_S", 0.1)
        with pytest.raises(EngineError, match="was not scaled to 3 workers within"):
            scale(cluster, 3)
        until(lambda: cluster.gangs[-1].done(), "what waits is withdrawn")
        cluster.slots = 9
        monkeypatch.undo()
        assert scale(cluster, 2).workers == 2
        assert (cluster.live(), record(cluster).wanted) == (2, 2)


def test_more_workers_than_ever_fit_beside_the_head_are_refused_at_once() -> None:
    cluster = StandIn(slots=4)
    cluster.holds = 4
    with supervised(cluster, workers=1):
        with pytest.raises(PlacementError, match=r"4 workers of 1 slot each do not fit beside the head.* 4 such ranks"):
            scale(cluster, 4)
        assert scale(cluster, 3).workers == 3
        cluster.holds = 2  # a node has died meanwhile: what is there may be kept, and made fewer
        assert scale(cluster, 2).workers == 2


def test_what_a_start_waits_for_stands_in_its_record_until_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WAITS_AGAIN_S", 0.01)
    monkeypatch.setattr(supervisor, "START_LOOK_S", 0.005)
    cluster = StandIn(slots=1)
    running = supervisor._Supervisor(cast(Any, cluster), Spec("dask", "dask", "e1", 1))
    thread = Supervisor(running.run)
    thread.start()
    until(lambda: record_of("dask") in cluster.held and record(cluster).why == "it waits", "it is told")
    cluster.slots = 2
    cluster.held[head_of("dask")] = encoded(Began("e1", 1, ADDRESS))
    until(lambda: record(cluster).state is State.SERVING, "it serves")
    assert record(cluster).why == ""
    control.stop(cast(Any, cluster), "dask")
    thread.join()


def test_a_newer_wish_takes_the_place_of_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2):
        with pytest.raises(EngineError, match="somebody else has wished something newer"):
            _with_another(monkeypatch, cluster, 5, 1)
        until(lambda: record(cluster).workers == 1, "the newer one is carried out")
        cluster.slots = 9
        assert scale(cluster, 2).workers == 2


def test_an_engine_that_lost_a_worker_in_a_full_cluster_is_scaled_to_what_is_left() -> None:
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2):
        cluster.lose()
        until(lambda: len(cluster.gangs) == 2, "another worker is asked for")
        assert scale(cluster, 1).wanted == 1
        assert "was lost" in record(cluster).why


def test_full_registers_end_no_engine(capfd: pytest.CaptureFixture[str]) -> None:
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2) as running:
        cluster.refuses = LimitError("They are full.")
        cluster.lose()
        cluster.slots += 1
        until(lambda: cluster.live() == 2, "the lost one is replaced")
        assert running.is_alive()
        assert record(cluster).why == ""
        cluster.refuses = None
        until(lambda: "was lost" in record(cluster).why, "what could not be written is")
    assert not cluster.held
    assert capfd.readouterr().out.count("They are full.") == 1


def test_a_failure_that_cannot_be_written_is_told_all_the_same() -> None:
    cluster = StandIn(slots=2)
    with supervised(cluster, workers=1) as running:
        cluster.refuses = LimitError("They are full.")
        cluster.gangs[0].refuse(GangError("The head was killed."))
        running.join(30)
        assert not running.is_alive()
        assert "The head was killed; lost: 0 tasks" in str(running.ended[0])
        cluster.job = JobState.FAILED
        (seen,) = control.engines(cast(Any, cluster))
        assert (seen.state, seen.why) == (State.FAILED, "its supervisor has ended; see 'kos attach j1'")


def test_what_others_write_into_its_registers_ends_no_engine() -> None:
    cluster = StandIn(slots=2)
    with supervised(cluster, workers=1) as running:
        for register in (wanted_of("dask"), head_of("dask"), record_of("dask")):
            cluster.held[register] = "junk"
        until(lambda: cluster.held[record_of("dask")] != "junk", "its record is there again")
        assert running.is_alive()
        assert scale(cluster, 1).workers == 1


def test_a_register_of_somebody_elses_hides_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = StandIn(slots=2)
    cluster.held["engine.speed"] = "5"
    with supervised(cluster, workers=1):
        assert [each.name for each in control.engines(cast(Any, cluster))] == ["dask"]
        with pytest.raises(StateError, match=r"'kos register engine\.speed --unset'"):
            control.stop(cast(Any, cluster), "speed")
        with pytest.raises(EngineError, match="There is no engine 'ray': there are dask"):
            control.find(cast(Any, cluster), "ray")
        monkeypatch.setattr(kos, "connect", lambda name: cluster)
        out, err = io.StringIO(), io.StringIO()
        assert command.run(["engine", "list"], out, err) == 0
        assert "dask" in out.getvalue()
        assert "kos: The register engine.speed holds nothing that this version knows of an engine" in err.getvalue()
    assert list(cluster.held) == ["engine.speed"]


def test_a_dead_connection_to_the_head_is_made_anew() -> None:
    """Dask's client closes itself for good when it has not reached its scheduler for 10 s."""
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2):
        cluster.usable = False
        until(lambda: cluster.connected == 2, "it is connected again")
        assert scale(cluster, 1).workers == 1
        assert cluster.closed == 1


@pytest.mark.parametrize("fault", [RuntimeError("cannot schedule"), AuthError("It is expired.")])
def test_whatever_a_look_at_the_head_raises_is_told_and_the_next_one_taken(
    fault: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2):
        cluster.fault = fault
        until(lambda: cluster.connected == 2, "it is connected again")
        assert scale(cluster, 1).workers == 1
    assert f"a look at its head has raised {type(fault).__name__}: {fault}" in capfd.readouterr().out


def test_a_silence_of_the_head_does_not_erase_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SILENT_S", 0.05)
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2):
        cluster.lose()
        until(lambda: "was lost" in record(cluster).why, "the loss is told")
        cluster.mute = True
        until(lambda: record(cluster).silent, "the silence is told")
        cluster.mute = False
        until(lambda: not record(cluster).silent, "and that it is over")
        assert "was lost" in record(cluster).why


def test_a_head_that_lets_workers_go_is_not_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SILENT_S", 0.05)
    cluster = StandIn(slots=3)
    with supervised(cluster, workers=2):
        cluster.lets_go.clear()
        cluster.held[wanted_of("dask")] = encoded(Wanted("w1", "e1", 1))
        assert cluster.retiring.wait(30)
        begun_s = time.monotonic()
        until(lambda: time.monotonic() - begun_s > 4 * supervisor.SILENT_S, "it takes its time")
        assert not record(cluster).silent
        cluster.lets_go.set()
        until(lambda: record(cluster).wanted == 1, "the wish is carried out")


def _with_another(monkeypatch: pytest.MonkeyPatch, cluster: StandIn, workers: int, newer: int) -> None:
    """Scale; when that waits, somebody else wishes for another number."""
    awaited = control._awaited

    def with_another(look: Any, timeout_s: float, what: str) -> Record:
        until(lambda: len(cluster.gangs) == 2, "it waits")
        monkeypatch.undo()
        assert scale(cluster, newer).workers == newer
        return awaited(look, timeout_s, what)

    monkeypatch.setattr(control, "_awaited", with_another)
    scale(cluster, workers)


def test_an_interrupt_while_one_is_told_how_a_start_has_ended_is_the_users_own() -> None:
    def outcomes() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control._ended(cast(Any, SimpleNamespace(id="j1", outcomes=outcomes)))
