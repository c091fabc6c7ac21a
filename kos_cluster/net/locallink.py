"""Control links within one machine: a UNIX socket in the node's private folder, `LocalServer` at the node, `LocalLink`
at the client.

They carry the messages of `net.wire` as `net.transport` does over the network, with the same limits and one more, of
the bytes that wait to be sent (`net.messagestream`); what either tells its user is the same. Four hand-overs to threads
of ZeroMQ and the encryption are not needed here: what is written goes from one process to the other within the kernel,
and wakes it.

Rules:
- Everything here belongs to the thread of the loop.
- Only processes of the node's own user get in, which could read its keys anyway. Who speaks is nevertheless what a
  certificate has proved (`net.introducing`); it is looked up in `Admitted` for every message, as on the network.
- A connection is one link: its end is the link's end. A node that dies is noticed at once; one that stands still is
  noticed by its silence, as on the network.
- At most `CONNECTIONS_LIMIT` at once; those beyond are closed, and find their way over the network.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kos_cluster.errors import AuthError, KosError, UnreachableError
from kos_cluster.net import unixsockets, wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.introducing import INTRODUCING_TIMEOUT_S, introduce, meet
from kos_cluster.net.messagestream import MessageStream
from kos_cluster.net.transport import LINGER_MS, LinkState, Origin, Payload, decoded, framed

CONNECTIONS_LIMIT = 1024  # of one node, those that are not through yet included

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Connection:
    key: bytes  # the CURVE key of the peer's certificate, under which it is admitted
    stream: MessageStream


class LocalServer:
    """A node's end. Made and used in the thread of the running loop."""

    def __init__(
        self,
        credentials: Credentials,
        admitted: Admitted,
        on_message: Callable[[Origin, wire.Message, memoryview], None],
    ) -> None:
        self.dropped = 0  # messages and connections refused so far
        self._credentials = credentials
        self._admitted = admitted
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._path: Path | None = None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.TimerHandle | None = None  # after a pause
        self._meeting: set[asyncio.Task[None]] = set()
        self._connections: dict[int, _Connection] = {}
        self._numbers = itertools.count(1)

    def bind(self, path: Path) -> None:
        """Listen. Raises OSError."""
        self._listening = unixsockets.listen(path)
        self._path = path
        self._accept_on()

    def send(self, route: int, message: wire.Message, payload: Payload = b"") -> bool:
        """Queue a message for the peer behind a route. False when it is gone or its queue is full."""
        frames = framed(message, payload)
        connection = self._connections.get(route)
        return connection is not None and connection.stream.send(*frames)

    def renewed(self, credentials: Credentials) -> None:
        """Show another certificate, of the same keys, from now on."""
        self._credentials = credentials

    def cut_denied(self) -> None:
        """Cut off those that are not admitted any more."""
        for route, connection in list(self._connections.items()):
            if self._admitted.get(connection.key) is None:
                self._expel(route)

    def close(self) -> None:
        """Stop. What was sent goes out for up to `LINGER_MS` more."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._listening is not None and self._path is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
            self._path.unlink(missing_ok=True)
        for meeting in self._meeting:
            meeting.cancel()
        deadline = time.monotonic() + LINGER_MS / 1e3
        for connection in self._connections.values():
            connection.stream.close(deadline - time.monotonic())
        self._connections.clear()

    # ---- inside

    def _accept_on(self) -> None:
        assert self._listening is not None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        assert self._listening is not None
        try:
            stream, _ = self._listening.accept()
        except OSError as error:
            _log.warning("A connection on this machine could not be accepted: %s", error)
            self._loop.remove_reader(self._listening)  # it would be tried without a pause
            self._accepting = self._loop.call_later(unixsockets.ACCEPT_PAUSE_S, self._accept_on)
            return
        _, user = unixsockets.peer_of(stream)
        if user != os.getuid() or len(self._connections) + len(self._meeting) >= CONNECTIONS_LIMIT:
            _log.warning("A process of user %d was sent away, with %d connections here.", user, len(self._connections))
            self.dropped += 1
            stream.close()
            return
        stream.setblocking(False)
        meeting = self._loop.create_task(self._meet(stream), name="meet")
        self._meeting.add(meeting)
        meeting.add_done_callback(self._meeting.discard)

    async def _meet(self, stream: socket.socket) -> None:
        try:
            async with asyncio.timeout(INTRODUCING_TIMEOUT_S):
                peer = await meet(stream, self._credentials, self._admitted)
        except (KosError, OSError) as error:
            _log.info("A process of this machine was not let in: %s", error)
            self.dropped += 1
            stream.close()
        except BaseException:
            stream.close()
            raise
        else:
            route = next(self._numbers)
            said = functools.partial(self._said, route, peer.curve_public)
            ended = functools.partial(self._ended, route)
            self._connections[route] = _Connection(peer.curve_public, MessageStream(stream, said, ended))

    def _said(self, route: int, key: bytes, header: bytes, rest: bytes) -> None:
        peer = self._admitted.get(key)
        message, payload = _decoded(header, rest)
        if peer is None or message is None:
            self.dropped += 1
            if peer is None:
                self._expel(route)
            return
        self._on_message(Origin(peer, route, None), message, payload)

    def _ended(self, route: int) -> None:
        del self._connections[route]

    def _expel(self, route: int) -> None:
        self.send(route, wire.Expelled())
        connection = self._connections.pop(route, None)
        if connection is not None:
            connection.stream.close()


class LocalLink:
    """A control link to a node of this machine. Made by `open`, used in the thread of the running loop.

    `on_state` is told "up" when it can be used, "closed" when the connection is lost, and "refused" when the node does
    not admit this certificate any more. After either a new link must be opened.
    """

    def __init__(
        self,
        stream: socket.socket,
        peer: Peer,
        on_message: Callable[[wire.Message, memoryview], None],
        on_state: Callable[[LinkState], None],
    ) -> None:
        self.dropped = 0
        self.state: LinkState = "down"
        self.peer = peer
        self._on_message = on_message
        self._on_state = on_state
        self._stream = MessageStream(stream, self._said, functools.partial(self._become, "closed"))
        self._opening = asyncio.get_running_loop().call_soon(self._become, "up")

    @classmethod
    async def open(
        cls,
        path: Path,
        credentials: Credentials,
        on_message: Callable[[wire.Message, memoryview], None],
        on_state: Callable[[LinkState], None],
    ) -> LocalLink:
        """A link to the node that listens there.

        Raises OSError when nobody does, AuthError or ProtocolError when either does not accept the other,
        UnreachableError when it does not answer.
        """
        stream = unixsockets.connect(path)
        try:
            _, user = unixsockets.peer_of(stream)
            if user != os.getuid():
                raise AuthError(f"The socket {path} is one of another user.", "See who else can write to that folder.")
            async with asyncio.timeout(INTRODUCING_TIMEOUT_S):
                peer = await introduce(stream, credentials)
        except TimeoutError:
            stream.close()
            raise UnreachableError(
                f"The node at {path} did not answer within {INTRODUCING_TIMEOUT_S:.0f} s.", "Is its process stopped?"
            ) from None
        except BaseException:
            stream.close()
            raise
        return cls(stream, peer, on_message, on_state)

    def send(self, message: wire.Message, payload: Payload = b"") -> bool:
        """Queue a message. False when the link is not up or the queue is full."""
        frames = framed(message, payload)
        return self.state == "up" and self._stream.send(*frames)

    def close(self) -> None:
        """Disconnect. What was sent goes out for up to `LINGER_MS` more. `on_state` is not called."""
        self._opening.cancel()
        self._stream.close(LINGER_MS / 1e3 if self.state == "up" else 0.0)
        self.state = "down"

    def _said(self, header: bytes, rest: bytes) -> None:
        message, payload = _decoded(header, rest)
        if message is None:
            self.dropped += 1
        elif isinstance(message, wire.Expelled):
            self._become("refused")
        else:
            self._on_message(message, payload)

    def _become(self, state: LinkState) -> None:
        if self.state not in ("closed", "refused"):
            self.state = state
            self._on_state(state)


def _decoded(header: bytes, rest: bytes) -> tuple[wire.Message | None, memoryview]:
    size = len(header) + len(rest)
    if size > wire.MESSAGE_LIMIT_BYTES:
        _log.warning("Dropped a message of %d bytes, which is over the limit.", size)
        return None, memoryview(b"")
    return decoded(header, memoryview(rest) if rest else None)
