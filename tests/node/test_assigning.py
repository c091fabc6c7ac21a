"""Which jobs the coordinator gives a driver, and when it takes them from one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kos_cluster.core.replicated.commands import AssignDriver, CancelJob
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.node import assigning as module
from kos_cluster.node.assigning import Assigning
from kos_cluster.node.draining import drained
from tests.node.agreed import Agreement, View

Scene = Callable[[Agreement, View, Assigning], Awaitable[None]]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], None]:
    monkeypatch.setattr(module, "SETTLED_S", 0.0)

    def run(scene: Scene) -> None:
        async def whole() -> None:
            agreement, view = Agreement(), View("a", "b", "c")
            await agreement.submit()
            await scene(agreement, view, Assigning(agreement, view))  # type: ignore[arg-type]

        asyncio.run(whole())

    return run


def test_a_new_job_gets_a_driver_that_keeps_its_work(play: Callable[[Scene], None]) -> None:
    async def scene(agreement: Agreement, view: View, assigning: Assigning) -> None:
        assert await assigning.step()
        job = agreement.job()
        assert (job.state, job.driver, job.epoch) == (JobState.DRIVEN, "a", 1)
        assert not await assigning.step()

    play(scene)


def test_a_job_of_a_dead_node_is_driven_on_by_another_in_the_next_epoch(play: Callable[[Scene], None]) -> None:
    async def scene(agreement: Agreement, view: View, assigning: Assigning) -> None:
        await assigning.step()
        view.dead("a")
        assert await assigning.step()
        assert (agreement.job().driver, agreement.job().epoch) == ("b", 2)

    play(scene)


def test_a_new_coordinator_waits_before_it_takes_a_job_from_a_node(
    play: Callable[[Scene], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(agreement: Agreement, view: View, assigning: Assigning) -> None:
        await assigning.step()
        view.dead("a")
        monkeypatch.setattr(module, "SETTLED_S", 60.0)
        agreement.term += 1
        assert not await assigning.step()
        monkeypatch.setattr(module, "SETTLED_S", 0.0)
        assert await assigning.step()

    play(scene)


def test_neither_drained_nor_dead_nodes_drive_and_without_others_the_job_waits(play: Callable[[Scene], None]) -> None:
    async def scene(agreement: Agreement, view: View, assigning: Assigning) -> None:
        view.dead("a")
        view.now("b", drained=True)
        await agreement.propose(drained("c", True))
        assert not await assigning.step()
        assert agreement.job().state is JobState.WAITING
        await agreement.propose(drained("c", False))
        assert await assigning.step()
        assert agreement.job().driver == "c"

    play(scene)


def test_an_ended_job_gets_no_driver(play: Callable[[Scene], None]) -> None:
    async def scene(agreement: Agreement, view: View, assigning: Assigning) -> None:
        await agreement.propose(CancelJob("j", "ada"))
        assert not await assigning.step()
        assert agreement.of(AssignDriver) == []

    play(scene)


def test_jobs_are_spread_over_the_nodes(play: Callable[[Scene], None]) -> None:
    async def scene(agreement: Agreement, view: View, assigning: Assigning) -> None:
        await agreement.submit("k")
        while await assigning.step():
            pass
        assert {agreement.job("j").driver, agreement.job("k").driver} == {"a", "b"}

    play(scene)
