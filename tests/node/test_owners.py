"""Owners on a node: who they are, when their work is freed, and what is kept for them until they take it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from kos_cluster.core.records import Cause
from kos_cluster.core.roles import Role
from kos_cluster.net import wire
from kos_cluster.net.identity import Peer
from kos_cluster.net.streams import Item
from kos_cluster.node import machine, owners
from kos_cluster.node.owners import Owners, OwnerState

ADA = Peer("lab", "ada-id", "ada", Role.CLIENT, 1, b"", 0.0)
EVE = Peer("lab", "eve-id", "eve", Role.CLIENT, 2, b"", 0.0)


def hello(instance: str, pid: int = 0) -> wire.Hello:
    return wire.Hello(instance, machine.versions(), pid, machine.boot_id(), machine.pid_namespace())


def scene(play: Callable[[Owners, list[OwnerState]], Awaitable[None]]) -> None:
    async def run() -> None:
        ended: list[OwnerState] = []
        known = Owners(ended.append)
        await play(known, ended)
        known.close()

    asyncio.run(run())


def test_an_owner_is_its_identity_and_instance_whatever_the_route() -> None:
    async def play(known: Owners, ended: list[OwnerState]) -> None:
        state = known.hello(ADA, b"old", hello("one"), 0.0, on_this_machine=True)
        assert known.hello(ADA, b"new", hello("one"), 1.0, on_this_machine=True) is state
        assert known.of_route(b"old", ADA) is None
        assert known.of_route(b"new", ADA) is state
        assert known.of_route(b"new", EVE) is None
        assert known.hello(EVE, b"eve", hello("one"), 1.0, on_this_machine=True) is not state
        assert known.hello(ADA, b"two", hello("two"), 1.0, on_this_machine=True) is not state
        assert len(list(known)) == 3

    scene(play)


@pytest.mark.parametrize(
    "message",
    [
        wire.Result(1, 1, [(0, 2)], [], {0: ("a", 600), 1: ("b", 500)}, 0.1, True),
        Item(1, 1, 0, ("a", 1100)),
    ],
    ids=["a result", "an item"],
)
def test_files_that_an_owner_does_not_take_are_too_many_at_some_time(
    message: wire.Result | Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "SPOOLED_LIMIT_BYTES", 1000)

    async def play(known: Owners, ended: list[OwnerState]) -> None:
        state = known.hello(ADA, b"route", hello("one"), 0.0, on_this_machine=True)
        assert state is not None
        assert not state.full
        state.keep(message, b"", 0.0)
        assert state.full
        assert state.release([1]) == [message]
        assert (state.full, state.spooled_bytes) == (False, 0)

    scene(play)


def test_what_an_owner_says_that_it_is_is_kept_shortened() -> None:
    async def play(known: Owners, ended: list[OwnerState]) -> None:
        told = msgspec.structs.replace(hello("one"), program="x" * 1000)
        state = known.hello(ADA, b"route", told, 0.0, on_this_machine=True)
        assert state is not None
        assert state.program == "x" * owners.PROGRAM_LIMIT_CHARACTERS

    scene(play)


def test_work_is_freed_once_when_its_owner_ends() -> None:
    async def play(known: Owners, ended: list[OwnerState]) -> None:
        state = known.hello(ADA, b"route", hello("one"), 0.0, on_this_machine=True)
        assert state is not None
        known.end(state)
        known.end(state)
        assert ended == [state]
        assert known.of_route(b"route", ADA) is None

    scene(play)


def test_silence_frees_work_only_after_the_lease() -> None:
    async def play(known: Owners, ended: list[OwnerState]) -> None:
        state = known.hello(ADA, b"route", hello("one"), 100.0, on_this_machine=True)
        known.expire(99.0 + owners.OWNER_LEASE_S)
        assert ended == []
        known.expire(100.0 + owners.OWNER_LEASE_S)
        assert ended == [state]

    scene(play)


def test_the_end_of_a_process_on_this_machine_is_seen_at_once() -> None:
    async def play(known: Owners, ended: list[OwnerState]) -> None:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            state = known.hello(ADA, b"route", hello("one", process.pid), 0.0, on_this_machine=True)
            await asyncio.sleep(0)
            assert ended == []
            process.kill()
        async with asyncio.timeout(10):
            while not ended:
                await asyncio.sleep(0.005)
        assert ended == [state]
        # Who is gone already when it is announced is seen to be.
        known.hello(ADA, b"late", hello("late", process.pid), 0.0, on_this_machine=True)
        await asyncio.sleep(0)
        assert len(ended) == 2

    scene(play)


def test_there_is_a_limit_to_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "OWNERS_LIMIT", 1)

    async def play(known: Owners, ended: list[OwnerState]) -> None:
        first = known.hello(ADA, b"1", hello("one"), 0.0, on_this_machine=True)
        assert known.hello(ADA, b"2", hello("two"), 0.0, on_this_machine=True) is None
        assert known.hello(ADA, b"3", hello("one"), 0.0, on_this_machine=True) is first

    scene(play)


def test_what_is_not_released_is_kept_and_comes_again() -> None:
    async def play(known: Owners, ended: list[OwnerState]) -> None:
        state = known.hello(ADA, b"route", hello("one"), 0.0, on_this_machine=True)
        assert state is not None
        result = wire.Result(1, 1, [(0, 1)], [], {}, 0.0, True)
        lost = wire.Lost(2, 2, [], [(0, 1)], Cause.STOPPING, "", "")
        state.keep(result, b"12345", 0.0)
        state.keep(lost, b"", 0.0)
        assert state.outbox_bytes == 5
        assert list(state.overdue(owners.REPEAT_AFTER_S / 2)) == []
        assert [message for message, _ in state.overdue(owners.REPEAT_AFTER_S)] == [result, lost]
        assert list(state.overdue(owners.REPEAT_AFTER_S)) == []
        assert state.release([1, 1, 99]) == [result]
        assert state.outbox_bytes == 0
        assert [message for message, _ in state.overdue(99.0)] == [lost]

    scene(play)
