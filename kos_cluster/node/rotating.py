"""This node's own certificate: renewed in time, or when somebody asks for it, without a link being cut.

Theory of operation. A certificate is renewed at some point between 50 and 80 % of its life, each node at its own, so
that they do not all come at once. The keys stay, so links go on: the coordinator enters the successor and signs it,
this node takes it into use, and confirms; then the old one is denied, and every other node, who knows of both from the
replicated state, goes on with the new one.

Rules: the new certificate is on the disk before the old one is given up.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kos_cluster.core.replicated import commands
from kos_cluster.errors import KosError, UnreachableError
from kos_cluster.net.administration import Renew
from kos_cluster.net.identity import Credentials, load_certificate
from kos_cluster.net.outcome import from_wire
from kos_cluster.node.controlplane import ControlPlane

log = logging.getLogger(__name__)

EARLIEST, LATEST = 0.5, 0.8  # of a certificate's life
LOOK_S = 60.0  # between two looks at the calendar, and after a failure
ASK_TIMEOUT_S = 10.0


class Rotation:
    """Used in the daemon's loop. `use` puts new credentials into use wherever this node shows them."""

    def __init__(
        self, credentials: Credentials, folder: Path, control: ControlPlane, use: Callable[[Credentials], None]
    ) -> None:
        self._credentials = credentials
        self._folder = folder
        self._control = control
        self._use = use
        self._share = random.Random(credentials.peer.id).uniform(EARLIEST, LATEST)
        self._renewing = asyncio.Lock()

    async def run(self) -> None:
        """Renew in time. Does not return."""
        while True:
            if is_due(self._credentials, self._share, time.time()):
                try:
                    await self.renew()
                except KosError as error:
                    log.warning("This node's certificate could not be renewed: %s", error)
            await asyncio.sleep(LOOK_S)

    async def renew(self) -> float:
        """Renew now; when the new certificate ends (Unix seconds). Raises KosError."""
        async with self._renewing:
            old = self._credentials
            pem = await self._certified(old.renewal_request())
            new = old.renewed(pem)
            new.save(self._folder)
            self._use(new)
            self._credentials = new
            await self._control.consensus.propose(commands.ConfirmCertificate(new.peer.id, new.peer.serial))
            log.info("This node's certificate is renewed; it is good until %s.", time.ctime(new.peer.not_after))
            return new.peer.not_after

    async def _certified(self, request_pem: bytes) -> bytes:
        consensus = self._control.consensus
        if consensus.leads:
            return await self._control.certifier.renew(self._credentials.peer, request_pem)
        if consensus.leader is None:
            raise UnreachableError("The cluster has no coordinator at the moment.", "Try again in a few seconds.")
        try:
            reply = await self._control.peers.ask(consensus.leader, Renew(request_pem), ASK_TIMEOUT_S)
        except TimeoutError:
            raise UnreachableError("The coordinator does not answer.", "Try again in a few seconds.") from None
        if reply.error is not None:
            raise from_wire(reply.error)
        return msgspec.msgpack.decode(reply.value, type=bytes)


def is_due(credentials: Credentials, share: float, now: float) -> bool:
    """Whether so large a share of a certificate's life is over."""
    begins_s = load_certificate(credentials.cert_pem).not_valid_before_utc.timestamp()
    return now >= begins_s + share * (credentials.peer.not_after - begins_s)
