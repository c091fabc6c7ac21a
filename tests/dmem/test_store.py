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
from kos_cluster.errors import ArenaFullError, StateError
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
