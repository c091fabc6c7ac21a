"""When lost workers of an engine are replaced, and what is told and kept of the gangs that they were in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kos_cluster.core.jobrows import DONE, FAILED
from kos_cluster.errors import GangError
from kos_cluster.services.engines import crews
from kos_cluster.services.engines.crews import PAUSE_MOST_S, STEADY_S, Crews
from kos_cluster.services.engines.spec import Spec
from tests.engines.supervised import ADDRESS, StandIn

LOOK_S = 0.25


class Watched:
    """The gangs of an engine of one worker, as its supervisor looks at them; time is what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(crews, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.cluster = StandIn(slots=2)
        self.crews = Crews(cast(Any, self.cluster), Spec("dask", "dask", "e1", 1), 1, 1)
        assert self.crews.placed

    def look(self) -> str:
        """One look; what it tells."""
        self.now += LOOK_S
        why = self.crews.settled() if self.crews.waits else ""
        if not self.crews.waits:
            self.crews.keep(1, ADDRESS)
        return why or self.crews.lost()

    def replaced(self) -> float:
        """The worker is lost; for how long it is missing until another one is asked for."""
        self.cluster.gangs[-1].end(FAILED)
        lost_s, before = self.now, len(self.cluster.gangs)
        while len(self.cluster.gangs) == before:
            self.look()
        return self.now - lost_s - LOOK_S

    def lasts(self, seconds: float) -> None:
        """The new worker has its slot, and works for so long."""
        self.look()
        self.now += seconds


def test_workers_that_fail_at_once_are_replaced_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    pauses = []
    for _ in range(11):
        pauses.append(watched.replaced())
        watched.lasts(0)
    assert pauses == pytest.approx([0, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60], abs=2 * LOOK_S)
    assert pauses[-1] <= PAUSE_MOST_S


def test_workers_that_have_lasted_are_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for _ in range(4):
        watched.replaced()
        watched.lasts(0)
    watched.lasts(STEADY_S + 1)
    assert watched.replaced() == 0
    watched.lasts(0)
    assert watched.replaced() > 0


def test_how_long_workers_waited_for_their_slots_does_not_make_them_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for _ in range(4):
        watched.cluster.slots = 1
        watched.replaced()
        watched.now += 2 * STEADY_S
        watched.cluster.slots = 2
        watched.lasts(0)
    assert watched.replaced() >= 4 - LOOK_S


def test_gangs_that_have_ended_are_forgotten_when_that_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    for _ in range(20):
        watched.replaced()
        watched.lasts(0)
    watched.cluster.gangs[-1].end(DONE)
    assert watched.look() == ""
    assert (len(watched.crews._gangs), len(watched.crews._told)) == (1, 1)  # the first gang, whose worker was lost


def test_what_ended_a_gang_as_a_whole_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.replaced()
    watched.lasts(0)
    watched.cluster.gangs[-1].refuse(GangError("It did not begin 8 times."))
    assert [watched.look(), watched.look()] == ["It did not begin 8 times", ""]
