"""Blocks between nodes over real TLS: once a node, down a tree, around those that are lost, and never in half."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.roles import Role
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import ArenaFullError, BlockLostError
from kos_cluster.net import tls, transfers
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.identity import Peer
from kos_cluster.net.transfers import Lending
from kos_cluster.node import fetching as fetching_module
from kos_cluster.node import lending as lending_module
from kos_cluster.node import machine
from kos_cluster.node.fetching import Fetching
from kos_cluster.node.lending import Lendings
from tests.net.conftest import _free_pair

HOST = "127.0.0.1"
MIB = 1 << 20
WAIT_S = 60.0
OWNER = ("alice", "1")


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        await asyncio.sleep(0.005)


class Members:
    """What every node knows of the others."""

    def __init__(self) -> None:
        self.known: dict[str, Member] = {}

    def member(self, id_: str) -> Member | None:
        return self.known.get(id_)

    def alive(self) -> list[str]:
        return [id_ for id_, member in self.known.items() if member.state is MemberState.ALIVE]


class Door:
    """What a node does with who comes to its bulk port: it lends blocks. `gate` holds all but the first chunk back."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.lendings: Lendings
        self.gate = threading.Event()
        self.gate.set()
        self.given: list[str] = []  # to whom a block was given
        self.breaks = False  # in the middle of what it sends

    def presented(self, peer: Peer) -> None: ...

    def lend(self, peer: Peer, block: str, insist: bool) -> Lending | list[str]:
        found = asyncio.run_coroutine_threadsafe(self.lendings.lend(peer, block, insist), self.loop).result(WAIT_S)
        if not isinstance(found, list):
            self.given.append(peer.id)
            found._source = self._gated(found._source)
        return found

    def _gated(self, chunks: Iterator[memoryview]) -> Iterator[memoryview]:
        for number, chunk in enumerate(chunks):
            if number and not self.gate.wait(WAIT_S):
                raise ConnectionError("nobody has opened the gate")
            if number and self.breaks:
                raise ConnectionError("it breaks")
            yield chunk


class Node:
    """One node's arena, on a bulk port of its own."""

    def __init__(self, number: int, authority: CertificateAuthority, folder: Path, members: Members, limit: int):
        self.id = f"n{number}"
        port = _free_pair()
        credentials = self.credentials = authority.local(self.id, self.id, Role.NODE)
        (folder / self.id).mkdir()
        self.store = BlockStore(self.id, folder / self.id / "arena", limit * MIB, 0, 100)
        self.knows = True
        self.fetching = Fetching(
            self.id, self.store, members, lambda: credentials, lambda owner: self.knows, members.arena
        )
        self.door = Door()
        self.door.lendings = Lendings(self.store, self.fetching)
        self.bulk = BulkServer(HOST, port + 1, credentials, self.door)
        self.bulk.start()
        members.known[self.id] = Member(self.id, self.id, HOST, port, 1, machine.versions(), 1)

    async def put(self, size: int) -> tuple[str, bytes]:
        """A block that is kept here."""
        block, content, holder = secrets.token_hex(16), os.urandom(size), self.store.new_holder()
        segment = await self.store.create(block, size, holder)
        os.pwrite(segment.fd, content, 0)
        self.store.seal(block, holder)
        self.store.keep(block, OWNER)
        self.store.release(block, holder)
        return block, content

    async def get(self, block: str, home: str) -> bytes:
        holder = self.store.new_holder()
        segment = await self.fetching.obtain(block, home, holder)
        try:
            with segment.map() as mapping:
                return mapping[:]
        finally:
            self.store.release(block, holder)


class Cluster:
    def __init__(self, authority: CertificateAuthority, folder: Path) -> None:
        self.members = Members()
        self.nodes: list[Node] = []
        self._authority, self._folder = authority, folder

    def grow(self, count: int, limit: int = 64) -> list[Node]:
        for _ in range(count):
            self.nodes.append(Node(len(self.nodes), self._authority, self._folder, self.members, limit))
        return self.nodes

    def dies(self, node: Node) -> None:
        member = self.members.known[node.id]
        self.members.known[node.id] = Member(
            member.id, member.name, member.host, member.port, 1, member.versions, 1, MemberState.DEAD
        )


