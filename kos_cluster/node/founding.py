"""Founding: the first commands of a cluster's log, from what lies on the founding machine's disk.

Rules: they are proposed by the first node when it starts for the first time, and once; a founder that died in between
finds at its next start what is missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kos_cluster.core.replicated import commands
from kos_cluster.home import ClusterHome
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.node.certifying import certificate_of, seals
from kos_cluster.node.consensus import Consensus

FOUNDING_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Founding:
    """What a cluster begins with."""

    cluster: ClusterHome
    node: str  # the founding node's name
    profile: str

    async def carry_out(self, consensus: Consensus) -> None:
        """Raises UnreachableError when nobody can decide, which at this point is this node alone."""
        deadline = time.monotonic() + FOUNDING_TIMEOUT_S
        while not consensus.leads and time.monotonic() < deadline:
            await consensus.moved(deadline - time.monotonic())
        home = self.cluster
        authority = CertificateAuthority.load(home.name, home.path, home.home.path / "wrap.key")
        node = Credentials.load(home.node(self.node))
        if not consensus.state.cluster:
            others = [Credentials.load(home.node(name)) for name in home.read().nodes if name != self.node]
            certificates = [certificate_of(c) for c in (node, *others)]
            client = certificate_of(Credentials.load(home.client), came_with=node.peer.id)
            await consensus.propose(
                commands.FoundCluster(home.name, authority.certificate_pem, (*certificates, client))
            )
        if consensus.state.seals.get(node.peer.id) is None:
            await consensus.propose(seals(authority, {node.peer.id: node.curve_public}))
        if self.profile and consensus.state.settings.get("profile") is None:
            await consensus.propose(commands.SetSetting("profile", self.profile))
