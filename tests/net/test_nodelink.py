"""A link that is kept up: which way it takes, when its node is told to be gone, and when not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq

from kos_cluster.errors import RevokedError
from kos_cluster.home import ClusterHome, Home, private_folder
from kos_cluster.net import unixsockets, wire
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import GONE_AFTER_TRIES, NodeLink
from kos_cluster.net.transport import Link
from kos_cluster.node import machine
from tests.net.conftest import NodeStore
from tests.net.echoes import LocalEcho, NetworkEcho, running, until

TIMEOUT_S = 20.0


class Told:
    """A listener that notes after how many tries the node was told to be gone."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def link_gone(self, link: NodeLink, why: str) -> None:
        self.gone.set()

    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        raise AssertionError(message)


class CountedLink(NodeLink):
    """Counts its tries, and hurries when it has failed `hurried_after` times."""

    tries = 0
    hurried_after = 0

    async def _open(self) -> Link:
        self.tries += 1
        try:
            return await super()._open()
        finally:
            if self.tries == self.hurried_after:  # the try is under way, and fails after this
                self.hurry()


def tries_until_gone(credentials: Credentials, port: int, hurried_after: int) -> int:
    async def run() -> int:
        told = Told()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        link = CountedLink(context, credentials, "127.0.0.1", port, wire.Hello("i", {}, 1, "", 0), told)
        link.hurried_after = hurried_after
        try:
            await asyncio.wait_for(told.gone.wait(), TIMEOUT_S)
            return link.tries
        finally:
            link.close()
            context.term()

    return asyncio.run(run())


def test_a_node_that_nobody_hears_at_is_gone_after_some_tries(client: Credentials, port: int) -> None:
    assert tries_until_gone(client, port, 0) == GONE_AFTER_TRIES


def test_a_node_that_is_known_to_be_back_is_not_gone_for_what_failed_before(client: Credentials, port: int) -> None:
    before = GONE_AFTER_TRIES  # the last try that would have made it gone
    assert tries_until_gone(client, port, before) == before + GONE_AFTER_TRIES - 1


# ---- on the node's own machine


class Noting:
    """A listener that notes what is said."""

    def __init__(self) -> None:
        self.gone: list[str] = []
        self.said: list[wire.Message] = []

    def link_gone(self, link: NodeLink, why: str) -> None:
        self.gone.append(why)

    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        self.said.append(message)


HELLO = wire.Hello("i", machine.versions(), 1, "", 0)


@pytest.fixture
def home(tmp_path: Path) -> ClusterHome:
    home = ClusterHome(Home(tmp_path), "lab")
    private_folder(home.run("ada"))
    return home


@pytest.fixture
def socket_path(home: ClusterHome, port: int) -> Path:
    """Where the node that others know by this port listens for its own machine."""
    return home.new_socket("ada", f"127.0.0.1:{port}")


class Linked:
    """A link with a home."""

    def __init__(self, credentials: Credentials, port: int, home: ClusterHome) -> None:
        self.told = Noting()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.link = NodeLink(self._context, credentials, "127.0.0.1", port, HELLO, self.told, home)

    async def __aenter__(self) -> Linked:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.link.close()
        await asyncio.sleep(0)
        self._context.term()


def test_a_node_of_this_machine_is_reached_without_the_network(
    node: Credentials, client: Credentials, port: int, home: ClusterHome, socket_path: Path
) -> None:
    async def scene() -> None:
        async with running(LocalEcho(node, socket_path)) as echo, Linked(client, port, home) as linked:
            await until(lambda: linked.told.said == [HELLO])
            assert linked.link.peer == node.peer
            assert echo.origins[0].peer == client.peer

    asyncio.run(scene())


@pytest.mark.parametrize("state", ["missing", "left behind", "of another address", "refusing"])
def test_a_node_whose_socket_does_not_do_is_reached_over_the_network(
    state: str,
    bulk: BulkServer,
    store: NodeStore,
    node: Credentials,
    client: Credentials,
    port: int,
    home: ClusterHome,
    socket_path: Path,
) -> None:
    if state == "left behind":
        unixsockets.listen(socket_path).close()

    async def scene() -> None:
        network = NetworkEcho(node, port)
        network.admitted.admit(client.peer)
        if state == "of another address":
            local = LocalEcho(node, home.new_socket("ada", f"127.0.0.2:{port}"))
        else:
            local = LocalEcho(node, socket_path if state == "refusing" else socket_path.with_name("unused"))
            local.admitted.revoke(client.peer.serial)
        async with running(network), running(local), Linked(client, port, home) as linked:
            await until(lambda: linked.told.said == [HELLO])
            assert [origin.peer for origin in network.origins] == [client.peer]
            assert not local.origins
            assert local.server.dropped == (state == "refusing")

    asyncio.run(scene())


def test_a_revoked_client_hears_so_whichever_way_it_takes(
    bulk: BulkServer,
    store: NodeStore,
    node: Credentials,
    client: Credentials,
    port: int,
    home: ClusterHome,
    socket_path: Path,
) -> None:
    async def scene() -> None:
        async with running(LocalEcho(node, socket_path)) as echo, Linked(client, port, home) as linked:
            await until(lambda: linked.link.up)
            for admitted in (store.admitted, echo.admitted):
                admitted.revoke(client.peer.serial)
            echo.server.cut_denied()
            await until(lambda: linked.told.gone)
            assert isinstance(linked.link.failure, RevokedError)
            assert not linked.link.up

    asyncio.run(scene())


def test_a_link_comes_back_when_its_node_does(
    node: Credentials, client: Credentials, port: int, home: ClusterHome, socket_path: Path
) -> None:
    async def scene() -> None:
        async with Linked(client, port, home) as linked:
            async with running(LocalEcho(node, socket_path)):
                await until(lambda: linked.told.said == [HELLO])
            await until(lambda: linked.told.gone)
            assert not linked.link.send(HELLO)
            async with running(LocalEcho(node, socket_path)):
                linked.link.hurry()
                await until(lambda: linked.told.said == [HELLO, HELLO])

    asyncio.run(scene())
