"""Admitting new machines: the registry's keeper redeems a token and certifies the joiner's keys.

Rules. The token is spent on the disk before the certificates are given away, so it can't be used twice even if the
machine fails in between. The role is the token's, never the request's. A wanted name that is taken is replaced.
"""

from __future__ import annotations

import logging
import time

from kos_cluster.core.records import MemberState
from kos_cluster.errors import JoinError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.granting import grant
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.node import machine
from kos_cluster.node.registry import Keeper

log = logging.getLogger(__name__)


class Admission:
    """Answers joiners at the keeper. Used in the daemon's loop."""

    def __init__(self, authority: CertificateAuthority, keeper: Keeper) -> None:
        self._authority = authority
        self._keeper = keeper

    def admit(self, request: JoinRequest, source_host: str) -> JoinReply:
        """Raises JoinError, IncompatibleError, AuthError, StateError; the token is spent only by a good request."""
        if request.insist and self._keeper.taken(request.name):
            raise JoinError(f"A node of this cluster is named {request.name} already.", "Choose another with --name.")
        alive = [m for m in self._keeper.members() if m.state is MemberState.ALIVE]
        alive.sort(key=lambda member: not member.founder)  # the joiner's node will look for the keeper at the first
        reply = grant(
            request,
            source_host,
            authority=self._authority,
            tokens=self._keeper.tokens,
            versions=machine.versions(),
            node_name=self._keeper.free_name(request.name),
            bootstrap=[member.address for member in alive],
            now=time.time(),
        )
        self._keeper.save_tokens()
        log.info("%s joined from %s as %s.", reply.node_name or request.user, source_host, reply.role)
        return reply
