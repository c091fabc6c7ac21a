"""Showing a node one's certificate, so that it admits one's CURVE key: the first step of every control link.

Theory of operation. TLS 1.3 on the bulk port, ALPN `kos-present`; both sides check the other's certificate, then the
node says with one `Outcome` whether it takes the peer. It runs in the event loop and holds no thread: however many
nodes do not answer, the links to those that do are not kept waiting.

Rules: the node is verified before what it says is heard. The whole takes `PRESENT_TIMEOUT_S` at most.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

from kos_cluster.errors import ProtocolError
from kos_cluster.net import tls
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.transfers import outcome_of

PRESENT_TIMEOUT_S = 5.0
RECEIVED_BYTES = 16 << 10  # at a time

T = TypeVar("T")


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


async def _presented(host: str, port: int, credentials: Credentials) -> Peer:
    with await _connected(host, port + 1) as connection:
        stream = _Stream(connection, tls.client_context(credentials, tls.ALPN_PRESENT))
        await stream.do(stream.tls.do_handshake)
        node = tls.node_of(stream.tls, credentials.ca_pem, credentials.peer.cluster)
        size = int.from_bytes(await stream.exactly(tls.LENGTH_BYTES), "big")
        if size > tls.MESSAGE_LIMIT_BYTES:
            raise ProtocolError(f"A message of {size} bytes is over the limit of {tls.MESSAGE_LIMIT_BYTES} bytes.")
        outcome_of(await stream.exactly(size))
        return node


async def _connected(host: str, port: int) -> socket.socket:
    """A connection to the first of the host's addresses that takes one. Raises OSError."""
    loop = asyncio.get_running_loop()
    problem = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
            return connection
        except OSError as error:
            connection.close()
            problem = error
        except BaseException:
            connection.close()
            raise
    raise problem


class _Stream:
    """TLS over a socket of the loop. The loop's own tells of a broken connection before what came ahead of that."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._connection = connection
        self._came, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._came, self._to_send)

    async def do(self, step: Callable[[], T]) -> T:
        """Take a step of TLS, and move bytes until it can be taken. Raises OSError."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await loop.sock_recv(self._connection, RECEIVED_BYTES)
                self._came.write(data) if data else self._came.write_eof()
            else:
                await self._flush()
                return result

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self.do(functools.partial(self.tls.read, size - len(data)))
            if not more:
                raise ConnectionError("the other side closed the connection")
            data += more
        return data

    async def _flush(self) -> None:
        if self._to_send.pending:
            await asyncio.get_running_loop().sock_sendall(self._connection, self._to_send.read())
