"""Telling the registry's keeper that a node of this machine leaves for good, with the node's own identity.

Rules: the daemon has been stopped before, so nothing brings the node back to life. The keeper's view is asked
for until it shows the node as left: no single message is relied on. It ends after `TELL_TIMEOUT_S` at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import zmq

from kos_cluster.core.records import MemberState
from kos_cluster.errors import KosError
from kos_cluster.net import wire
from kos_cluster.net.bulk import present
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transport import Context, Link

TELL_TIMEOUT_S = 5.0
REPEAT_S = 0.2


def tell_left(credentials: Credentials, keeper: str) -> bool:
    """Whether the keeper, at HOST:PORT, has marked the node as left."""
    try:
        return asyncio.run(asyncio.wait_for(_tell(credentials, keeper), TELL_TIMEOUT_S))
    except (TimeoutError, KosError):  # unreachable, or it does not know us any more
        return False


async def _tell(credentials: Credentials, keeper: str) -> bool:
    host, _, port = keeper.rpartition(":")
    peer = await asyncio.to_thread(present, host, int(port), credentials)
    left = asyncio.Event()

    def said(message: wire.Message, _: memoryview) -> None:
        if isinstance(message, wire.Reply) and message.error is None:
            view = msgspec.msgpack.decode(message.value, type=wire.SyncData)
            states = {member.id: member.state for member in view.members or []}
            if states.get(credentials.peer.id) is MemberState.LEFT:
                left.set()

    context: Context = zmq.Context()
    link = Link(context, credentials, peer.curve_public, host, int(port), said, lambda _: None)
    try:
        while not left.is_set():
            link.send(wire.Leaving(left=True))
            link.send(wire.Request(1, wire.Nodes()))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(left.wait(), REPEAT_S)
        return True
    finally:
        link.close()
        context.term()