@asynccontextmanager
async def cluster(authority: CertificateAuthority, folder: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(authority, folder)
    try:
        yield cluster
    finally:
        for node in cluster.nodes:
            node.door.gate.set()
            node.fetching.close()
            node.bulk.close()
        await asyncio.sleep(0)
        for node in cluster.nodes:
            node.store.close()


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("lab")


@pytest.fixture
def run(authority: CertificateAuthority, tmp_path: Path) -> Callable[[Callable[[Cluster], Awaitable[None]]], None]:
    def run(story: Callable[[Cluster], Awaitable[None]]) -> None:
        async def main() -> None:
            async with cluster(authority, tmp_path) as nodes, asyncio.timeout(WAIT_S):
                await story(nodes)

        asyncio.run(main())

    return run


def test_many_who_ask_on_one_node_cause_one_transfer_and_it_is_kept_for_its_owner(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        block, content = await first.put(3 * MIB + 5)
        assert await asyncio.gather(*(second.get(block, first.id) for _ in range(5))) == [content] * 5
        assert first.door.given == [second.id]
        assert second.store.keepers(block) == [OWNER]
        await until(lambda: first.store.usage().held_bytes == 0, "the lender has released it")
        second.store.drop([block], OWNER)
        assert second.store.usage().used_bytes == 0

    run(story)


def test_what_belongs_to_nobody_here_goes_with_its_last_reader(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        block, content = await first.put(MIB)
        second.knows = False
        assert await second.get(block, first.id) == content
        await until(lambda: second.store.usage().blocks == 0, "it is gone")

    run(story)


def test_a_block_that_is_dropped_while_it_comes_is_not_kept(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        block, content = await first.put(3 * MIB)
        first.door.gate.clear()
        getting = asyncio.create_task(second.get(block, first.id))
        await until(lambda: first.door.given, "it comes")
        second.fetching.dropped(OWNER, [block])
        first.door.gate.set()
        assert await getting == content
        await until(lambda: second.store.usage().blocks == 0, "it is gone")

    run(story)


def test_many_readers_form_a_tree_that_sends_on_what_still_comes(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, *others = nodes.grow(7)
        block, content = await first.put(4 * MIB)
        first.door.gate.clear()  # nobody has more than a chunk while all come
        getting = [asyncio.create_task(node.get(block, first.id)) for node in others]
        given = lambda: sum(len(node.door.given) for node in nodes.nodes)  # noqa: E731
        await until(lambda: given() == 6, "each is given it by somebody")
        assert len(first.door.given) == lending_module.FANOUT
        assert not any(task.done() for task in getting)
        first.door.gate.set()
        assert await asyncio.gather(*getting) == [content] * 6

    run(story)


def test_when_its_home_is_gone_another_that_has_it_gives_it(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second, third = nodes.grow(3)
        block, content = await first.put(MIB)
        await second.get(block, first.id)
        nodes.dies(first)
        first.bulk.close()
        assert await third.get(block, first.id) == content
        assert second.door.given == [third.id]

    run(story)


def test_a_transfer_that_breaks_off_is_made_elsewhere_or_leaves_nothing(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second, third = nodes.grow(3)
        block, content = await first.put(4 * MIB)
        first.door.breaks = True
        with pytest.raises(BlockLostError, match=r"could not be got from any node: .*n2 has no block"):
            await second.get(block, first.id)
        assert second.store.usage().used_bytes == 0 and second.fetching.under_way(block) is None
        first.door.breaks = False
        await third.get(block, first.id)
        first.door.breaks = True
        assert await second.get(block, first.id) == content, "the third has it"

    run(story)


def test_who_follows_a_transfer_that_breaks_off_goes_elsewhere(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending_module, "FANOUT", 1)

    async def story(nodes: Cluster) -> None:
        first, second, third = nodes.grow(3)
        block, content = await first.put(4 * MIB)
        first.door.gate.clear()
        first.door.breaks = True
        one = asyncio.create_task(second.get(block, first.id))
        await until(lambda: first.door.given, "the second gets it")
        other = asyncio.create_task(third.get(block, first.id))
        await until(lambda: second.door.given, "the third follows the second")
        first.door.breaks = False
        first.bulk.cut(second.credentials.peer.serial)
        first.door.gate.set()
        assert await asyncio.gather(one, other) == [content] * 2

    run(story)


def test_a_node_without_room_says_so_with_the_sum_and_asks_no_other(run) -> None:
    async def story(nodes: Cluster) -> None:
        nodes.grow(1)
        first, second, _ = nodes.grow(2, limit=2)
        block, _ = await first.put(3 * MIB)
        with pytest.raises(ArenaFullError, match=r"The arena of node n1 has no room: 3.0 MiB are wanted and 2.0 MiB"):
            await second.get(block, first.id)
        assert second.store.usage().used_bytes == 0
        await until(lambda: first.store.usage().held_bytes == 0, "the lender has released it")

    run(story)


def test_who_asks_waits_as_long_as_the_lender_may_take_to_read_it_back(run, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def receive(stream: ssl.SSLSocket, timeout_s: float = tls.EXCHANGE_TIMEOUT_S) -> bytes:
        waits.append(timeout_s)
        return received(stream, timeout_s)

    received = tls.receive_message
    monkeypatch.setattr(tls, "receive_message", receive)

    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        block, content = await first.put(1)
        assert await second.get(block, first.id) == content
        assert max(waits) > transfers.LEND_TIMEOUT_S

    run(story)


def test_a_block_that_nobody_has_is_told_as_such(run) -> None:
    async def story(nodes: Cluster) -> None:
        _, second, _ = nodes.grow(3)
        with pytest.raises(BlockLostError, match=r"could not be got from any node: .*n0 has no block .*; .*n2 has no"):
            await second.get(secrets.token_hex(16), "n0")
        with pytest.raises(BlockLostError, match="Node nowhere is not alive"):
            await second.get(secrets.token_hex(16), "nowhere")

    run(story)


def test_the_takers_that_are_remembered_are_bounded(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending_module, "TAKEN_LIMIT", 2)
    monkeypatch.setattr(fetching_module, "DROPPED_LIMIT", 2)

    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        for _ in range(4):
            block, _ = await first.put(1)
            await second.get(block, first.id)
        assert len(first.door.lendings._takers) == 2

    run(story)
