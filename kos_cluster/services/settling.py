"""Waiting until a cluster that was just formed outlives the loss of any one of its nodes.

A node can take work before it votes: the coordinator lets the nodes in one by one, and until most of the voters that
the cluster should have do vote, the loss of the first node would be the loss of all agreement.
"""

from __future__ import annotations

import asyncio

import msgspec

from kos_cluster.core.voters import voters_wanted
from kos_cluster.errors import AuthError, UnreachableError
from kos_cluster.net.administration import ClusterStatus, Status
from kos_cluster.net.identity import Credentials
from kos_cluster.services.asking import asking, run_within

SETTLE_TIMEOUT_S = 10.0
POLL_S = 0.02


def settled(credentials: Credentials, address: str, nodes: int) -> bool:
    """Wait until the node at this address (HOST:PORT) knows a coordinator, and as many voters as `nodes` should have.

    False when that took longer than `SETTLE_TIMEOUT_S`, or when the node is gone.
    """
    try:
        run_within(_settled(credentials, address, voters_wanted(nodes)), SETTLE_TIMEOUT_S)
    except (TimeoutError, UnreachableError, AuthError):
        return False
    return True


async def _settled(credentials: Credentials, address: str, voters: int) -> None:
    async with asking(credentials, address) as ask:
        while True:
            status = msgspec.msgpack.decode((await ask(Status())).value, type=ClusterStatus)
            if status.coordinator and len(status.voters) >= voters:
                return
            await asyncio.sleep(POLL_S)
