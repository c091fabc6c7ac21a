"""A node's drives, with drivers that say what a test wants: epochs, commits, ends, and what is passed on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from kos_cluster.core.driving import EPOCHS_LIMIT, Kind
from kos_cluster.core.records import Needs, indices_of
from kos_cluster.core.replicated.commands import AssignDriver, CancelJob, CommitResults, FinishJob, TaskResult
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import LimitError
from kos_cluster.net import channel, driven
from kos_cluster.net.standing import Standing
from kos_cluster.node import drives
from kos_cluster.node import driving as module
from kos_cluster.node.assigning import Assigning
from kos_cluster.node.driving import Driving, Place
from kos_cluster.node.keeping import Kept
from kos_cluster.node.store import Store
from tests.node.agreed import BUNDLE, Agreement, View

Said = tuple[driven.FromDriver, bytes]
WITHIN_S = 10.0
STANDING = Standing(Needs(), ("its cap of 1 at once is reached",))


class Copies:
    """Stands for `Copying`: the work is here, unless it is lost."""

    def __init__(self) -> None:
        self.lost = False

    def named(self) -> dict[str, object]:
        return {}

    def names(self, ids: tuple[str, ...]) -> list[str]:
        return [f"node-{id_}" for id_ in ids]

    async def fetch(self, id_: str, hash_: str) -> bool:
        return not self.lost

    async def spread(self, hash_: str) -> tuple[str, ...]:
        return ("a", "b")


class Stage:
    """Node `a`, which drives. `script` has what each driver process says, one after the other; None: it says no more
    and goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agreement, self.view, self.copies = Agreement(), View("a", "b"), Copies()
        self.kept = Kept(folder / "kept")
        self.script: list[list[Said | None]] = []
        self.orders: list[driven.Drive] = []
        self.ended = 0
        self.driving = self.make()

    def make(self) -> Driving:
        """The node's drives, as after a start of its daemon."""
        assigning = Assigning(self.agreement, self.view)  # type: ignore[arg-type]
        place = Place("a", "lab", self.folder / "spool")
        store = Store(self.folder / "state.sqlite")
        return Driving(place, self.agreement, self.kept, self.copies, assigning, store)  # type: ignore[arg-type]

    async def assign(self, epoch: int = 0) -> None:
        await self.agreement.propose(AssignDriver("j", "a", epoch))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WITHIN_S):
            running = asyncio.ensure_future(self.driving.run())
            try:
                while not condition():
                    assert not running.done(), running.exception()
                    await asyncio.sleep(0.005)
            finally:
                running.cancel()


class FakeDriver:
    def __init__(self, stage: Stage, said: list[Said | None]) -> None:
        self._stage = stage
        self._said = said

    async def messages(self) -> AsyncIterator[Said]:
        for said in self._said:
            if said is None:
                await asyncio.Event().wait()
            else:
                yield said

    async def standing(self) -> Standing:
        return STANDING

    async def end(self) -> int:
        self._stage.ended += 1
        return 0


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    def run(scene: Callable[[Stage], Awaitable[None]]) -> None:
        async def whole() -> None:
            stage = Stage(tmp_path)

            async def start(order: driven.Drive) -> FakeDriver:
                stage.orders.append(order)
                return FakeDriver(stage, stage.script.pop(0))

            monkeypatch.setattr(module.Driver, "start", start)
            monkeypatch.setattr(module, "PAUSE_S", 0.01)
            await scene(stage)
            await stage.driving.close()

        asyncio.run(whole())

    return run


Play = Callable[[Callable[[Stage], Awaitable[None]]], None]


def settled(*tasks: int, exit_code: int = 0) -> Said:
    payload = msgspec.msgpack.encode(dict.fromkeys(tasks, b"result"))
    return driven.Settled(dict.fromkeys(tasks, exit_code)), payload


def test_results_are_committed_as_they_come_and_the_last_ends_the_job(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[(driven.Wrote(), b"out"), settled(1), settled(0), None]]
        await stage.agreement.submit(count=2)
        await stage.assign()
        await stage.until(lambda: stage.ended)
        job = stage.agreement.job()
        assert (job.state, job.exit_code, job.tail, job.epoch) == (JobState.DONE, 0, b"out", 1)
        assert [c.results for c in stage.agreement.of(CommitResults)] == [
            (TaskResult(1, b"result"),),
            (TaskResult(0, b"result"),),
        ]

    play(scene)


@pytest.mark.parametrize(("kind", "expected"), [(Kind.MAP, 1), (Kind.SCRIPT, 3)])
def test_a_job_that_failed_has_its_exit_code(play: Play, kind: Kind, expected: int) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[settled(0, exit_code=3), None]]
        await stage.agreement.submit(count=1, kind=kind)
        await stage.assign()
        await stage.until(lambda: stage.ended)
        assert (stage.agreement.job().state, stage.agreement.job().exit_code) == (JobState.FAILED, expected)

    play(scene)


