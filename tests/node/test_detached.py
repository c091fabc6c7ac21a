"""What is answered about detached jobs, and to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from kos_cluster.core.driving import Kind, Work, encode
from kos_cluster.core.records import Needs
from kos_cluster.core.replicated.commands import AssignDriver, CommitResults, TaskResult
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, LimitError, NoSuchTaskError, StateError, UsageError
from kos_cluster.net import detached as asks
from kos_cluster.net import wire
from kos_cluster.net.identity import Peer
from kos_cluster.net.standing import Standing, StandingAsked
from kos_cluster.node.answers import COMMAND_OF
from kos_cluster.node.detached import ASKED, DetachedJobs
from kos_cluster.node.drives import Output
from tests.node.agreed import BUNDLE, Agreement, View

OWNER = Peer("lab", "client-1", "ada", Role.CLIENT, 1, b"", 0.0)
OTHER = Peer("lab", "client-2", "bob", Role.CLIENT, 2, b"", 0.0)
ADMIN = Peer("lab", "admin-1", "eve", Role.ADMIN, 3, b"", 0.0)


class Control:
    def __init__(self) -> None:
        self.consensus, self.membership = Agreement(), View("a", "b")


class Drives:
    def __init__(self) -> None:
        self.known: dict[tuple[str, int], Output] = {}
        self.standings: dict[tuple[str, int], Standing] = {}

    def output(self, id_: str, epoch: int) -> Output | None:
        return self.known.get((id_, epoch))

    async def standing(self, id_: str, epoch: int) -> Standing | None:
        return self.standings.get((id_, epoch))


Ask = Callable[[Peer, wire.Asked], Awaitable[Any]]


def play(scene: Callable[[Control, Drives, Ask], Awaitable[None]]) -> None:
    async def whole() -> None:
        control, drives = Control(), Drives()
        detached = DetachedJobs(control, drives)  # type: ignore[arg-type]
        await scene(control, drives, detached.answer)

    asyncio.run(whole())


def detach(**changed: Any) -> asks.Detach:
    return msgspec.structs.replace(
        asks.Detach("j", "work", encode(Work(Kind.MAP, 2, BUNDLE)), BUNDLE, ("a", "b")), **changed
    )


def test_every_question_belongs_to_a_command() -> None:
    assert set(ASKED) <= COMMAND_OF.keys()


def test_a_job_is_told_as_it_stands_with_its_submitters_name() -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        assert await ask(OWNER, detach()) is True
        agreement = control.consensus
        await agreement.propose(AssignDriver("j", "b", 0))
        await agreement.propose(CommitResults("j", 1, (TaskResult(1, b"x", exit_code=1),)))
        told = await ask(OTHER, asks.DetachedJobOf("j"))
        assert (told.user, told.state, told.kind, told.driver_name, told.epoch) == (
            "ada", JobState.DRIVEN, Kind.MAP, "node-b", 1,
        )  # fmt: skip
        assert (told.total, told.done, told.failed) == (2, 1, 1)
        assert await ask(OTHER, asks.DetachedJobs()) == [told]
        assert await ask(OTHER, asks.DetachedResults("j")) == [TaskResult(1, b"x", exit_code=1)]

    play(scene)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"id": "no id"}, UsageError),
        ({"holders": ()}, UsageError),
        ({"holders": ("a", "b", "c")}, UsageError),
        ({"bundle": "cd" * 32}, StateError),
        ({"spec": b"\xff"}, StateError),
        ({"spec": encode(Work(Kind.MAP, 0, BUNDLE))}, StateError),
        ({"name": "x" * 1000}, LimitError),
    ],
)
def test_what_is_no_job_is_refused(changed: dict[str, Any], error: type[Exception]) -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        with pytest.raises(error):
            await ask(OWNER, detach(**changed))
        assert await ask(OWNER, asks.DetachedJobs()) == []

    play(scene)


def test_only_its_submitter_and_admins_cancel_a_job() -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        for peer, id_ in ((OWNER, "j"), (ADMIN, "k")):
            await ask(OWNER, detach(id=id_))
            with pytest.raises(AuthError, match="may only cancel its own"):
                await ask(OTHER, asks.CancelDetached(id_))
            assert await ask(peer, asks.CancelDetached(id_)) is True
            assert control.consensus.job(id_).ended_by == peer.name
        with pytest.raises(StateError, match="cancelled already"):
            await ask(OWNER, asks.CancelDetached("j"))

    play(scene)


def test_an_id_that_is_none_is_said() -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        for question in (asks.DetachedJobOf("x"), asks.DetachedResults("x")):
            with pytest.raises(NoSuchTaskError, match="knows no detached job 'x'"):
                await ask(OWNER, question)
        assert await ask(OWNER, asks.CancelDetached("x")) is False

    play(scene)


def test_output_is_told_by_the_node_that_drives_in_that_epoch_alone() -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        output = drives.known["j", 2] = Output(2)
        output.wrote(b"said")
        assert await ask(OTHER, asks.DetachedOutput("j", 2, 1)) == asks.OutputSoFar(True, 1, b"aid")
        assert await ask(OTHER, asks.DetachedOutput("j", 1, 0)) == asks.OutputSoFar(False)

    play(scene)


def test_why_tasks_wait_is_told_by_the_node_that_drives_in_that_epoch_alone() -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        told = drives.standings["j", 2] = Standing(Needs(cpus=4), ("needs 4 slots",))
        assert await ask(OTHER, StandingAsked("j", 2)) == told
        with pytest.raises(StateError, match="No driver of job 'j' tells here"):
            await ask(OTHER, StandingAsked("j", 1))

    play(scene)


def test_a_record_of_a_later_version_is_listed_all_the_same() -> None:
    async def scene(control: Control, drives: Drives, ask: Ask) -> None:
        await ask(OWNER, detach())
        control.consensus.job().spec = b"\xff"
        (told,) = await ask(OWNER, asks.DetachedJobs())
        assert (told.id, told.total) == ("j", 0)

    play(scene)
