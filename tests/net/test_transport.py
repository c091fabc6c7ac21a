"""Control links over the network: who gets in, and what is particular to ZeroMQ. `test_links` has the rest."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import zmq

from kos_cluster.core.roles import Role
from kos_cluster.errors import PortTakenError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transport import Server
from tests.net.echoes import NetworkEcho, running, still_serves, until


def test_a_key_that_was_not_presented_is_refused_and_may_come_back(
    node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with running(NetworkEcho(node, port)) as echo:
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["refused"])
            assert not link.send(wire.SyncRequest(view=1))
            assert echo.server.dropped == 1
            link.close()
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            await still_serves(echo, link, heard)
            link.close()

    asyncio.run(scene())


def test_strangers_get_nothing_while_a_good_peer_is_served(
    authority: CertificateAuthority, node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with running(NetworkEcho(node, port)) as echo:
            echo.admitted.admit(client.peer)
            link, heard, states = await echo.link(client)
            await until(lambda: states == ["up"])
            plain = echo.raw()
            foreign = CertificateAuthority.create("lab").local("node-1", "ada", Role.NODE)
            unknown = echo.raw(foreign)
            garbage = socket.create_connection(("127.0.0.1", port))
            half = socket.create_connection(("127.0.0.1", port))
            for stranger in (plain, unknown):
                with contextlib.suppress(zmq.Again):  # turned away before it could send: ZeroMQ takes nothing more
                    stranger.send_multipart([wire.encode(wire.SyncRequest(view=1))], zmq.DONTWAIT)
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"\xff" * 4096)
            half.sendall(b"\xff\x00")
            await until(lambda: echo.server.dropped >= 3)
            await still_serves(echo, link, heard)
            assert {origin.peer for origin in echo.origins} == {client.peer}
            for stranger in (plain, unknown):
                assert not stranger.poll(50)
            garbage.close()
            half.close()
            link.close()

    asyncio.run(scene())


def test_a_message_of_too_many_frames_is_dropped_and_counted(node: Credentials, client: Credentials, port: int) -> None:
    async def scene() -> None:
        async with running(NetworkEcho(node, port)) as echo:
            echo.admitted.admit(client.peer)
            await echo.send_raw(client, [wire.encode(wire.SyncRequest(view=1))] * (wire.FRAMES_LIMIT + 1))
            await until(lambda: echo.server.dropped == 1)
            assert not echo.origins

    asyncio.run(scene())


def test_a_peer_that_claims_anothers_route_is_still_itself(
    authority: CertificateAuthority, node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with running(NetworkEcho(node, port)) as echo:
            other = authority.local("client-2", "mallory", Role.OBSERVER)
            echo.admitted.admit(other.peer)
            raw = echo.clients.socket(zmq.DEALER)
            raw.setsockopt(zmq.ROUTING_ID, client.peer.id.encode())
            raw.curve_publickey, raw.curve_secretkey = other.curve_public, other.curve_secret
            raw.curve_serverkey = node.curve_public
            raw.connect(f"tcp://127.0.0.1:{port}")
            echo.raws.append(raw)
            raw.send(wire.encode(wire.SyncRequest(view=1)))
            await until(lambda: echo.origins)
            assert echo.origins[0].peer == other.peer

    asyncio.run(scene())


def test_a_link_tells_when_its_node_goes_and_must_present_again_when_it_comes_back(
    node: Credentials, client: Credentials, port: int
) -> None:
    async def scene() -> None:
        async with running(NetworkEcho(node, port)) as first:
            first.admitted.admit(client.peer)
            link, _, states = await first.link(client)
            await until(lambda: states == ["up"])
            first.stop()
            await until(lambda: states == ["up", "down"])
            assert not link.send(wire.SyncRequest(view=1))
            async with running(NetworkEcho(node, port)):
                await until(lambda: states == ["up", "down", "refused"])
            link.close()

    asyncio.run(scene())


def test_a_taken_port_and_a_foreign_address_say_so(node: Credentials, port: int) -> None:
    async def scene() -> None:
        async with running(NetworkEcho(node, port)):
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            second = Server(context, node, Admitted(), lambda *_: None)
            with pytest.raises(PortTakenError, match=f"Port {port} of 127.0.0.1 is in use"):
                second.bind("127.0.0.1", port)
            with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.9"):
                second.bind("203.0.113.9", port)
            second.close()
            context.destroy(linger=0)

    asyncio.run(scene())
