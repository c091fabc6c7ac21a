"""TLS 1.3 over blocking sockets: contexts, opening and closing, length-prefixed messages.

Rules: TLS 1.3 only. Every wait has a deadline or a time-out. Certificates are checked twice: by OpenSSL against the
authority in the handshake, then by `verify_peer` for cluster and role. `ALPN_JOIN` is the one protocol where the client
shows no certificate. On every protocol the server speaks first: in TLS 1.3 a client learns only from the first thing
that it reads whether its certificate was taken.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
import time

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, KosError, ProtocolError, UnreachableError
from kos_cluster.net.identity import Credentials, Peer, verify_peer

ALPN_PRESENT = "kos-present"
ALPN_BULK = "kos-bulk"
ALPN_JOIN = "kos-join"
ALPN_TUNNEL = "kos-tunnel"
ALPN_GANG = "kos-gang"  # between ranks, on ports of their own
CONNECT_TIMEOUT_S = 5.0
HANDSHAKE_TIMEOUT_S = 5.0
IDLE_TIMEOUT_S = 30.0  # without a byte moving
EXCHANGE_TIMEOUT_S = 15.0  # for a whole message to come in, however slowly
MESSAGE_LIMIT_BYTES = 16 << 10  # of one message, and so of all that a peer without a certificate may send
CONTEXTS_LIMIT = 8
LENGTH_BYTES = 4


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """Asks for a client certificate; whoever shows none gets as far as ALPN, where only a join may go on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_common(context, credentials, [ALPN_PRESENT, ALPN_BULK, ALPN_TUNNEL, ALPN_JOIN])
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # no resumption: each connection is verified afresh
    return context


@functools.lru_cache(maxsize=CONTEXTS_LIMIT)
def rank_context(credentials: Credentials) -> ssl.SSLContext:
    """For a rank that others connect to, with mutual certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _set_common(context, credentials, [ALPN_GANG])
    context.num_tickets = 0
    return context


@functools.lru_cache(maxsize=CONTEXTS_LIMIT)
def client_context(credentials: Credentials, alpn: str) -> ssl.SSLContext:
    """Mutual certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a node is known by its certificate's URI and role, not by a DNS name
    _set_common(context, credentials, [alpn])
    return context


def joiner_context() -> ssl.SSLContext:
    """For a client that has no certificate and does not know the authority yet; it must check what it is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_JOIN])
    return context


def connect(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """An open TLS connection to the node whose control port this is: TLS is on the next one.

    Raises UnreachableError, or AuthError when a certificate is refused.
    """
    where = f"{host}:{port}"
    try:
        plain = socket.create_connection((host, port + 1), CONNECT_TIMEOUT_S)
    except OSError as error:
        raise _unreachable(where, error) from None
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(HANDSHAKE_TIMEOUT_S)
        stream = context.wrap_socket(plain)
        stream.settimeout(IDLE_TIMEOUT_S)
        return stream
    except OSError as error:
        plain.close()
        raise translated(where, error) from None


def translated(where: str, error: OSError) -> KosError:
    """The KOS error for what a socket raised."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthError(
            f"The node at {where} has no certificate of this cluster's authority ({error.verify_message}).",
            "Check the address; another cluster may be listening there.",
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return AuthError(
            f"The node at {where} refused this certificate ({error.reason}).", "Join again with a new token."
        )
    return _unreachable(where, error)


def node_of(stream: ssl.SSLSocket | ssl.SSLObject, ca_pem: bytes, cluster: str) -> Peer:
    """The verified node at the other end. Raises AuthError; also when it is a peer that is not a node."""
    peer = verify_peer(stream.getpeercert(binary_form=True) or b"", ca_pem, cluster)
    if peer.role is not Role.NODE:
        raise AuthError(f"{peer.name} answers as a node, but its certificate says {peer.role.value}.")
    return peer


def framed(data: bytes) -> bytes:
    """A message as it travels: behind its length."""
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


def send_message(stream: ssl.SSLSocket, data: bytes) -> None:
    """One length-prefixed message."""
    stream.sendall(framed(data))


def receive_message(stream: ssl.SSLSocket, timeout_s: float = EXCHANGE_TIMEOUT_S) -> bytes:
    """One message, whole within the time. Raises ProtocolError when too large, OSError when late."""
    deadline = time.monotonic() + timeout_s
    size = int.from_bytes(_receive_exactly(stream, LENGTH_BYTES, deadline), "big")
    if size > MESSAGE_LIMIT_BYTES:
        raise ProtocolError(f"A message of {size} bytes is over the limit of {MESSAGE_LIMIT_BYTES} bytes.")
    return _receive_exactly(stream, size, deadline)


def receive_into(stream: ssl.SSLSocket, view: memoryview) -> None:
    """Fill a buffer. Raises OSError when the other side ends before."""
    while view:
        count = stream.recv_into(view)
        if not count:
            raise ConnectionError("the other side closed the connection")
        view = view[count:]


def _receive_exactly(stream: ssl.SSLSocket, size: int, deadline: float) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the message did not come in time")
        stream.settimeout(left)
        count = stream.recv_into(view)
        if not count:
            raise ConnectionError("the other side closed the connection")
        view = view[count:]
    stream.settimeout(IDLE_TIMEOUT_S)
    return bytes(data)


def _unreachable(where: str, error: OSError) -> UnreachableError:
    return UnreachableError(
        f"No KOS node answers at {where} ({_told(error)}).",
        "Check the address, that the node runs ('kos up'), and that no firewall blocks its port and the next one.",
    )


def _told(error: OSError) -> str:
    """The system's words for what went wrong; of OpenSSL's, those that say something to a user."""
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    if error.reason in ("WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "NO_APPLICATION_PROTOCOL"):
        return "what listens there speaks another protocol"
    return (error.reason or "the connection broke off").replace("_", " ").lower()


def _set_common(context: ssl.SSLContext, credentials: Credentials, protocols: list[str]) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.ca_pem.decode())
    context.set_alpn_protocols(protocols)
    # OpenSSL reads a chain only from a path; this one exists in memory alone.
    fd = os.memfd_create("kos-credentials", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(credentials.cert_pem + credentials.key_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
