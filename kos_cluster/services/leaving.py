"""Telling the cluster that a node of this machine leaves for good, with the node's own identity.

Rules. A node that runs is asked itself, and sees to it that the cluster can do without it; for one that does not run,
any other node of the cluster is told. It ends after `TELL_TIMEOUT_S` an address at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from kos_cluster import errors
from kos_cluster.errors import AuthError, KosError, UnreachableError
from kos_cluster.net import wire
from kos_cluster.net.bulk import present
from kos_cluster.net.identity import Credentials
from kos_cluster.net.transport import Context, Link

TELL_TIMEOUT_S = 15.0
REPEAT_S = 0.2


def tell_left(credentials: Credentials, addresses: Sequence[str]) -> bool | None:
    """Have the cluster agree, through a node at one of these addresses (HOST:PORT), that this node left.

    Whether the cluster goes on without it; None when nobody could be told. Raises StateError or UnreachableError when
    the cluster cannot do without it.
    """
    for address in addresses:
        try:
            reply = asyncio.run(asyncio.wait_for(_tell(credentials, address), TELL_TIMEOUT_S))
        except (TimeoutError, UnreachableError, AuthError):
            continue  # it is not there, or does not know us any more: another one may
        if reply.error is not None:
            name, message, hint = reply.error
            raise getattr(errors, name, KosError)(message, hint)
        return msgspec.msgpack.decode(reply.value, type=bool)
    return None


async def _tell(credentials: Credentials, address: str) -> wire.Reply:
    host, _, port = address.rpartition(":")
    peer = await asyncio.to_thread(present, host, int(port), credentials)
    answer: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()

    def said(message: wire.Message, _: memoryview) -> None:
        if isinstance(message, wire.Reply) and not answer.done():
            answer.set_result(message)

    context = Context()
    link = Link(context, credentials, peer.curve_public, host, int(port), said, lambda _: None)
    try:
        while not link.send(wire.Request(1, wire.LeaveCluster())):
            await asyncio.sleep(REPEAT_S)
        return await answer
    finally:
        link.close()
        context.term()
