"""A link that is kept up: when its node is told to be gone, and when not."""

from __future__ import annotations

import asyncio

import zmq

from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import GONE_AFTER_TRIES, NodeLink

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

    async def _present(self) -> None:
        self.tries += 1
        try:
            await super()._present()
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
