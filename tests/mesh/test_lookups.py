"""A real daemon looks for a node that is not where its record says; what members tell it of that is true, or a lie."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import zmq

from kos_cluster.core import swim
from kos_cluster.core.buckets import KEY_BITS, Contact, key_of
from kos_cluster.core.kademlia import FindNode, Found
from kos_cluster.core.records import Member
from kos_cluster.core.roles import Role
from kos_cluster.net import joining, wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.controlplane import Finding
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.transport import Origin, Server
from kos_cluster.node import machine
from kos_cluster.services.ports import free_pairs
from tests.mesh.conftest import Mesh
from tests.mesh.speaker import Speaker, authority_of, identity

HOST = "127.0.0.1"
FOUND_S = 20.0


@pytest.fixture
def lone() -> Iterator[Mesh]:
    """One real node; the others are the test's."""
    mesh = Mesh(1)
    yield mesh
    mesh.down()


class Acquaintance(Speaker):
    """A member that tells whoever looks for one node where that is, as it would have it."""

    def __init__(self, credentials: Credentials, port: int, *tells: Contact) -> None:
        super().__init__(credentials, HOST, port)
        self._tells = tells
        self._key = key_of(tells[0].id).to_bytes(KEY_BITS // 8, "big")
        self.was_asked = False

    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        super().link_said(link, message, payload)
        if isinstance(message, Finding) and isinstance(message.message, FindNode):
            asked = message.message.key == self._key
            self.was_asked |= asked
            self.say(Finding(Found(message.message.request, self._tells if asked else ())))

    async def become_known(self, port: int) -> None:
        """Join by a signed record, and ask something, by which one is kept."""
        self.say(self.heartbeat(port=port))
        self.say(Finding(FindNode(1, bytes(KEY_BITS // 8))))
        await self.wait(Finding)


class Lost:
    """A node that listens where no record of it says. It admits whoever presents a certificate."""

    def __init__(self, credentials: Credentials, port: int, member: Member) -> None:
        self.heard: list[tuple[str, wire.Message]] = []
        self._member = member
        self._admitted = Admitted()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._server = Server(self._context, credentials, self._admitted, self._said)
        self._server.bind(HOST, port)
        self._bulk = BulkServer(HOST, port + 1, credentials, self)  # type: ignore[arg-type]  # nothing else is asked
        self._bulk.start()

    def presented(self, peer: Peer) -> None:
        self._admitted.admit(peer)

    def _said(self, origin: Origin, message: wire.Message, payload: memoryview) -> None:
        self.heard.append((origin.peer.id, message))
        if isinstance(message, wire.Hello):
            self._server.send(origin.route, wire.Welcome(self._member, {}))

    def has_heard(self, sender: str, kind: type) -> bool:
        """Whether this kind of message came of that node, about membership or of a look-up."""
        inner = [said.message for id_, said in self.heard if id_ == sender and hasattr(said, "message")]
        return any(isinstance(message, kind) for message in inner)

    def close(self) -> None:
        self._bulk.close()
        self._server.close()
        self._context.destroy()


def test_a_node_that_moved_is_found_through_a_member_whatever_another_says(lone: Mesh) -> None:
    """Its record names an address at which nobody is; a liar names the daemon's own, and that of nobody."""
    authority = authority_of(lone.home)
    (row,) = lone.cluster.nodes()
    port = int(row["address"].rpartition(":")[2])
    before, now, nobody = free_pairs(3, HOST)
    token = JoinToken.parse(lone.cluster.mint_token("node", 600.0))
    joined = joining.join(
        *(HOST, port, token, "local"),
        versions=machine.versions(),
        name="lost",
        user="ada",
        listen_host=HOST,
        listen_port=before,
    )
    assert joined.node is not None
    id_ = joined.node.peer.id
    lies = (Contact(id_, HOST, port), Contact(id_, HOST, nobody))

    async def search() -> None:
        honest = Acquaintance(identity(authority, Role.NODE), port, Contact(id_, HOST, now))
        liar = Acquaintance(identity(authority, Role.NODE), port, *lies)
        async with honest, liar:
            for speaker in (honest, liar):
                await speaker.become_known(nobody)
            async with Speaker(joined.node, HOST, port) as speaker:
                speaker.say(speaker.heartbeat(port=before))
                assert id_ in await speaker.members()
            lost = Lost(joined.node, now, speaker.member)
            try:
                async with asyncio.timeout(FOUND_S):
                    while not (lost.has_heard(row["id"], FindNode) and lost.has_heard(row["id"], swim.Ping)):
                        await asyncio.sleep(0.01)
            finally:
                lost.close()
            assert liar.was_asked

    asyncio.run(search())
