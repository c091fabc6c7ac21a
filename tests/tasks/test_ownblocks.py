"""What nodes are told to drop, however their links come and go."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from kos_cluster.core.records import Member, MemberState
from kos_cluster.errors import UnreachableError
from kos_cluster.net.blocks import DropBlocks
from kos_cluster.node import machine
from kos_cluster.tasks import ownblocks
from kos_cluster.tasks.futures import StayedOutcome
from kos_cluster.tasks.ownblocks import OwnBlocks

WAIT_S = 60.0


class Nodes:
    """What `OwnBlocks` uses of a mesh: nodes "a" and "b", whose links come and go."""

    def __init__(self) -> None:
        self.instance, self.pid, self.closed = "1", os.getpid(), False
        self.known = {id_: Member(id_, id_, "127.0.0.1", 1, 1, machine.versions(), 1, started_ns=1) for id_ in "ab"}
        self.up: set[str] = set()
        self.silent: set[str] = set()  # nodes whose links break when they are asked
        self.told: dict[str, list[str]] = {"a": [], "b": []}
        self.blocks = OwnBlocks(self)  # type: ignore[arg-type]  # it is what is used of one
        for id_ in "ab":
            self.comes(id_)

    def linked(self) -> set[str]:
        return self.up

    def member(self, id_: str) -> Member | None:
        return self.known.get(id_)

    def wake(self, call: Callable[[], None]) -> None:
        call()

    async def ask_node(self, question: DropBlocks, node: str) -> None:
        if node in self.silent:
            raise UnreachableError("The link broke.")
        self.told[node] += question.blocks

    def comes(self, id_: str, **changes: Any) -> None:
        self.known[id_] = msgspec.structs.replace(self.known[id_], **changes)
        self.up.add(id_)
        self.blocks.node_up(self.known[id_])

    def drop(self, *names: str) -> None:
        """Have blocks that any node may have, and need them no more."""
        self.blocks.adopt("a", names, [])

    async def hears(self, id_: str, *names: str) -> None:
        """The node is told to drop just these, since the last time."""
        async with asyncio.timeout(WAIT_S):
            while len(self.told[id_]) < len(names) or self.blocks._telling:
                await asyncio.sleep(0.001)
        assert self.told[id_] == list(names)
        self.told[id_].clear()


def play(scene: Callable[[Nodes], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scene(Nodes())

    asyncio.run(main())


def test_a_node_out_of_reach_hears_what_it_is_to_drop_when_it_is_back() -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.up.remove("b")
        nodes.drop("x")
        await nodes.hears("a", "x")
        nodes.blocks.tell()
        nodes.comes("b")
        await nodes.hears("b", "x")
        nodes.drop("y")
        await nodes.hears("b", "y")

    play(scene)


def test_a_link_that_breaks_in_the_middle_loses_nothing() -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.silent.add("b")
        nodes.drop("x")
        await nodes.hears("a", "x")
        nodes.up.remove("b")
        nodes.blocks.tell()
        nodes.silent.clear()
        nodes.comes("b")
        await nodes.hears("b", "x")

    play(scene)


def test_a_daemon_that_was_started_anew_has_nothing_to_drop_of_what_was_before() -> None:
    async def scene(nodes: Nodes) -> None:
        nodes.up.remove("b")
        nodes.drop("x")
        await nodes.hears("a", "x")
        nodes.comes("b", started_ns=2)
        nodes.drop("y")
        await nodes.hears("b", "y")

    play(scene)


def test_what_is_remembered_for_a_node_out_of_reach_is_bounded_and_ends_when_it_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ownblocks, "OWED_LIMIT", 2)

    async def scene(nodes: Nodes) -> None:
        nodes.up.remove("b")
        for number, name in enumerate("xyz"):
            nodes.drop(name)
            await nodes.hears("a", name)
            assert len(nodes.blocks._owed["b"]) == min(number + 1, 2)
        nodes.comes("b")
        await nodes.hears("b", "y", "z")
        nodes.up.remove("b")
        nodes.known["b"] = msgspec.structs.replace(nodes.known["b"], state=MemberState.LEFT)
        nodes.drop("w")
        await nodes.hears("a", "w")
        assert not nodes.blocks._owed

    play(scene)


def test_what_is_left_of_a_block_that_is_made_again_is_dropped_and_what_was_made_is_not() -> None:
    async def scene(nodes: Nodes) -> None:
        block = "0" * 32
        outcome = StayedOutcome(f"kos-block:{block}".encode(), False, 1, "a")
        nodes.up.remove("b")
        nodes.blocks.drop_elsewhere(block)
        nodes.blocks.adopt("a", [block], [outcome])
        nodes.comes("b")
        await nodes.hears("b", block)
        nodes.blocks.adopt("b", [block], [])  # an attempt that was given up has made it as well
        nodes.blocks.adopt("a", [block], [])  # what was taken is said once more
        nodes.blocks.tell()
        await nodes.hears("b", block)
        assert not nodes.told["a"], "it is still wanted there"
        del outcome
        await nodes.hears("a", block)

    play(scene)


def test_a_block_that_was_to_be_dropped_is_kept_when_it_is_made_again() -> None:
    async def scene(nodes: Nodes) -> None:
        block = "0" * 32
        nodes.up.remove("b")
        nodes.drop(block)
        await nodes.hears("a", block)
        outcome = StayedOutcome(f"kos-block:{block}".encode(), False, 1, "b")
        nodes.blocks.adopt("b", [block], [outcome])
        nodes.comes("b")
        nodes.drop("y")
        await nodes.hears("b", "y")
        del outcome

    play(scene)
