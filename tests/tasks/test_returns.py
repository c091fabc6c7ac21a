"""When a node is told that it may forget what has been taken in: rarely, but before much of its room is taken."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kos_cluster.net import wire
from kos_cluster.node.owners import OUTBOX_LIMIT_BYTES
from kos_cluster.tasks import returns
from kos_cluster.tasks.returns import RELEASE_AFTER_S, RELEASES_LIMIT, RELEASES_LIMIT_BYTES, Returns


class _Link:
    """Notes what is sent over it."""

    host, port, peer = "127.0.0.1", 1, SimpleNamespace(id="n1")

    def __init__(self, address: str = "127.0.0.1:1") -> None:
        self.address = address
        self.released: list[list[int]] = []
        self.some_came = asyncio.Event()

    def send(self, message: wire.Message) -> bool:
        assert isinstance(message, wire.Release)
        self.released.append(list(message.serials))
        self.some_came.set()
        return True


def _taking_in() -> Returns:
    credentials: Any = None
    return Returns(credentials, lambda node, message, payloads: None)


def test_releases_of_a_moment_travel_together() -> None:
    async def run() -> None:
        taking_in, link = _taking_in(), _Link()
        for serial in range(10):
            taking_in.release(link, serial, 100)  # type: ignore[arg-type]
        assert link.released == []
        await asyncio.wait_for(link.some_came.wait(), 20 * RELEASE_AFTER_S)
        assert link.released == [list(range(10))]

    asyncio.run(run())


def test_a_node_is_told_before_what_it_keeps_fills_its_room() -> None:
    async def run() -> None:
        taking_in, link, other = _taking_in(), _Link(), _Link("127.0.0.1:2")
        each = RELEASES_LIMIT_BYTES // 4
        for serial in range(9):
            taking_in.release(link, serial, each)  # type: ignore[arg-type]
            taking_in.release(other, serial, 1)  # type: ignore[arg-type]
        assert link.released == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert other.released == []

    asyncio.run(run())
    assert 4 * RELEASES_LIMIT_BYTES <= OUTBOX_LIMIT_BYTES  # so a node goes on taking work meanwhile


def test_many_small_releases_do_not_pile_up() -> None:
    async def run() -> None:
        taking_in, link = _taking_in(), _Link()
        for serial in range(RELEASES_LIMIT + 1):
            taking_in.release(link, serial)  # type: ignore[arg-type]
        assert link.released == [list(range(RELEASES_LIMIT))]

    asyncio.run(run())


def test_an_outcome_counts_with_its_payload_and_one_that_is_fetched_with_its_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(returns, "RELEASE_AFTER_S", 1000.0)
    monkeypatch.setattr(returns, "get_result", lambda *_: bytearray(RELEASES_LIMIT_BYTES))

    async def run() -> None:
        taking_in, link = _taking_in(), _Link()
        inline = memoryview(msgspec.msgpack.encode([bytes(RELEASES_LIMIT_BYTES)]))
        taking_in.result(link, wire.Result(1, 1, [(0, 1)], [], {}, 0.0, True), inline)  # type: ignore[arg-type]
        assert link.released == [[1]]
        link.some_came.clear()
        large = wire.Result(2, 2, [(0, 1)], [], {0: ("file", RELEASES_LIMIT_BYTES)}, 0.0, True)
        taking_in.result(link, large, memoryview(msgspec.msgpack.encode([b""])))  # type: ignore[arg-type]
        await asyncio.wait_for(link.some_came.wait(), 20)
        assert link.released == [[1], [2]]

    asyncio.run(run())
