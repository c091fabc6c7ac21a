"""Control links over real sockets: who gets in, what is dropped, what is carried."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import zmq

from kos_cluster.core.roles import Role
from kos_cluster.errors import LimitError, PortTakenError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transport import Link, Origin, Server

WAIT_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which the sockets will bring about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Echo:
    """A server that answers each message with itself, and clients of it."""

    def __init__(self, node: Credentials, port: int) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.node = node
        self.port = port
        self.admitted = Admitted()
        self.origins: list[Origin] = []
        self.server = Server(self.context, node, self.admitted, self._echo)
        self.server.bind("127.0.0.1", port)
        self.raws: list[zmq.Socket[bytes]] = []

    def _echo(self, origin: Origin, message: wire.Message, payload: memoryview) -> None:
        self.origins.append(origin)
        self.server.send(origin.route, message, payload)

    def link(self, credentials: Credentials) -> tuple[Link, list[tuple[wire.Message, bytes]], list[str]]:
        heard: list[tuple[wire.Message, bytes]] = []
        states: list[str] = []
        link = Link(
            self.clients,
            credentials,
            self.node.curve_public,
            "127.0.0.1",
            self.port,
            lambda message, payload: heard.append((message, bytes(payload))),
            states.append,
        )
        return link, heard, states

    def raw(self, credentials: Credentials | None = None) -> zmq.Socket[bytes]:
        """A plain ZeroMQ socket, as an attacker or a broken peer would use it."""
        raw = self.clients.socket(zmq.DEALER)
        raw.linger = 0
        if credentials is not None:
            raw.curve_publickey = credentials.curve_public
            raw.curve_secretkey = credentials.curve_secret
            raw.curve_serverkey = self.node.curve_public
        raw.connect(f"tcp://127.0.0.1:{self.port}")
        self.raws.append(raw)
        return raw


@contextlib.asynccontextmanager
async def echo(node: Credentials, port: int) -> AsyncIterator[Echo]:
    running = Echo(node, port)
    try:
        yield running
    finally:
        running.server.close()
        for raw in running.raws:
            raw.close()
        running.clients.destroy(linger=0)
        running.context.destroy(linger=0)


async def still_serves(running: Echo, link: Link, heard: list[tuple[wire.Message, bytes]]) -> None:
    before = len(heard)
    assert link.send(wire.SyncRequest(view=99), b"alive")
    await until(lambda: len(heard) > before)
    assert heard[-1] == (wire.SyncRequest(view=99), b"alive")


def test_an_admitted_peer_is_heard_as_its_certificate_says(node: Credentials, client: Credentials, port: int) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            running.admitted.admit(client.peer)
            link, heard, states = running.link(client)
            assert not link.send(wire.SyncRequest(view=1))  # not connected yet, and says so
            await until(lambda: states == ["up"])
            payloads = [b"", b"small", bytes(wire.INLINE_BYTES - 1), bytes(wire.INLINE_BYTES), bytes(2 << 20)]
            for payload in payloads:
                assert link.send(wire.SyncRequest(view=1), payload)
            await until(lambda: len(heard) == len(payloads))
            assert heard == [(wire.SyncRequest(view=1), payload) for payload in payloads]
            assert running.origins[0].peer == client.peer
            assert running.server.dropped == 0
            link.close()

    asyncio.run(scene())


def test_a_burst_arrives_whole_and_in_order(node: Credentials, client: Credentials, port: int) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            running.admitted.admit(client.peer)
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            for number in range(3000):
                assert link.send(wire.SyncRequest(view=number))
            await until(lambda: len(heard) == 3000)
            assert [message.view for message, _ in heard] == list(range(3000))  # type: ignore[union-attr]
            link.close()

    asyncio.run(scene())


def test_a_key_that_was_not_presented_is_refused_and_may_come_back(
    node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            link, heard, states = running.link(client)
            await until(lambda: states == ["refused"])
            assert not link.send(wire.SyncRequest(view=1))
            assert running.server.dropped == 1
            link.close()
            running.admitted.admit(client.peer)
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            await still_serves(running, link, heard)
            link.close()

    asyncio.run(scene())


@pytest.mark.parametrize("cause", ["revoked", "expired"])
def test_a_link_goes_silent_when_its_certificate_ends(
    authority: CertificateAuthority, node: Credentials, port: int, cause: str
) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            client = authority.local("client-9", "hopper", Role.CLIENT)
            running.admitted.admit(client.peer)
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            await still_serves(running, link, heard)
            if cause == "revoked":
                running.admitted.revoke(client.peer.serial)
            else:
                # The clock of the machine is its edge; the certificate's end is moved before now instead.
                running.admitted._peers[client.curve_public] = dataclasses.replace(client.peer, not_after=1.0)
            assert link.send(wire.SyncRequest(view=2))
            await until(lambda: running.server.dropped == 1)
            assert len(running.origins) == 1
            again, _, refused = running.link(client)
            await until(lambda: refused == ["refused"])
            link.close()
            again.close()

    asyncio.run(scene())


def test_strangers_get_nothing_while_a_good_peer_is_served(
    authority: CertificateAuthority, node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            running.admitted.admit(client.peer)
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            plain = running.raw()
            foreign = CertificateAuthority.create("lab").local("node-1", "ada", Role.NODE)
            unknown = running.raw(foreign)
            garbage = socket.create_connection(("127.0.0.1", port))
            half = socket.create_connection(("127.0.0.1", port))
            for stranger in (plain, unknown):
                with contextlib.suppress(zmq.Again):  # turned away before it could send: ZeroMQ takes nothing more
                    stranger.send_multipart([wire.encode(wire.SyncRequest(view=1))], zmq.DONTWAIT)
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 4096)
            half.sendall(b"\xff\x00")
            await until(lambda: running.server.dropped >= 3)
            await still_serves(running, link, heard)
            assert {origin.peer for origin in running.origins} == {client.peer}
            for stranger in (plain, unknown):
                assert not stranger.poll(50)
            garbage.close()
            half.close()
            link.close()

    asyncio.run(scene())


def framed(header: bytes) -> bytes:
    """A first frame with a header of these bytes, which need not be one."""
    return b"K\x02" + len(header).to_bytes(4, "little") + header


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"garbage"],
        [b"K\x63" + wire.encode(wire.SyncRequest(view=1))[2:]],
        [wire.encode(wire.SyncRequest(view=1))[:-1]],
        [framed(wire.encode(wire.SyncRequest(view=1))[6:] + b"more")],
        [framed(b"\x91" * 5000)],
        [wire.encode(wire.SyncRequest(view=1))] * (wire.FRAMES_LIMIT + 1),
        [wire.encode(wire.SyncRequest(view=1)), bytes(wire.MESSAGE_LIMIT_BYTES)],
    ],
    ids=["empty", "garbage", "version", "truncated", "trailing", "nested", "frames", "oversized"],
)
def test_a_bad_message_of_an_admitted_peer_is_dropped_and_counted(
    authority: CertificateAuthority, node: Credentials, client: Credentials, port: int, frames: list[bytes]
) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            bad = authority.local("client-2", "mallory", Role.CLIENT)
            running.admitted.admit(client.peer)
            running.admitted.admit(bad.peer)
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            running.raw(bad).send_multipart(frames)
            await until(lambda: running.server.dropped == 1)
            await still_serves(running, link, heard)
            assert {origin.peer for origin in running.origins} == {client.peer}
            link.close()

    asyncio.run(scene())


def test_a_frame_beyond_reading_cuts_its_sender_only(
    authority: CertificateAuthority, node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            bad = authority.local("client-2", "mallory", Role.CLIENT)
            running.admitted.admit(client.peer)
            running.admitted.admit(bad.peer)
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            raw = running.raw(bad)
            monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            raw.send_multipart([wire.encode(wire.SyncRequest(view=1)), bytes(3 * wire.MESSAGE_LIMIT_BYTES)])
            await until(lambda: monitor.poll(0))
            raw.disable_monitor()
            monitor.close(linger=0)
            await still_serves(running, link, heard)
            assert {origin.peer for origin in running.origins} == {client.peer}
            link.close()

    asyncio.run(scene())


def test_a_peer_that_claims_anothers_route_is_still_itself(
    authority: CertificateAuthority, node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            other = authority.local("client-2", "mallory", Role.OBSERVER)
            running.admitted.admit(other.peer)
            raw = running.clients.socket(zmq.DEALER)
            raw.setsockopt(zmq.ROUTING_ID, client.peer.id.encode())
            raw.curve_publickey, raw.curve_secretkey = other.curve_public, other.curve_secret
            raw.curve_serverkey = node.curve_public
            raw.connect(f"tcp://127.0.0.1:{port}")
            running.raws.append(raw)
            raw.send(wire.encode(wire.SyncRequest(view=1)))
            await until(lambda: running.origins)
            assert running.origins[0].peer == other.peer

    asyncio.run(scene())


def test_what_a_handler_raises_stops_nobody(node: Credentials, client: Credentials, port: int) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            running.admitted.admit(client.peer)
            problems: list[dict[str, object]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            link, heard, states = running.link(client)
            await until(lambda: states == ["up"])
            running.server._on_message = lambda *_: 1 / 0
            for _ in range(3):
                link.send(wire.SyncRequest(view=1))
            await until(lambda: len(problems) == 3)
            running.server._on_message = running._echo
            await still_serves(running, link, heard)
            link.close()

    asyncio.run(scene())


def test_a_send_to_nobody_or_over_the_limit(node: Credentials, client: Credentials, port: int) -> None:
    async def scene() -> None:
        async with echo(node, port) as running:
            assert not running.server.send(b"nobody", wire.SyncRequest(view=1), b"payload")
            with pytest.raises(LimitError, match="SyncRequest"):
                running.server.send(b"nobody", wire.SyncRequest(view=1), bytes(wire.MESSAGE_LIMIT_BYTES))

    asyncio.run(scene())


def test_a_link_tells_when_its_node_goes_and_must_present_again_when_it_comes_back(
    node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with echo(node, port) as first:
            first.admitted.admit(client.peer)
            link, _, states = first.link(client)
            await until(lambda: states == ["up"])
            first.server.close()
            first.context.destroy(linger=0)
            await until(lambda: states == ["up", "down"])
            assert not link.send(wire.SyncRequest(view=1))
            async with echo(node, port):
                await until(lambda: states == ["up", "down", "refused"])
            link.close()

    asyncio.run(scene())


def test_a_taken_port_and_a_foreign_address_say_so(node: Credentials, port: int) -> None:
    async def scene() -> None:
        async with echo(node, port):
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            second = Server(context, node, Admitted(), lambda *_: None)
            with pytest.raises(PortTakenError, match=f"Port {port} of 127.0.0.1 is in use"):
                second.bind("127.0.0.1", port)
            with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.9"):
                second.bind("203.0.113.9", port)
            second.close()
            context.destroy(linger=0)

    asyncio.run(scene())
