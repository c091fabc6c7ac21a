"""Presenting holds up nothing, and hears what was said before the node hung up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
import uvloop
import zmq

from kos_cluster.errors import RevokedError
from kos_cluster.net import wire
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.presenting import present
from kos_cluster.node import machine

HOST = "127.0.0.1"
BLACK_HOLES = 12
WAIT_S = 20.0


class Nobody:
    """A listener that does nothing."""

    def link_gone(self, link: NodeLink, why: str) -> None: ...
    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None: ...


@pytest.fixture
def black_holes() -> Iterator[list[int]]:
    """Control ports whose bulk ports take connections and never say a word."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(BLACK_HOLES)]
        yield [server.getsockname()[1] - 1 for server in servers]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_black_holes_do_not_delay_a_link_to_a_live_node(run, bulk: BulkServer, node, client, port, black_holes) -> None:
    async def scene() -> None:
        context = zmq.Context()
        hello = wire.Hello("i", machine.versions(), 1, "", 0)

        def link(port: int) -> NodeLink:
            return NodeLink(context, client, HOST, port, hello, Nobody())

        stuck = [link(port) for port in black_holes]
        await asyncio.sleep(0)  # they are the first
        live = link(port)
        try:
            async with asyncio.timeout(WAIT_S):
                while live.peer is None:
                    await asyncio.sleep(0.005)
            assert live.peer == node.peer
            assert [other.failure for other in stuck] == [None] * BLACK_HOLES, "they are waited for meanwhile"
        finally:
            for each in (*stuck, live):
                each.close()
            await asyncio.sleep(0)
            context.term()

    run(scene())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_refusal_is_heard_by_a_loop_that_is_late(run, bulk: BulkServer, store, client, port) -> None:
    """The answer and the end of the connection come at once to a loop that was busy meanwhile."""
    store.admitted.revoke(client.peer.serial)

    async def scene() -> None:
        trying = asyncio.create_task(present(HOST, port, client))
        while not trying.done():
            await asyncio.sleep(0.001)
            time.sleep(0.02)
        with pytest.raises(RevokedError, match="revoked"):
            await trying

    for _ in range(5):
        run(scene())
