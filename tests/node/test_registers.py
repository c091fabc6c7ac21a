"""Registers as a node answers for them: any node, and all nodes alike."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kos_cluster.core.roles import Role, may
from kos_cluster.errors import LimitError, UsageError
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.node import registers
from kos_cluster.node.answers import COMMAND_OF
from tests.node.test_consensus import group


def test_what_one_node_writes_each_node_reads(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading, follower = await nodes.leader(), await nodes.follower()
            for number, node in enumerate((leading, follower)):
                assert await registers.write(node, RegisterWritten("x", str(number)))
                for reader in nodes.nodes.values():
                    assert await registers.read(reader, RegistersAsked("x")) == {"x": str(number)}
            assert await registers.read(follower, RegistersAsked("y")) == {"y": None}
            await registers.write(leading, RegisterWritten("y", ""))
            assert await registers.read(follower, RegistersAsked()) == {"x": "1", "y": ""}
            await registers.write(leading, RegisterWritten("x", None))
            assert await registers.read(follower, RegistersAsked()) == {"y": ""}

    asyncio.run(scene())


def test_of_many_who_expect_the_same_one_writes(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            await nodes.leader()
            tries = [
                registers.write(node, RegisterWritten("x", f"{name}-{number}", True, None))
                for name, node in nodes.nodes.items()
                for number in range(4)
            ]
            assert sorted(await asyncio.gather(*tries)) == [False] * 11 + [True]

    asyncio.run(scene())


def test_what_cannot_be_written_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading = await nodes.leader()
            with pytest.raises(UsageError, match="name of a register"):
                await registers.write(leading, RegisterWritten("a b", "1"))
            with pytest.raises(UsageError, match="name of a register"):
                await registers.read(leading, RegistersAsked("a b"))
            with pytest.raises(LimitError):
                await registers.write(leading, RegisterWritten("x", "v" * 5000))
            assert await registers.read(leading, RegistersAsked()) == {}

    asyncio.run(scene())


def test_everybody_may_read_and_who_runs_work_may_write() -> None:
    assert {role for role in Role if may(role, COMMAND_OF[RegisterWritten])} == {Role.CLIENT, Role.ADMIN}
    assert {role for role in Role if may(role, COMMAND_OF[RegistersAsked])} == set(Role)
