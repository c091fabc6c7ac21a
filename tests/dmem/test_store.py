"""The store when the disk, the memory or the end of the node comes in between: whoever waits is answered."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kos_cluster.dmem import store as store_module
from kos_cluster.dmem.segments import Segment, write_all
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import ArenaFullError, StateError, UsageError
from tests.dmem.conftest import MIB, OWNER, WAIT_S

LIMIT_MIB = 2


@asynccontextmanager
async def a_store(folder: Path) -> AsyncIterator[BlockStore]:
    """Two MiB in memory, eight on the disk. Who is not answered fails the test."""
    store = BlockStore("n1", folder / "arena", LIMIT_MIB * MIB, 8 * MIB, 100)
    try:
        async with asyncio.timeout(WAIT_S):
            yield store
    finally:
        store.close()


async def put(store: BlockStore, content: bytes) -> str:
    """A block that is kept, and that nobody holds."""
    block, writer = secrets.token_hex(16), store.new_holder()
    segment = await store.create(block, len(content), writer)
    write_all(segment.fd, [content])
    store.seal(block, writer)
    store.keep(block, OWNER)
    store.passed_on(block)
    return block


async def read(store: BlockStore, block: str) -> bytes:
    holder = store.new_holder()
    with (await store.hold(block, holder)).map() as mapping:
        content = mapping[:]
    store.release(block, holder)
    return content


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_refuses_a_spill_refuses_who_waits_and_spoils_nothing(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with a_store(short_folder) as store:
            first, second = await put(store, b"1" * MIB), await put(store, b"2" * MIB)
            with monkeypatch.context() as full:
                full.setattr("kos_cluster.dmem.spill.os.write", full_disk)
                with pytest.raises(ArenaFullError, match=r"has no room: 1.0 MiB are wanted"):
                    await put(store, bytes(MIB))
            usage = store.usage()
            assert (usage.used_bytes, usage.spilled_bytes, usage.blocks) == (2 * MIB, 0, 2)
            assert await read(store, first) == b"1" * MIB  # it is used, so the disk is tried again
            third = await put(store, b"3" * MIB)
            assert [(await read(store, block))[:1] for block in (first, second, third)] == [b"1", b"2", b"3"]

    asyncio.run(scene())


def test_who_asks_for_a_block_while_the_disk_refuses_it_is_given_it(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with a_store(short_folder) as store:
            blocks = [await put(store, bytes([number]) * MIB) for number in range(LIMIT_MIB)]
            monkeypatch.setattr("kos_cluster.dmem.spill.os.write", full_disk)
            wanted = asyncio.create_task(put(store, bytes(MIB)))
            await asyncio.sleep(0)  # it is in the line, and the oldest is on its way to the disk
            assert await asyncio.gather(*(read(store, block) for block in blocks)) == [
                bytes([number]) * MIB for number in range(LIMIT_MIB)
            ]
            with pytest.raises(ArenaFullError, match="has no room"):
                await wanted

    asyncio.run(scene())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), ValueError("it is broken")], ids=str)
def test_a_block_that_cannot_be_read_back_is_told_to_its_reader_and_tried_again(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> int:
        raise error

    async def scene() -> None:
        async with a_store(short_folder) as store:
            blocks = [await put(store, bytes([number]) * MIB) for number in range(LIMIT_MIB + 1)]
            descriptors = len(os.listdir("/proc/self/fd"))
            with monkeypatch.context() as patch:
                patch.setattr("kos_cluster.dmem.spill.os.preadv", broken)
                with pytest.raises(ArenaFullError, match=r"cannot be read back|it is broken"):
                    await read(store, blocks[0])
            assert await read(store, blocks[0]) == bytes(MIB)
            assert len(os.listdir("/proc/self/fd")) <= descriptors, "its memory was given back"

    asyncio.run(scene())


def test_a_spilled_block_that_was_changed_on_the_disk_is_told_to_its_reader(short_folder: Path) -> None:
    async def scene() -> None:
        async with a_store(short_folder) as store:
            blocks = [await put(store, bytes([number]) * MIB) for number in range(LIMIT_MIB + 1)]
            os.pwrite(store._spill._files[blocks[0]][0], b"changed", 100)
            with pytest.raises(ArenaFullError, match=r"cannot be read back from the disk \(its content has changed\)"):
                await read(store, blocks[0])

    asyncio.run(scene())


def test_whatever_fails_while_a_block_is_allocated_or_spilled_is_logged_and_answered(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Segment:
        raise RuntimeError("nobody has thought of this")

    async def scene() -> None:
        async with a_store(short_folder) as store:
            with monkeypatch.context() as patch:
                patch.setattr(store_module.Segment, "allocate", broken)
                with pytest.raises(ArenaFullError, match="nobody has thought of this"):
                    await put(store, bytes(MIB))
            assert "nobody has thought of this" in caplog.text
            caplog.clear()
            for _ in range(LIMIT_MIB):
                await put(store, bytes(MIB))
            monkeypatch.setattr(store._spill, "write", broken)
            with pytest.raises(ArenaFullError, match="has no room"):
                await put(store, bytes(MIB))
            assert "nobody has thought of this" in caplog.text

    asyncio.run(scene())


def test_what_is_told_to_a_store_that_is_closed_changes_nothing(short_folder: Path) -> None:
    async def scene() -> None:
        async with a_store(short_folder) as store:
            block, holder = await put(store, bytes(MIB)), store.new_holder()
            await store.hold(block, holder)
            store.drop([block], OWNER)
        store.holder_gone(holder)
        store.release(block, holder)
        with pytest.raises(StateError, match="node n1 is closed"):
            await store.hold(block, holder)

    asyncio.run(scene())


def sealed(content: bytes) -> Segment:
    """A segment as another node's arena shares it."""
    segment = Segment.allocate(len(content))
    write_all(segment.fd, [content])
    segment.seal()
    return segment