def test_a_driver_that_ends_too_early_is_followed_by_another_nodes(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[settled(0)]]
        await stage.agreement.submit(count=2)
        await stage.assign()
        await stage.until(lambda: stage.agreement.job().epoch == 2)
        assert (stage.agreement.job().driver, sorted(stage.agreement.job().results)) == ("b", [0])

    play(scene)


def test_the_next_driver_is_told_what_is_committed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.view.dead("b")  # so that it comes back to this node
        stage.script = [[settled(0, 1)], [settled(2), None]]
        await stage.agreement.submit(count=3)
        await stage.assign()
        await stage.until(lambda: stage.agreement.job().state is JobState.DONE)
        assert [list(indices_of(order.settled)) for order in stage.orders] == [[], [0, 1]]
        assert [order.epoch for order in stage.orders] == [1, 2]
        assert stage.orders[1].inline_bytes == 2 * len(b"result")

    play(scene)


def test_an_epoch_is_not_begun_again_after_a_restart(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[settled(0), None], [None]]
        await stage.agreement.submit(count=2)
        await stage.assign()
        await stage.until(lambda: stage.agreement.job().results)
        await stage.driving.close()
        stage.driving = stage.make()
        stage.view.dead("b")
        await stage.until(lambda: len(stage.orders) == 2)
        assert [order.epoch for order in stage.orders] == [1, 2]

    play(scene)


def test_a_drive_ends_when_the_job_is_cancelled_or_anothers(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[None], [None]]
        await stage.agreement.submit("j")
        await stage.agreement.submit("k")
        for id_ in ("j", "k"):
            await stage.agreement.propose(AssignDriver(id_, "a", 0))
        await stage.until(lambda: len(stage.orders) == 2)
        await stage.agreement.propose(CancelJob("j", "ada"))
        await stage.agreement.propose(AssignDriver("k", "b", 1))
        await stage.until(lambda: stage.ended == 2)
        assert stage.agreement.of(FinishJob) == []
        assert (stage.agreement.job("k").driver, stage.agreement.job("k").epoch) == ("b", 2)

    play(scene)


