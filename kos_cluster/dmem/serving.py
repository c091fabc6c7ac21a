"""The arena's end of its socket: processes of this machine come here to write blocks and to read them.

Theory of operation. The socket lies in the arena's folder, which only the daemon's user can enter; the kernel says who
is at the other end (SO_PEERCRED), and other users are sent away. A connection is a holder. It ends, and has released
all, when it is closed or when the process that opened it ends (pidfd): a fork of that process may hold the connection
open, but not the blocks.

Rules: a connection that sends what is no message, or does not read its answers, is closed. Everything is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable

import msgspec

from kos_cluster.dmem import protocol
from kos_cluster.dmem.segments import Segment
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import KosError, LimitError
from kos_cluster.net import unixsockets

log = logging.getLogger(__name__)

CONNECTIONS_LIMIT = 512  # processes at once
REQUESTS_LIMIT = 64  # of one connection that wait for their answers
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(protocol.ToArena).decode

Obtain = Callable[[str, str, int], Awaitable[Segment]]  # (block, home, holder): hold it, wherever it is


class Serving:
    """Accepts connections in the daemon's loop. `node` is its id; `obtain` holds a block for one that asks."""

    def __init__(self, node: str, store: BlockStore, obtain: Obtain) -> None:
        self._node = node
        self._store = store
        self._obtain = obtain
        self._loop = asyncio.get_running_loop()
        self._connections: set[_Connection] = set()
        self._listening = unixsockets.listen(store.folder / protocol.SOCKET, kind=socket.SOCK_SEQPACKET)
        self._accepting: asyncio.TimerHandle | None = None  # after a pause
        self._accept_on()

    def close(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for connection in list(self._connections):
            connection.close()

    def _accept_on(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            stream, _ = self._listening.accept()
        except OSError as error:
            log.warning("The arena could not accept a connection: %s", error)
            self._loop.remove_reader(self._listening)  # it would be tried without a pause
            self._accepting = self._loop.call_later(unixsockets.ACCEPT_PAUSE_S, self._accept_on)
            return
        pid, uid = unixsockets.peer_of(stream)
        if uid != os.getuid():
            log.warning("Process %d was sent away from the arena, as it is of another user, %d.", pid, uid)
            stream.close()
            return
        if len(self._connections) >= CONNECTIONS_LIMIT:
            log.warning("Process %d was sent away from the arena, which has %d already.", pid, CONNECTIONS_LIMIT)
            stream.close()
            return
        stream.setblocking(False)
        closed = self._connections.discard
        self._connections.add(_Connection(stream, pid, self._node, self._store, self._obtain, closed))


class _Connection:
    """One process."""

    def __init__(
        self,
        stream: socket.socket,
        pid: int,
        node: str,
        store: BlockStore,
        obtain: Obtain,
        closed: Callable[[_Connection], None],
    ) -> None:
        self._stream = stream
        self._node = node
        self._store = store
        self._obtain = obtain
        self._closed = closed
        self._open = True
        self._holder = store.new_holder()
        self._requests: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._loop.add_reader(stream, self._receive)
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:  # it has ended, which the stream tells too, or is of another pid namespace
            log.info("The process %d at the arena cannot be followed: %s", pid, error)
        else:
            self._loop.add_reader(self._pidfd, self.close)

    def close(self) -> None:
        """The process has ended, or is sent away."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._stream)
        self._stream.close()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        for request in self._requests:
            request.cancel()
        self._store.holder_gone(self._holder)
        self._closed(self)

    def _receive(self) -> None:
        try:
            packet = self._stream.recv(protocol.PACKET_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return
        try:
            message = _decode(packet)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("A process sent the arena what is no message (%s).", error)
            self.close()
            return
        if isinstance(message, protocol.Release):
            self._store.release(message.block, self._holder)
            return
        if isinstance(message, protocol.PassedOn):
            self._store.passed_on(message.block)
            return
        request = self._loop.create_task(self._answer(message), name="arena-request")
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)

    async def _answer(self, message: protocol.Create | protocol.Seal | protocol.Hold | protocol.Share) -> None:
        try:
            if len(self._requests) > REQUESTS_LIMIT:
                raise LimitError(f"A process has {REQUESTS_LIMIT} requests at the arena.", "Wait for answers.")
            match message:
                case protocol.Create(serial, block, size_bytes):
                    segment = await self._store.create(block, size_bytes, self._holder)
                    self._give(protocol.Given(serial, segment.size_bytes), segment)
                case protocol.Seal(serial, block):
                    self._store.seal(block, self._holder)
                    self._send(protocol.Sealed(serial, self._node))
                case protocol.Hold(serial, block, home):
                    segment = await self._obtain(block, home, self._holder)
                    self._give(protocol.Given(serial, segment.size_bytes), segment)
                case protocol.Share(serial, block):  # what is not here the other gets by itself
                    segment = await self._store.hold(block, self._holder)
                    keepers = self._store.keepers(block)[: protocol.KEEPERS_LIMIT]
                    self._give(protocol.Shared(serial, segment.size_bytes, keepers), segment)
        except KosError as error:
            self._send(protocol.Refused(message.serial, type(error).__name__, error.message, error.hint))
        except Exception:  # a defect: the loop reports it, and the process must not wait for ever
            self.close()
            raise

    def _give(self, answer: protocol.Given | protocol.Shared, segment: Segment) -> None:
        if self._open:  # else it holds nothing any more, and the descriptor may be another's
            self._send(answer, [segment.fd])

    def _send(self, message: protocol.FromArena, descriptors: list[int] | None = None) -> None:
        if not self._open:
            return
        try:
            socket.send_fds(self._stream, [_encode(message)], descriptors or [])
        except OSError as error:
            log.info("A process does not take the arena's answers: %s", error)
            self.close()