async def adopt(store: BlockStore, content: bytes) -> str:
    """A block that is kept, that nobody holds, and that was another node's."""
    block, holder = secrets.token_hex(16), store.new_holder()
    await store.adopt(block, sealed(content), holder)
    store.seal(block, holder)
    store.keep(block, OWNER)
    store.holder_gone(holder)
    return block


def descriptors() -> int:
    return len([fd for fd in os.listdir("/proc/self/fd") if is_block(fd)])


def is_block(fd: str) -> bool:
    try:
        return "memfd:kos-block" in os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return False


def test_adopted_blocks_count_and_are_spilled_and_freed_as_those_of_this_node(short_folder: Path) -> None:
    async def scene() -> None:
        before = descriptors()
        async with a_store(short_folder) as store:
            blocks = [await adopt(store, bytes([number]) * MIB) for number in range(4)]
            usage = store.usage()
            assert (usage.used_bytes, usage.spilled_bytes, usage.held_bytes) == (2 * MIB, 2 * MIB, 0)
            assert descriptors() == before + 2, "what lies on the disk is open no more"
            assert [(await read(store, block))[:1] for block in blocks] == [b"\0", b"\1", b"\2", b"\3"]
            store.drop(blocks, OWNER)
            assert store.usage().blocks == 0 and descriptors() == before

    asyncio.run(scene())


def test_what_cannot_be_adopted_is_closed(short_folder: Path) -> None:
    async def scene() -> None:
        before = descriptors()
        async with a_store(short_folder) as store:
            pinned = await adopt(store, bytes(LIMIT_MIB * MIB))
            store.keep(pinned, OWNER, pin=True)
            full = r"The arena of node n1 has no room: 1\.0 MiB are wanted and 0\.0 MiB of 2\.0 MiB are free"
            with pytest.raises(ArenaFullError, match=full):
                await adopt(store, bytes(MIB))
            with pytest.raises(UsageError, match="already"):
                await store.adopt(pinned, sealed(b"x"), store.new_holder())
            assert descriptors() == before + 1
            store.drop([pinned], OWNER)
        with pytest.raises(StateError):
            await store.adopt(secrets.token_hex(16), sealed(b"x"), 1)
        assert descriptors() == before

    asyncio.run(scene())


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_who_adopts_and_goes_away_leaves_nothing(short_folder: Path, turns: int) -> None:
    """While it waits for room, before it has been given the block, and afterwards."""

    async def scene() -> None:
        before = descriptors()
        async with a_store(short_folder) as store:
            if not turns:
                await put(store, bytes(LIMIT_MIB * MIB))  # to be spilled first
                before += 1
            holder = store.new_holder()
            adopting = asyncio.create_task(store.adopt(secrets.token_hex(16), sealed(b"x"), holder))
            await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            store.holder_gone(holder)
            await asyncio.wait([adopting])
            await asyncio.sleep(0)
            assert store.usage().blocks == (not turns)
            while descriptors() > before:  # the thread that spills has the block open once more
                await asyncio.sleep(0.001)

    asyncio.run(scene())


def test_who_adopts_after_another_who_went_away_gets_its_own(short_folder: Path) -> None:
    """In one round of the loop, so that the first has not cleared up yet."""

    async def scene() -> None:
        before = descriptors()
        async with a_store(short_folder) as store:
            await put(store, bytes(LIMIT_MIB * MIB))  # to be spilled first
            block, first, second = secrets.token_hex(16), store.new_holder(), store.new_holder()
            gone = asyncio.create_task(store.adopt(block, sealed(b"first"), first))
            await asyncio.sleep(0)
            store.holder_gone(first)
            await store.adopt(block, sealed(b"second"), second)
            await asyncio.wait([gone])
            store.seal(block, second)
            store.keep(block, OWNER)
            assert await read(store, block) == b"second"
            store.holder_gone(second)
            store.drop([block], OWNER)
        assert descriptors() == before

    asyncio.run(scene())
