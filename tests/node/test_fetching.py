"""Blocks between nodes, over real TLS or shared: once a node, down a tree, around the lost, never in half."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from kos_cluster.core.linkrates import SHARED_BYTES_S
from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.roles import Role
from kos_cluster.dmem import protocol, sharing
from kos_cluster.dmem.segments import Segment
from kos_cluster.dmem.serving import Serving
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import ArenaFullError, BlockLostError
from kos_cluster.net import tls, transfers, unixsockets
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

    def __init__(self, folder: Path) -> None:
        self.known: dict[str, Member] = {}
        self._folder = folder

    def arena(self, name: str) -> Path:
        return self._folder / name / "arena"

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
        self.store = BlockStore(self.id, members.arena(self.id), limit * MIB, 0, 100)
        self.serving: Serving | None = None
        self.knows = True
        self.fetching = Fetching(
            self.id, self.store, members, lambda: credentials, lambda owner: self.knows, members.arena
        )
        self.door = Door()
        self.door.lendings = Lendings(self.store, self.fetching)
        self.bulk = BulkServer(HOST, port + 1, credentials, self.door)
        self.bulk.start()
        members.known[self.id] = Member(self.id, self.id, HOST, port, 1, machine.versions(), 1)

    def beside(self) -> None:
        """Others are on this node's machine."""
        self.serving = Serving(self.id, self.store, self.fetching.obtain)

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
        self.members = Members(folder)
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
            if node.serving is not None:
                node.serving.close()
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


# ---- on one machine


async def content(node: Node, block: str) -> tuple[int, bytes]:
    """Which memory it is in on a node, and what that holds; it must be there."""
    holder = node.store.new_holder()
    segment = await node.store.hold(block, holder)
    with segment.map() as mapping:
        found = os.fstat(segment.fd).st_ino, mapping[:]
    node.store.release(block, holder)
    return found


def test_a_node_of_the_same_machine_shares_it_and_it_is_kept_for_its_owner_and_counts_at_both(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        first.beside()
        block, written = await first.put(3 * MIB + 5)
        assert await asyncio.gather(*(second.get(block, first.id) for _ in range(5))) == [written] * 5
        assert first.door.given == [], "nothing was sent"
        assert await content(first, block) == await content(second, block), "it is the same memory"
        assert second.store.keepers(block) == [OWNER]
        await until(lambda: first.store.usage().held_bytes == 0, "the first has been told that it is done")
        assert first.store.usage().used_bytes == second.store.usage().used_bytes > 3 * MIB
        assert second.fetching.rates.told() == {first.id: SHARED_BYTES_S}
        first.store.drop([block], OWNER)
        assert await content(second, block)
        second.store.drop([block], OWNER)
        assert [node.store.usage().blocks for node in nodes.nodes] == [0, 0]

    run(story)


def test_what_is_shared_and_belongs_to_nobody_here_goes_with_its_last_reader(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        first.beside()
        block, written = await first.put(MIB)
        second.knows = False
        assert await second.get(block, first.id) == written
        await until(lambda: second.store.usage().blocks == 0, "it is gone")
        assert first.door.given == []

    run(story)


def test_what_a_node_of_this_machine_shares_with_one_that_has_no_room_is_refused_as_it_is_over_the_network(run) -> None:
    async def story(nodes: Cluster) -> None:
        nodes.grow(1)[0].beside()
        first, second = nodes.grow(1, limit=2)
        block, _ = await first.put(3 * MIB)
        with pytest.raises(ArenaFullError, match=r"The arena of node n1 has no room: 3.0 MiB are wanted and 2.0 MiB"):
            await second.get(block, first.id)
        assert second.store.usage().blocks == 0 and first.door.given == []
        await until(lambda: first.store.usage().held_bytes == 0, "the first holds it no longer")

    run(story)


def test_a_block_that_still_comes_is_not_shared_but_sent_on(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second, third = nodes.grow(3)
        second.beside()
        block, written = await first.put(4 * MIB)
        first.door.gate.clear()
        one = asyncio.create_task(second.get(block, first.id))
        await until(lambda: first.door.given, "the second gets it")
        other = asyncio.create_task(third.get(block, second.id))
        await until(lambda: second.door.given == [third.id], "and sends it on")
        first.door.gate.set()
        assert await asyncio.gather(one, other) == [written] * 2

    run(story)


def test_who_asks_for_a_block_while_it_is_being_shared_is_given_it_though_nobody_else_needs_it(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two are on one machine; the third is elsewhere, and comes while the first shares it with the second."""
    given, go = threading.Event(), threading.Event()
    shared = sharing.shared

    @contextmanager
    def slow(folder: Path, block: str) -> Iterator[tuple[Segment, list[tuple[str, str]]]]:
        with shared(folder, block) as found:
            given.set()
            assert go.wait(WAIT_S)
            yield found

    monkeypatch.setattr(sharing, "shared", slow)

    async def story(nodes: Cluster) -> None:
        first, second, third = nodes.grow(3)
        first.beside()
        second.knows = third.knows = False
        block, written = await first.put(MIB)
        one = asyncio.create_task(second.get(block, first.id))
        await until(given.is_set, "the second is given it")
        first.store.drop([block], OWNER)
        other = asyncio.create_task(third.get(block, second.id))
        await until(lambda: second.fetching.under_way(block).waiting == 3, "the third waits for it there")
        go.set()
        assert await asyncio.gather(one, other) == [written] * 2
        assert second.door.given == [third.id]
        await until(lambda: all(node.store.usage().blocks == 0 for node in nodes.nodes), "it is gone everywhere")

    run(story)


@pytest.mark.parametrize("it", ["says nothing", "breaks off", "gives what is not sealed"])
def test_a_node_of_this_machine_that_cannot_share_is_asked_to_send_it(
    run, monkeypatch: pytest.MonkeyPatch, it: str
) -> None:
    monkeypatch.setattr(sharing, "ANSWER_TIMEOUT_S", 0.1)
    ended = threading.Event()

    def answer(listening: socket.socket, block: str, size: int) -> None:
        stream, _ = listening.accept()
        with stream:
            stream.settimeout(WAIT_S)
            stream.recv(protocol.PACKET_LIMIT_BYTES)
            if it == "says nothing":
                ended.wait(WAIT_S)
            elif it == "gives what is not sealed":
                loose = Segment.allocate(size)
                packet = transfers.msgspec.msgpack.encode(protocol.Shared(0, size, [OWNER]))
                socket.send_fds(stream, [packet], [loose.fd])
                loose.close()

    async def story(nodes: Cluster) -> None:
        first, second = nodes.grow(2)
        block, written = await first.put(2 * MIB)
        listening = unixsockets.listen(nodes.members.arena(first.id) / protocol.SOCKET, kind=socket.SOCK_SEQPACKET)
        listening.settimeout(WAIT_S)
        answering = asyncio.create_task(asyncio.to_thread(answer, listening, block, 2 * MIB))
        assert await second.get(block, first.id) == written
        assert first.door.given == [second.id] and second.store.keepers(block) == [OWNER]
        ended.set()
        await answering
        listening.close()

    run(story)


def test_a_node_of_this_machine_does_not_get_for_another_what_it_has_not(run) -> None:
    async def story(nodes: Cluster) -> None:
        first, second, third = nodes.grow(3)
        first.beside()
        block, written = await third.put(MIB)
        assert await second.get(block, first.id) == written
        assert third.door.given == [second.id] and first.store.usage().blocks == 0

    run(story)
