"""How a supervisor carries out what is wished of its engine, and goes on when registers or the head give it trouble."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kos_cluster.errors import EngineError
from kos_cluster.services.engines import control
from kos_cluster.services.engines.spec import Record
from tests.engines.supervised import StandIn, record, supervised
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
