"""Telling the cluster that a node of this machine leaves for good, with the node's own identity.

Rules. A node that runs is asked itself, and sees to it that the cluster can do without it; for one that does not run,
any other node of the cluster is told. It ends after `TELL_TIMEOUT_S` an address at the latest.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kos_cluster.errors import AuthError, UnreachableError
from kos_cluster.net import wire
from kos_cluster.net.administration import LeaveCluster
from kos_cluster.net.identity import Credentials
from kos_cluster.net.outcome import from_wire
from kos_cluster.services.asking import asking, run_within

TELL_TIMEOUT_S = 15.0


def tell_left(credentials: Credentials, addresses: Sequence[str]) -> bool | None:
    """Have the cluster agree, through a node at one of these addresses (HOST:PORT), that this node left.

    Whether the cluster goes on without it; None when nobody could be told. Raises StateError or UnreachableError when
    the cluster cannot do without it.
    """
    for address in addresses:
        try:
            reply = run_within(_tell(credentials, address), TELL_TIMEOUT_S)
        except (TimeoutError, UnreachableError, AuthError):
            continue  # it is not there, or does not know us any more: another one may
        if reply.error is not None:
            raise from_wire(reply.error)
        return msgspec.msgpack.decode(reply.value, type=bool)
    return None


async def _tell(credentials: Credentials, address: str) -> wire.Reply:
    async with asking(credentials, address) as ask:
        return await ask(LeaveCluster())
