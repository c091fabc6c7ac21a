"""Admitting new machines: the registry's keeper redeems a token and certifies the joiner's keys.

Rules. The token is spent on the disk before the certificates are given away, so it can't be used twice even if the machine fails in
between. The role is the token's, never the request's.
"""

from __future__ import annotations

import logging
import time
import uuid

from kos_cluster.core.roles import Role
from kos_cluster.errors import JoinError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.node.registry import Keeper

log = logging.getLogger(__name__)


class Admission:
    """Answers joiners. Used in the daemon's loop."""

    def __init__(self, authority: CertificateAuthority, keeper: Keeper, address: str) -> None:
        self._authority = authority
        self._keeper = keeper
        self._address = address

    def admit(self, request: JoinRequest, source_host: str) -> JoinReply:
        """Raises JoinError; the token stays good then, unless it was the cause."""
        raise NotImplementedError
