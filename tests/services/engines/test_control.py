"""An interrupt while one waits for an engine is the user's own, and leaves no supervisor behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.errors import EngineError, PlacementError
from kos_cluster.services.engines import control
from kos_cluster.services.engines.spec import Spec


class Job:
    """A supervisor's, that has ended by `error`; `interrupted`: while one asks for that."""

    id = "j"

    def __init__(self, error: BaseException | None = None, interrupted: bool = False) -> None:
        self.cancelled = False
        self._error, self._interrupted = error, interrupted

    def outcomes(self) -> Any:
        if self._interrupted:
            raise KeyboardInterrupt
        yield SimpleNamespace(failed=self._error is not None, error=lambda: self._error)

    def state(self) -> Any:
        return SimpleNamespace(state="failed")

    def cancel(self) -> bool:
        self.cancelled = True
        return True


class Cluster:
    """Nothing is there but the job of the supervisor that is started."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def packages(self) -> dict[str, dict[str, str]]:
        return {"node1": {"distributed": "1"}}

    def registers(self, patience_s: float = 0.0) -> dict[str, str]:
        return {}

    def detach(self, *_: Any, **__: Any) -> Job:
        return self._job


def start(job: Job) -> None:
    control.start(Cluster(job), Spec("dask", "dask", "e", 1))  # type: ignore[arg-type]


def test_an_interrupt_while_it_starts_is_passed_on_and_the_supervisor_ended() -> None:
    job = Job(interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        start(job)
    assert job.cancelled


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (PlacementError("It does not fit.", ""), PlacementError, "It does not fit"),
        (KeyboardInterrupt(), EngineError, "has ended: KeyboardInterrupt()"),
        (None, EngineError, "was stopped while it started"),
    ],
)
def test_how_a_supervisor_has_ended_is_what_the_start_raises(
    raised: BaseException | None, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told.replace("(", r"\(").replace(")", r"\)")):
        start(Job(raised))
