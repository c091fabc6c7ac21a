"""Copies of what detached jobs need: spread, fetched, and mended when a holder is gone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from kos_cluster.core.records import MemberState
from kos_cluster.core.replicated.commands import MovePart
from kos_cluster.errors import UnreachableError
from kos_cluster.node import copying as module
from kos_cluster.node.copying import Copying
from kos_cluster.node.keeping import Kept
from tests.node import agreed
from tests.node.agreed import Agreement, View

DATA = b"the work of a job"
HASH = hashlib.sha256(DATA).hexdigest()


class Stage:
    """Node `a` among four. `down` do not answer on their bulk port; `took` is who was given a copy."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.kept = Kept(folder / "kept")
        self.agreement, self.view = Agreement(), View("a", "b", "c", "d")
        for number, name in enumerate(self.view.known):
            self.view.now(name, port=number)
        self.down: set[str] = set()
        self.took: list[str] = []
        self.asked: list[str] = []
        self.copying = Copying("a", lambda: None, self.agreement, self.view, self.kept)  # type: ignore[arg-type, return-value]
        patch.setattr(module, "put_part", self.put_part)
        patch.setattr(module, "get_kept", self.get_kept)
        patch.setattr(agreed, "BUNDLE", HASH)
        patch.setattr(module, "PAUSE_S", 0.01)

    def keep(self) -> None:
        path = self.kept.incoming(len(DATA))
        path.write_bytes(DATA)
        self.kept.add(HASH, path)

    def name_at(self, port: int) -> str:
        return list(self.view.known)[port]

    def put_part(self, host: str, port: int, credentials: Any, hash_: str, data: bytes, *, keep: bool) -> bool:
        assert (keep, hash_, data) == (True, HASH, DATA)
        if self.name_at(port) in self.down:
            raise UnreachableError("It does not answer.")
        self.took.append(self.name_at(port))
        return True

    def get_kept(self, host: str, port: int, credentials: Any, hash_: str, file: BinaryIO) -> None:
        self.asked.append(self.name_at(port))
        if self.name_at(port) in self.down:
            raise UnreachableError("It does not answer.")
        file.write(DATA)


Play = Callable[[Callable[[Stage], Awaitable[None]]], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    def run(scene: Callable[[Stage], Awaitable[None]]) -> None:
        async def whole() -> None:
            await scene(Stage(tmp_path, monkeypatch))

        asyncio.run(whole())

    return run


def test_a_second_node_gets_a_copy_and_a_deaf_one_is_passed_over(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.keep()
        first = await stage.copying.spread(HASH)
        assert first == ("a", stage.took[0])
        stage.down = {first[1]}
        second = await stage.copying.spread(HASH)
        assert second[0] == "a"
        assert second[1] not in ("a", first[1])

    play(scene)


def test_with_nobody_to_take_it_there_is_one_copy(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.keep()
        stage.view.dead("b")
        stage.view.now("c", drained=True)
        stage.down = {"d"}
        assert await stage.copying.spread(HASH) == ("a",)
        assert stage.took == []

    play(scene)


def test_what_is_here_is_not_fetched(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.keep()
        await stage.agreement.submit(holders=("b", "c"))
        assert await stage.copying.fetch("j", HASH)
        assert stage.asked == []

    play(scene)


def test_it_is_fetched_from_whichever_holder_answers(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.down = {"b"}
        await stage.agreement.submit(holders=("b", "c"))
        assert await stage.copying.fetch("j", HASH)
        assert stage.asked == ["b", "c"]
        assert stage.kept.intact(HASH)
        assert sorted(path.name for path in stage.kept.path("").iterdir()) == [HASH]

    play(scene)


def test_a_damaged_copy_is_fetched_anew(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.keep()
        stage.kept.path(HASH).write_bytes(b"rot")
        await stage.agreement.submit(holders=("a", "b"))
        assert await stage.copying.fetch("j", HASH)
        assert stage.kept.path(HASH).read_bytes() == DATA

    play(scene)


def test_it_is_waited_for_until_a_holder_is_back(play: Play) -> None:
    async def scene(stage: Stage) -> None:
        stage.view.dead("b")
        await stage.agreement.submit(holders=("b",))
        asyncio.get_running_loop().call_later(0.05, lambda: stage.view.now("b", state=MemberState.ALIVE))
        assert await stage.copying.fetch("j", HASH)

    play(scene)


def test_it_is_lost_when_holders_have_left_or_stay_away(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(stage: Stage) -> None:
        stage.view.now("b", state=MemberState.LEFT)
        await stage.agreement.submit(holders=("b",))
        assert not await stage.copying.fetch("j", HASH)  # at once
        monkeypatch.setattr(module, "PARTS_WAIT_S", 0.05)
        stage.view.dead("b")
        assert not await stage.copying.fetch("j", HASH)

    play(scene)


@pytest.mark.parametrize(
    ("holders", "dead", "mends"),
    [
        (("a", "b"), "", False),  # all is well
        (("a", "b"), "b", True),
        (("b", "a"), "b", True),
        (("c", "b"), "b", False),  # node c does it
        (("c", "b"), "bc", True),  # this one has a copy all the same
    ],
)
def test_the_first_holder_that_is_alive_mends(
    play: Play, monkeypatch: pytest.MonkeyPatch, holders: tuple[str, ...], dead: str, mends: bool
) -> None:
    async def scene(stage: Stage) -> None:
        stage.keep()
        await stage.agreement.submit(holders=holders)
        for name in dead:
            stage.view.dead(name)
        await stage.copying.mend()
        assert stage.agreement.of(MovePart) == []  # it may be back soon
        monkeypatch.setattr(module, "MEND_AFTER_S", 0.0)
        await stage.copying.mend()
        assert bool(stage.agreement.of(MovePart)) is mends
        if mends:
            assert stage.agreement.job().parts[HASH] == ("a", stage.took[0])
            await stage.copying.mend()
            assert len(stage.agreement.of(MovePart)) == 1

    play(scene)


def test_a_holder_that_is_alone_keeps_its_dead_fellow_on_the_record(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(stage: Stage) -> None:
        monkeypatch.setattr(module, "MEND_AFTER_S", 0.0)
        stage.keep()
        await stage.agreement.submit(holders=("a", "b"))
        for name in "bcd":
            stage.view.dead(name)
        await stage.copying.mend()
        assert stage.agreement.job().parts[HASH] == ("a", "b")

    play(scene)
