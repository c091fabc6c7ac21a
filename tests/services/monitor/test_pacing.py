"""A cluster is sampled while somebody looks, and not otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.pacing import Pacing
from kos_cluster.services.monitor.snapshot import Snapshot
from tests.e2e.conftest import _until
from tests.services.monitor.sights import node, snapshot

INTERVAL_S = 0.01


class Sampler:
    def __init__(self) -> None:
        self.taken = 0

    def sample(self) -> Snapshot:
        self.taken += 1
        return snapshot(self.taken, [node(1)])


class Stage:
    def __init__(self, lease_s: float) -> None:
        self.sampler = Sampler()
        self.model = Model()
        self.failing = False
        self.pacing = Pacing(self.sampler, self.model, self.after, INTERVAL_S, lease_s)  # type: ignore[arg-type]

    def after(self) -> None:
        if self.failing:
            self.failing = False
            raise RuntimeError("a defect in a pane")

    def samples(self, more: int = 3) -> None:
        """Wait for some samples."""
        then = self.sampler.taken + more
        _until(lambda: self.sampler.taken >= then, "it samples")

    def still(self) -> bool:
        """Whether no sample comes any more, in the time of several."""
        before = self.sampler.taken
        threading.Event().wait(10 * INTERVAL_S)
        return self.sampler.taken == before


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage(lease_s=60.0)
    yield made
    made.pacing.end()


@pytest.fixture
def brief() -> Iterator[Stage]:
    made = Stage(lease_s=0.1)
    yield made
    made.pacing.end()


def test_nothing_is_sampled_before_somebody_looks(stage: Stage) -> None:
    assert stage.still()
    assert stage.sampler.taken == 0


def test_it_samples_for_whoever_looks_until_all_look_away(stage: Stage) -> None:
    stage.pacing.look("one")
    stage.pacing.look("two")
    stage.samples()
    stage.pacing.look_away("one")
    stage.samples()
    stage.pacing.look_away("two")
    _until(stage.still, "it stops")
    stage.pacing.look("one")
    stage.samples()
    assert stage.model.nodes


def test_who_went_away_without_a_word_is_not_sampled_for(brief: Stage) -> None:
    brief.pacing.look("gone")
    brief.samples()
    _until(brief.still, "it stops")


def test_while_nobody_can_be_heard_a_lease_does_not_run_out(brief: Stage) -> None:
    brief.pacing.hold()
    brief.pacing.look("busy")
    threading.Event().wait(0.3)
    brief.samples()
    brief.pacing.release()
    brief.samples(1)
    _until(brief.still, "it stops")


def test_it_ends_for_good(stage: Stage) -> None:
    stage.pacing.look("one")
    stage.samples()
    stage.pacing.end()
    stage.pacing.end()
    _until(stage.still, "it stops")
    stage.pacing.look("one")
    assert stage.still()


def test_a_defect_in_what_is_shown_does_not_end_it(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.failing = True
    stage.pacing.look("one")
    stage.samples(5)
    assert "a defect in a pane" in capsys.readouterr().err
