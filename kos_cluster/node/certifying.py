"""Certificates: whoever holds the authority's key admits joiners, renews certificates, and seals the key to the voters.

Theory of operation. The authority's key lies in the replicated state, sealed to each voter. The coordinator opens its
copy when it needs it. A join is agreed before anything is signed: one command spends the token, reserves the name and
enters the serials; the certificates are then issued as the reply says, so a joiner that asks again, of whichever
coordinator, gets the same. A renewal enters the successor beside the old one, which is denied when its holder confirms
that it uses the new one.

Rules: everything that can be refused is refused before the token is spent. The role is the token's, never the
request's. The opened key is dropped when the seals change.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Collection

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import secret_sha256
from kos_cluster.errors import AuthError, StateError, UnreachableError, UsageError
from kos_cluster.net.authority import (
    PEER_LIFETIME_S,
    CertificateAuthority,
    authority_sha256,
    new_serial,
    requested_curve_key,
)
from kos_cluster.net.engines import CertifyEngine, EngineCertificate
from kos_cluster.net.granting import check_cluster, checked_versions, client_name
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.joining import JoinReply, JoinRequest
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.net.sealing import SealContext, seal, unseal
from kos_cluster.node import machine
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.membership import Membership

log = logging.getLogger(__name__)

ID_BYTES = 8
PURPOSE = "authority-key"
WALL_AHEAD_S = 3600.0  # by which a wall clock may be ahead without refusing tokens that are still good


class Certifier:
    """Issues certificates while this node can open the authority's key. Used in the daemon's loop."""

    def __init__(self, credentials: Credentials, consensus: Consensus, membership: Membership) -> None:
        self._credentials = credentials
        self._consensus = consensus
        self._membership = membership
        self._authority: CertificateAuthority | None = None

    def changed(self) -> None:
        """The seals may be others now."""
        self._authority = None

    # ---- joiners

    async def mint(self, role: str, ttl_s: float) -> str:
        """A new join token. Raises UsageError, LimitError, UnreachableError."""
        if role not in list(Role):
            raise UsageError(f"There is no role {role!r}.", f"Choose one of {', '.join(Role)}.")
        token = JoinToken.mint(authority_sha256(self._credentials.ca_pem))
        command = commands.MintToken(token.id, secret_sha256(token.secret), Role(role), ttl_s)
        await self._consensus.propose(command)
        return str(token)

    async def admit(self, request: JoinRequest, source_host: str) -> JoinReply:
        """Raises JoinError, IncompatibleError, AuthError, UnreachableError; then the token is not spent."""
        check_cluster(request, self._credentials.peer.cluster)
        warnings = checked_versions(request.versions, machine.versions(), self._consensus.state.format)
        authority = self._open()
        redeem = self._redemption(request)
        # The replicated clock stands still while the cluster is down, and no token may outlive its time by that.
        clock_s = max(self._consensus.clock_s, time.time() - WALL_AHEAD_S)
        self._consensus.state.redemptions.check(redeem.token_id, redeem.secret_sha256, clock_s)
        admission = await self._consensus.propose(redeem)
        if not isinstance(admission, replies.Admission):
            raise StateError(f"The join was answered by {type(admission).__name__}.", "Try again.")
        node, client = admission.node, admission.client
        log.info("%s joins from %s as %s.", node.name if node else client.name, source_host, admission.role)
        return JoinReply(
            role=admission.role,
            client_pem=authority.certify(request.client.request_pem, client),
            node_pem=authority.certify(request.node.request_pem, node) if node else b"",
            node_name=node.name if node else "",
            source_host=source_host,
            bootstrap=[member.address for member in self._members_to_ask()],
            warnings=warnings,
            profile=self._consensus.state.settings.get("profile") or "",
        )

    def _redemption(self, request: JoinRequest) -> commands.RedeemToken:
        digest = hashlib.sha256(request.node.request_pem + request.client.request_pem).hexdigest()
        end_s = time.time() + PEER_LIFETIME_S
        return commands.RedeemToken(
            token_id=request.token_id,
            secret_sha256=secret_sha256(request.secret),
            joiner=digest,
            node=_wish(requested_curve_key(request.node.request_pem), end_s),
            client=_wish(requested_curve_key(request.client.request_pem), end_s),
            node_name=request.name,
            client_name=client_name(request),
            role=request.role,
            insist=request.insist,
        )

    def _members_to_ask(self) -> list[Member]:
        """Those that are alive, the coordinator first."""
        alive = [m for m in self._membership.members() if m.state is MemberState.ALIVE]
        return sorted(alive, key=lambda member: member.id != self._consensus.leader)

    # ---- renewals

    async def renew(self, peer: Peer, request_pem: bytes) -> bytes:
        """A certificate, in PEM, that follows the one that the peer showed. Raises AuthError, UnreachableError."""
        authority = self._open()
        serial, end_s = new_serial(), time.time() + PEER_LIFETIME_S
        curve_public = requested_curve_key(request_pem)
        await self._consensus.propose(commands.RenewCertificate(peer.id, peer.serial, serial, end_s, curve_public))
        successor = commands.Certificate(serial, peer.id, peer.name, peer.role, end_s, curve_public)
        return authority.certify(request_pem, successor)

    # ---- engines

    def certify_engine(self, peer: Peer, asked: CertifyEngine) -> EngineCertificate:
        """For a peer that may submit work. Raises AuthError, UsageError, UnreachableError."""
        if self._consensus.state.identities.denied(peer.serial) is not None:
            raise AuthError(f"The certificate of {peer.name} is denied.", "Join again with a new token.")
        authority = self._open().of_engine(asked.engine)
        certificate_pem = authority.issue(asked.request_pem, asked.host, peer.name)
        log.info("%s has a certificate of engine %s for %s.", peer.name, asked.engine, asked.host)
        return EngineCertificate(authority.certificate_pem.decode(), certificate_pem.decode(), authority.secret)

    # ---- the authority's key

    @property
    def can_open(self) -> bool:
        return self._consensus.state.seals.get(self._credentials.peer.id) is not None

    def sealed_to(self) -> Collection[str]:
        """The ids of the nodes that have a copy."""
        return self._consensus.state.seals.snapshot()

    async def seal_to(self, nodes: Collection[str]) -> None:
        """Give a copy of the key to each of these nodes and to nobody else. Raises AuthError, UnreachableError."""
        identities = self._consensus.state.identities
        holders = [identity for id_ in sorted(nodes) if (identity := identities.get(id_)) is not None]
        await self._consensus.propose(
            seals(
                self._open(),
                {i.id: c.curve_public for i in holders for c in list(i.certificates.values())[-1:]},
            )
        )

    def _open(self) -> CertificateAuthority:
        if self._authority is None:
            id_ = self._credentials.peer.id
            sealed = self._consensus.state.seals.get(id_)
            if sealed is None:
                raise UnreachableError(
                    "This node does not hold the authority's key, as it is no voter.",
                    "Ask the coordinator: 'kos nodes'.",
                )
            context = SealContext(self._credentials.peer.cluster, PURPOSE, id_)
            key = unseal(sealed, self._credentials.curve_secret, context)
            authority = CertificateAuthority.of_key(self._credentials.peer.cluster, key, self._credentials.ca_pem)
            self._authority = authority
        return self._authority


def seals(authority: CertificateAuthority, curve_keys: dict[str, bytes]) -> commands.SealAuthority:
    """The command that gives a copy of the authority's key to each of these nodes (id -> CURVE public key)."""
    key = authority.key_bytes()
    context = {id_: SealContext(authority.cluster, PURPOSE, id_) for id_ in curve_keys}
    return commands.SealAuthority({id_: seal(key, public, context[id_]) for id_, public in curve_keys.items()})


def certificate_of(credentials: Credentials, came_with: str = "") -> commands.Certificate:
    """An identity of this machine as the replicated state enters it."""
    peer = credentials.peer
    return commands.Certificate(
        peer.serial, peer.id, peer.name, peer.role, peer.not_after, peer.curve_public, came_with
    )


def _wish(curve_public: bytes, end_s: float) -> commands.Wish:
    return commands.Wish(secrets.token_hex(ID_BYTES), new_serial(), end_s, curve_public)