def test_what_a_fenced_driver_still_says_is_refused(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.agreement.submit(count=2)
        await stage.assign()
        await stage.agreement.propose(AssignDriver("j", "b", 1))
        with pytest.raises(module._Over):
            await stage.driving._insist("j", 1, CommitResults("j", 1, (TaskResult(0, b"late"),)))
        assert stage.agreement.job().results == {}

    play(scene)


def test_what_cannot_be_decided_is_offered_again(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[settled(0), None]]
        await stage.agreement.submit(count=1)
        await stage.assign()
        stage.agreement.undecided = 3
        await stage.until(lambda: stage.agreement.job().state is JobState.DONE)
        assert len(stage.agreement.of(CommitResults)) == 4

    play(scene)


def test_large_results_are_kept_on_two_disks_before_they_are_committed(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        data = msgspec.msgpack.encode({0: b"large", 1: b"larger"})
        path = stage.folder / "results"
        path.write_bytes(data)
        hash_ = hashlib.sha256(data).hexdigest()
        stage.script = [[(driven.Settled({0: 0, 1: 0}, str(path), hash_), b""), None]]
        await stage.agreement.submit(count=2)
        await stage.assign()
        await stage.until(lambda: stage.ended)
        kept = {task: (r.inline, r.sha256, r.holders) for task, r in stage.agreement.job().results.items()}
        assert kept == dict.fromkeys([0, 1], (None, hash_, ("a", "b")))
        assert stage.kept.path(hash_).read_bytes() == data

    play(scene)


def test_a_job_whose_work_is_lost_fails_and_says_who_kept_it(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.copies.lost = True
        await stage.agreement.submit(holders=("b", "c"))
        await stage.assign()
        await stage.until(lambda: stage.agreement.job().state is JobState.FAILED)
        job = stage.agreement.job()
        assert job.tail == b"kos: The work of job j is lost: node-b and node-c, which kept it, are gone.\n"
        assert (job.exit_code, stage.orders) == (4, [])

    play(scene)


def test_a_job_that_cannot_be_run_fails_with_the_sentence(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[(driven.Failed("No node can run it.", 12), b"")]]
        await stage.agreement.submit()
        await stage.assign()
        await stage.until(lambda: stage.ended)
        job = stage.agreement.job()
        assert (job.state, job.exit_code, job.tail) == (JobState.FAILED, 12, b"kos: No node can run it.\n")

    play(scene)


def test_a_job_whose_drivers_end_again_and_again_fails(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.view.dead("b")
        stage.script = [[] for _ in range(EPOCHS_LIMIT)]
        await stage.agreement.submit()
        await stage.assign()
        await stage.until(lambda: stage.agreement.job().state is JobState.FAILED)
        assert stage.agreement.job().tail == b"kos: 16 drivers of job j have ended before it did.\n"

    play(scene)


def test_a_drive_that_could_not_even_be_passed_on_is_begun_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        def fail(*_: object, **__: object) -> None:
            raise LimitError("It cannot be chosen.")

        stage.script = [[(driven.Wrote(), b"kept")]]
        await stage.agreement.submit()
        await stage.assign()
        with monkeypatch.context() as patch:
            patch.setattr(Assigning, "choose", fail)
            await stage.until(lambda: stage.ended)
            await stage.until(lambda: stage.driving._drives["j"].broke_off)
        await stage.until(lambda: stage.agreement.job().epoch == 2)
        output = stage.driving.output("j", 1)
        assert output is not None
        assert output.tail(10) == b"kept"

    play(scene)


def test_a_job_with_all_its_results_needs_no_driver(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        await stage.agreement.submit(count=1)
        await stage.assign()
        await stage.agreement.propose(CommitResults("j", 1, (TaskResult(0, b"x"),)))
        await stage.agreement.propose(AssignDriver("j", "a", 1))
        await stage.until(lambda: stage.agreement.job().state is JobState.DONE)
        assert stage.orders == []

    play(scene)


def test_output_is_told_from_where_it_was_left_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives, "OUTPUT_KEPT_BYTES", 6)
    output = drives.Output(1)
    output.wrote(b"abcd")
    assert output.since(0) == (0, b"abcd")
    assert output.since(3) == (3, b"d")
    output.wrote(b"efgh")
    assert output.since(0) == (2, b"cdefgh")
    assert output.since(99) == (8, b"")
    assert output.tail(3) == b"fgh"


def test_the_work_is_named_as_the_record_names_it(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[None]]
        await stage.agreement.submit(kind=Kind.COMMAND, count=1)
        await stage.assign()
        await stage.until(lambda: stage.orders)
        order = stage.orders[0]
        assert (order.sha256, order.bundle, order.programs) == (BUNDLE, str(stage.kept.path(BUNDLE)), True)

    play(scene)


def test_only_the_driver_of_this_epoch_is_asked_why_its_tasks_wait(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.script = [[None]]
        await stage.agreement.submit()
        await stage.assign()
        assert await stage.driving.standing("j", 1) is None
        await stage.until(lambda: stage.orders)
        assert await stage.driving.standing("j", 1) == STANDING
        assert await stage.driving.standing("j", 2) is None

    play(scene)


def driver_in_hand() -> tuple[drives.Driver, asyncio.StreamReader, Writer]:
    reader, writer = asyncio.StreamReader(), Writer()
    return drives.Driver(Process(), reader, writer), reader, writer  # type: ignore[arg-type]


class Process:
    """A driver that has ended."""

    def wait(self, timeout_s: float = 0.0) -> int:
        return 0


class Writer:
    """What a driver is told."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.closed = False

    def writelines(self, pieces: list[bytes]) -> None:
        self.told.append(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def said(message: driven.FromDriver) -> bytes:
    return b"".join(map(bytes, channel.encode(msgspec.msgpack.encode(message))))


def test_all_who_ask_a_driver_at_once_share_one_question() -> None:
    async def scene() -> None:
        driver, reader, writer = driver_in_hand()
        asked = [asyncio.ensure_future(driver.standing()) for _ in range(3)]
        await asyncio.sleep(0)
        reader.feed_data(said(driven.Stands(STANDING)) + said(driven.Failed("It ends.", 1)))
        reader.feed_eof()
        assert [message async for message, _ in driver.messages()] == [driven.Failed("It ends.", 1)]
        assert await asyncio.gather(*asked) == [STANDING] * 3
        assert writer.told == [b"".join(map(bytes, channel.encode(msgspec.msgpack.encode(driven.AskStanding()))))]

    asyncio.run(scene())


def test_a_driver_that_is_silent_or_ends_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        driver, _, _ = driver_in_hand()
        asked = asyncio.ensure_future(driver.standing())
        await asyncio.sleep(0)
        await driver.end()
        assert await asked is None
        assert await driver.standing() is None
        monkeypatch.setattr(drives, "STANDING_TIMEOUT_S", 0.01)
        silent, _, writer = driver_in_hand()
        assert [await silent.standing() for _ in range(2)] == [None, None]
        assert len(writer.told) == 1

    asyncio.run(scene())
