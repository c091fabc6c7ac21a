"""How a client and a node of one machine prove to each other who they are, over a UNIX socket.

Theory of operation. The node speaks first: a nonce. The client answers with a nonce of its own, its certificate and a
signature over both; the node does the same, or says why not. A signature is one of `net.signatures`, for a purpose that
differs for the two sides, so that neither can be shown back to who made it. Afterwards the connection itself stands for
the identity: nobody else can write into it.

    node    Challenge(nonce)
    client  Claim(nonce, certificate, signature)
    node    Verdict(certificate, signature)   or   Verdict(error)

Rules. Nothing is kept of who does not get through. The whole takes `INTRODUCING_TIMEOUT_S` at most, for which its
callers see.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import TypeVar

import msgspec

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, KosError, ProtocolError
from kos_cluster.net import tls
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.outcome import WireError, from_wire, to_wire
from kos_cluster.net.signatures import Signer, Verifier

INTRODUCING_TIMEOUT_S = 5.0
NONCE_BYTES = 32
_CLIENT, _NODE = "local link, client", "local link, node"

T = TypeVar("T")


class Challenge(msgspec.Struct, frozen=True):
    nonce: bytes


class Claim(msgspec.Struct, frozen=True):
    nonce: bytes
    certificate: bytes  # DER
    signature: bytes


class Verdict(msgspec.Struct, frozen=True):
    certificate: bytes = b""
    signature: bytes = b""
    error: WireError | None = None


async def introduce(stream: socket.socket, credentials: Credentials) -> Peer:
    """The client's side: the verified node. Raises AuthError, ProtocolError, or OSError when the other end is gone."""
    challenge = await _receive(stream, Challenge)
    nonce = secrets.token_bytes(NONCE_BYTES)
    both = _both(challenge.nonce, nonce)
    signer = Signer(credentials, _CLIENT)
    await _send(stream, Claim(nonce, signer.certificate_der, signer.sign(both)))
    verdict = await _receive(stream, Verdict)
    if verdict.error is not None:
        raise from_wire(verdict.error)
    node = _proven(credentials, _NODE, both, verdict.certificate, verdict.signature)
    if node.role is not Role.NODE:
        raise AuthError(f"{node.name} answers as a node, but its certificate says {node.role.value}.")
    return node


async def meet(stream: socket.socket, credentials: Credentials, admitted: Admitted) -> Peer:
    """The node's side: who has come, admitted. It is told why not before that is raised, as in `introduce`."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    await _send(stream, Challenge(nonce))
    claim = await _receive(stream, Claim)
    try:
        both = _both(nonce, claim.nonce)
        peer = _proven(credentials, _CLIENT, both, claim.certificate, claim.signature)
        admitted.admit(peer)
    except KosError as error:
        await _send(stream, Verdict(error=to_wire(error)))
        raise
    signer = Signer(credentials, _NODE)
    await _send(stream, Verdict(signer.certificate_der, signer.sign(both)))
    return peer


def _proven(credentials: Credentials, purpose: str, both: bytes, certificate: bytes, signature: bytes) -> Peer:
    """Whose certificate it is, which signed these nonces. Whether it is revoked is for `Admitted`."""
    verifier = Verifier(credentials.peer.cluster, credentials.ca_pem, purpose, lambda serial: False, limit=1)
    verifier.learn(certificate)
    return verifier.verify(both, signature)


def _both(of_node: bytes, of_client: bytes) -> bytes:
    if len(of_node) != NONCE_BYTES or len(of_client) != NONCE_BYTES:
        raise ProtocolError(f"A nonce does not have {NONCE_BYTES} bytes.")
    return of_node + of_client


async def _send(stream: socket.socket, message: msgspec.Struct) -> None:
    await asyncio.get_running_loop().sock_sendall(stream, tls.framed(msgspec.msgpack.encode(message)))


async def _receive(stream: socket.socket, kind: type[T]) -> T:
    size = int.from_bytes(await _exactly(stream, tls.LENGTH_BYTES), "big")
    if size > tls.MESSAGE_LIMIT_BYTES:
        raise ProtocolError(f"A message of {size} bytes is over the limit of {tls.MESSAGE_LIMIT_BYTES} bytes.")
    try:
        return msgspec.msgpack.decode(await _exactly(stream, size), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"A malformed message arrived: {error}.") from None


async def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(stream, size - len(data))
        if not more:
            raise ConnectionError("the other side closed the connection")
        data += more
    return data
