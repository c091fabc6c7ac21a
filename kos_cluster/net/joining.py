"""How a machine without a certificate becomes a member: the exchange on ALPN `kos-join`, both sides of it.

Theory of operation. The server speaks first (`Opening`): its authority's certificate, its cluster, which node
coordinates, and a fresh X25519 key. The joiner checks the authority against the token's hash, and that the server's own
TLS certificate was issued by that authority to a node of that cluster, before it sends anything. If another node
coordinates it goes there, and checks again. Then one `JoinRequest`, one `JoinReply`.

Rules: the joiner's secret reaches only a verified node. It proves that it has the keys that it asks to have certified:
the Ed25519 key by signing its request, the CURVE key by a Diffie-Hellman secret shared with the opening's key.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from zmq.utils import z85

from kos_cluster.core.records import Versions
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, JoinError, KosError, ProtocolError, UnreachableError
from kos_cluster.net import tls
from kos_cluster.net.authority import authority_sha256
from kos_cluster.net.identity import Credentials, Keys, request_curve_key
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.net.outcome import WireError, from_wire, to_wire

HOPS_LIMIT = 4  # servers asked before the coordinator must have been found
Address = tuple[str, int]  # host and control port


class Opening(msgspec.Struct, frozen=True):
    """What a server shows to whoever wants to join. `coordinator` is None when it is the server itself."""

    cluster: str
    node: str
    ca_pem: bytes
    coordinator: Address | None
    challenge: bytes  # X25519 public key of this one connection


class Asked(msgspec.Struct, frozen=True):
    """One identity to be certified: its signing request, and the proof that its CURVE key is the joiner's own."""

    request_pem: bytes
    proof: bytes


class JoinRequest(msgspec.Struct, frozen=True):
    """Two identities are asked for, as the joiner need not know its token's role; it gets those of the role."""

    cluster: str
    token_id: str
    secret: str
    versions: Versions
    node: Asked
    client: Asked
    name: str  # the node name that the machine would like
    user: str
    role: str = ""  # wanted; empty: the token's
    host: str = ""  # the address that the node will have; empty: where the joiner is seen to come from
    port: int = 0  # its control port
    insist: bool = False  # on the name: refuse the join if it is taken, rather than give another


class JoinReply(msgspec.Struct, frozen=True):
    """`node_pem` and `node_name` are empty when the role runs no node."""

    role: Role
    client_pem: bytes
    node_pem: bytes = b""
    node_name: str = ""
    source_host: str = ""
    bootstrap: list[str] = []  # HOST:PORT of control ports
    warnings: list[str] = []
    profile: str = ""  # how fast failures are detected here; empty: as on a LAN


class _Answer(msgspec.Struct, frozen=True):
    reply: JoinReply | None = None
    error: WireError | None = None


@dataclass(frozen=True)
class JoinResult:
    """What a machine has after joining. `node` is None when the token's role runs no node."""

    cluster: str
    ca_sha256: str
    role: Role
    client: Credentials
    node: Credentials | None
    node_name: str
    source_host: str
    bootstrap: list[str]
    warnings: list[str]
    profile: str


# ---- joiner


def join(
    host: str,
    port: int,
    token: JoinToken,
    cluster: str,
    *,
    versions: Versions,
    name: str,
    user: str,
    role: str = "",
    listen_host: str = "",
    listen_port: int = 0,
    insist: bool = False,
) -> JoinResult:
    """Join the cluster through any of its nodes (its control port).

    Raises UnreachableError, JoinError, IncompatibleError, or what the coordinator raised.
    """
    asked = f"{host}:{port}"
    for hop in range(HOPS_LIMIT):
        try:
            stream = tls.connect(host, port, tls.joiner_context())
        except UnreachableError as error:
            if not hop:
                raise
            raise UnreachableError(
                f"The node at {asked} does not coordinate, and who does is not there: {error.message}",
                "Type 'kos up' on the machine that founded the cluster.",
            ) from None
        try:
            opening = _verified_opening(stream, host, port, token, cluster)
            if opening.coordinator in (None, (host, port)):
                node_keys, client_keys = Keys.make(), Keys.make()
                request = JoinRequest(
                    cluster=cluster,
                    token_id=token.id,
                    secret=token.secret,
                    versions=versions,
                    node=_asked(node_keys, opening.challenge),
                    client=_asked(client_keys, opening.challenge),
                    name=name,
                    user=user,
                    role=role,
                    host=listen_host,
                    port=listen_port,
                    insist=insist,
                )
                return _result(_exchange(stream, request), opening, token, node_keys, client_keys)
        except OSError as error:
            raise tls.translated(f"{host}:{port}", error) from None
        finally:
            stream.close()
        host, port = opening.coordinator
    raise JoinError(
        f"The nodes of cluster {cluster!r} do not agree on which of them coordinates.", "Try again in a few seconds."
    )


