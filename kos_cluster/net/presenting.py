"""Showing a node one's certificate, so that it admits one's CURVE key: the first step of every control link.

Theory of operation. TLS 1.3 on the bulk port, ALPN `kos-present`; both sides check the other's certificate, then the
node says with one `Outcome` whether it takes the peer. It runs in the event loop and holds no thread: however many
nodes do not answer, the links to those that do are not kept waiting.

Rules: the node is verified before what it says is heard. The whole takes `PRESENT_TIMEOUT_S` at most.
"""

from __future__ import annotations

import asyncio
import ssl

from kos_cluster.errors import ProtocolError
from kos_cluster.net import tls
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.transfers import outcome_of

PRESENT_TIMEOUT_S = 5.0


async def present(host: str, port: int, credentials: Credentials) -> Peer:
    """The verified identity of the node whose control port this is.

    Raises UnreachableError, or AuthError when either side does not accept the other.
    """
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(PRESENT_TIMEOUT_S):
            return await _presented(host, port, credentials)
    except TimeoutError as error:
        raise tls.translated(where, TimeoutError(str(error) or "timed out")) from None
    except OSError as error:
        raise tls.translated(where, error) from None
    except EOFError:
        raise tls.translated(where, ConnectionError("the other side closed the connection")) from None


async def _presented(host: str, port: int, credentials: Credentials) -> Peer:
    context = tls.client_context(credentials, tls.ALPN_PRESENT)
    reader, writer = await asyncio.open_connection(host, port + 1, ssl=context)
    try:
        stream: ssl.SSLObject = writer.get_extra_info("ssl_object")
        node = tls.node_of(stream, credentials.ca_pem, credentials.peer.cluster)
        outcome_of(await _message(reader))
        return node
    finally:
        writer.transport.abort()


async def _message(reader: asyncio.StreamReader) -> bytes:
    size = int.from_bytes(await reader.readexactly(tls.LENGTH_BYTES), "big")
    if size > tls.MESSAGE_LIMIT_BYTES:
        raise ProtocolError(f"A message of {size} bytes is over the limit of {tls.MESSAGE_LIMIT_BYTES} bytes.")
    return await reader.readexactly(size)