def _verified_opening(stream: ssl.SSLSocket, host: str, port: int, token: JoinToken, cluster: str) -> Opening:
    where = f"{host}:{port}"
    opening: Opening = _decoded(tls.receive_message(stream), Opening)
    try:
        sha256 = authority_sha256(opening.ca_pem)
    except ValueError:
        sha256 = ""
    if not hmac.compare_digest(sha256, token.ca_sha256):
        raise JoinError(
            f"The token does not belong to the cluster at {where}: its certificate authority is another one. "
            "Nothing was sent to it.",
            "Check the address, or ask for a token of that cluster.",
        )
    try:
        tls.node_of(stream, opening.ca_pem, opening.cluster)
    except AuthError as error:
        raise JoinError(
            f"The node at {where} could not prove that it is one: {error.message} Nothing was sent to it."
        ) from None
    if opening.cluster != cluster:
        raise JoinError(
            f"The cluster at {where} is named {opening.cluster!r}, not {cluster!r}.",
            f"Type 'kos cluster join {opening.cluster} {where}'.",
        )
    return opening


def _asked(keys: Keys, challenge: bytes) -> Asked:
    secret = X25519PrivateKey.from_private_bytes(z85.decode(keys.curve_secret))
    try:
        shared = secret.exchange(X25519PublicKey.from_public_bytes(challenge))
    except ValueError as error:
        raise ProtocolError(f"The node opened the join exchange with a bad key ({error}).") from None
    return Asked(keys.request_pem, _proof(shared, keys.request_pem))


def _exchange(stream: ssl.SSLSocket, request: JoinRequest) -> JoinReply:
    tls.send_message(stream, msgspec.msgpack.encode(request))
    answer: _Answer = _decoded(tls.receive_message(stream), _Answer)
    if answer.error is not None:
        raise from_wire(answer.error)
    if answer.reply is None:
        raise ProtocolError("The node answered neither with certificates nor with an error.")
    return answer.reply


def _result(reply: JoinReply, opening: Opening, token: JoinToken, node_keys: Keys, client_keys: Keys) -> JoinResult:
    cluster, ca_pem = opening.cluster, opening.ca_pem
    return JoinResult(
        cluster=cluster,
        ca_sha256=token.ca_sha256,
        role=reply.role,
        client=client_keys.certified(reply.client_pem, ca_pem, cluster),
        node=node_keys.certified(reply.node_pem, ca_pem, cluster) if reply.node_pem else None,
        node_name=reply.node_name,
        source_host=reply.source_host,
        bootstrap=reply.bootstrap,
        warnings=reply.warnings,
        profile=reply.profile,
    )


# ---- server


def serve(
    stream: ssl.SSLSocket,
    credentials: Credentials,
    coordinator: Address | None,
    answer: Callable[[JoinRequest], JoinReply],
) -> None:
    """Lead one joiner through the exchange. Raises OSError or KosError; the joiner was told of the latter."""
    challenge = X25519PrivateKey.generate()
    opening = Opening(
        cluster=credentials.peer.cluster,
        node=credentials.peer.name,
        ca_pem=credentials.ca_pem,
        coordinator=coordinator,
        challenge=challenge.public_key().public_bytes_raw(),
    )
    tls.send_message(stream, msgspec.msgpack.encode(opening))
    try:
        request: JoinRequest = _decoded(tls.receive_message(stream), JoinRequest)
        for asked in (request.node, request.client):
            _check_proof(asked, challenge)
        reply = answer(request)
    except KosError as error:
        refuse(stream, error)
        raise
    tls.send_message(stream, msgspec.msgpack.encode(_Answer(reply=reply)))


def refuse(stream: ssl.SSLSocket, error: KosError) -> None:
    """Tell the joiner why not."""
    tls.send_message(stream, msgspec.msgpack.encode(_Answer(error=to_wire(error))))


def _check_proof(asked: Asked, challenge: X25519PrivateKey) -> None:
    try:
        curve_public = request_curve_key(x509.load_pem_x509_csr(asked.request_pem))
        shared = challenge.exchange(X25519PublicKey.from_public_bytes(z85.decode(curve_public)))
    except (ValueError, TypeError) as error:
        raise JoinError(f"A signing request is malformed ({error}).") from None
    if not hmac.compare_digest(asked.proof, _proof(shared, asked.request_pem)):
        raise JoinError("The joiner did not prove that it has the CURVE key that it asks to have certified.")


def _proof(shared: bytes, request_pem: bytes) -> bytes:
    return hmac.digest(shared, b"kos-join" + request_pem, hashlib.sha256)


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"A malformed message arrived in the join exchange: {error}.") from None
