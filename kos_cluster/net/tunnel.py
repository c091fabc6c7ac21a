"""Tunnels: a connection of a local socket to a socket on a node, through the node's bulk port. Both ends of them.

Theory of operation. After the TLS handshake on `kos-tunnel` the client asks to `Open` a tunnel to one of a kernel's
sockets, by an id of its own choice; the node connects to the socket, or finds the tunnel that has this id. From then
on both `End`s carry bytes, as `core.resumable` has it, so that a link may break, for days if need be: the client opens
another with the same id, and neither of the two sockets has noticed. While there is no link nothing is read from the
sockets; whoever writes to them waits. A tunnel may also lead to a port of the node's loopback, which a browser is to
see; that one ends with its link, as browsers connect again.

Rules: one thread carries a link, without copying more than `READ_BYTES` ahead. An end that says nothing for
`SILENCE_S` is taken for gone, so a link that died without a word is found on both sides. What goes wrong with a link
ends that link; what goes wrong with a local socket ends the tunnel.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable

import msgspec

from kos_cluster.core.resumable import Resumable
from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, KosError, ProtocolError
from kos_cluster.net import tls
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.outcome import WireError, from_wire, to_wire
from kos_cluster.net.transfers import Session, decoded

READ_BYTES = 1 << 16  # at once, from either socket
BEAT_S = 4.0  # between two frames, if there is nothing to carry
SILENCE_S = 15.0  # after which the other end is taken for gone

log = logging.getLogger(__name__)


class Open(msgspec.Struct, frozen=True):
    """What a client asks for. `received`: how much it has of this tunnel, if that is not new.

    `port`: of the node's loopback, in place of a kernel's socket; 0: none.
    """

    kernel: str
    socket: str
    id: str
    new: bool
    received: int = 0
    port: int = 0


class Opened(msgspec.Struct, frozen=True):
    """The node's answer: how much it has of this tunnel."""

    received: int = 0
    error: WireError | None = None


class Left(enum.Enum):
    """Why an end does not carry a link any more."""

    LINK = "the link"  # it broke; another may follow
    OVER = "over"  # one of the two sockets was closed


class End:
    """One end of a tunnel. The socket is its own from here on."""

    def __init__(self, local: socket.socket) -> None:
        local.setblocking(False)
        self.over = False
        self.stream = Resumable()
        self.arrived = bytearray()  # and not taken by the local socket yet
        self.local = local
        self.turn = 0  # of the link that is to be carried
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._carrying = threading.Lock()
        self._guard = threading.Lock()  # of the descriptors
        self._closed = False

    @property
    def received(self) -> int:
        """Bytes that have come from the other end."""
        return self.stream.received

    def close(self) -> None:
        """End the tunnel. Does not wait; safe in any thread and at any time."""
        self.over = True
        self._wake_carrier()
        self._close_when_left()

    def carry(self, link: ssl.SSLSocket, received: int, hello: Callable[[int], bytes] | None = None) -> Left:
        """Carry bytes until the link breaks, another one comes, or one of the sockets is closed.

        `received`: how much the other end has. What `hello` makes of how much this one has, is sent before all else.
        """
        with self._guard:
            self.turn += 1
            turn = self.turn
        self._wake_carrier()
        try:
            with self._carrying:  # what the link before has brought is counted by now
                if self.over or turn != self.turn:
                    return Left.OVER if self.over else Left.LINK
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.wake)
                greeting = hello(self.stream.received) if hello is not None else b""
                return _Link(self, link, turn, greeting + self.stream.resume(received)).run()
        except OSError:
            return Left.OVER if self.over else Left.LINK
        except ProtocolError as error:
            log.warning("A tunnel is ended: %s", error.message)
            self.over = True
            return Left.OVER
        finally:
            self._close_when_left()

    def _wake_carrier(self) -> None:
        with self._guard:
            if not self._closed:
                os.eventfd_write(self.wake, 1)

    def _close_when_left(self) -> None:
        if self.over and self._carrying.acquire(blocking=False):
            try:
                with self._guard:
                    if not self._closed:
                        self._closed = True
                        self.local.close()
                        os.close(self.wake)
            finally:
                self._carrying.release()


class _Link:
    """An end while it has a link. Used by one thread."""

    def __init__(self, end: End, link: ssl.SSLSocket, turn: int, first: bytes) -> None:
        self._end = end
        self._turn = turn
        self._stream, self._local, self._arrived = end.stream, end.local, end.arrived
        self._link = link
        self._out = bytearray(first)
        self._heard_s = self._told_s = time.monotonic()
        self._poll = select.poll()
        self._poll.register(end.wake, select.POLLIN)
        link.setblocking(False)

    def run(self) -> Left:
        """Raises OSError or ProtocolError when the link breaks."""
        while not self._end.over and self._end.turn == self._turn:
            self._beat(time.monotonic())
            self._watch(self._link, select.POLLIN | (select.POLLOUT if self._out else 0))
            reads = select.POLLIN if self._stream.room and not self._out else 0
            self._watch(self._local, reads | (select.POLLOUT if self._arrived else 0))
            ready = dict(self._poll.poll(0 if self._link.pending() else BEAT_S * 1000))
            if self._end.wake not in ready:
                self._move(ready)
        if not self._end.over:
            return Left.LINK
        self._say_end()
        return Left.OVER

    def _watch(self, connection: socket.socket, events: int) -> None:
        """Ask for these events; a socket that none is asked of is left out, for its hanging up would be told anyway."""
        if events:
            self._poll.register(connection, events)
        else:
            with contextlib.suppress(KeyError):  # it was left out already
                self._poll.unregister(connection)

    def _move(self, ready: dict[int, int]) -> None:
        if ready.get(self._link.fileno()) or self._link.pending():
            self._from_link()
        if self._arrived:
            self._to_local()
        if ready.get(self._local.fileno(), 0) & ~select.POLLOUT:
            self._from_local()
        if self._stream.acknowledgement_due:
            self._tell(self._stream.acknowledge())
        self._to_link()

    def _beat(self, now: float) -> None:
        if now - self._heard_s > SILENCE_S:
            raise TimeoutError("the other end of the tunnel is silent")
        if now - self._told_s >= BEAT_S and not self._out:
            self._tell(self._stream.acknowledge())

    def _from_link(self) -> None:
        try:
            data = self._link.recv(READ_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if not data:
            raise ConnectionError("the other end closed the link")
        self._heard_s = time.monotonic()
        self._arrived += self._stream.receive(data)
        if self._stream.ended:
            self._last_words()
            self._end.over = True

    def _to_link(self) -> None:
        while self._out:
            try:
                sent = self._link.send(memoryview(self._out)[:READ_BYTES])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self._out[:sent]

    def _from_local(self) -> None:
        if not self._stream.room:
            return
        try:
            data = self._local.recv(min(READ_BYTES, self._stream.room))
        except BlockingIOError:
            return
        except OSError:  # reset: as good as closed
            data = b""
        if data:
            self._tell(self._stream.send(data))
        else:
            self._end.over = True

    def _to_local(self) -> None:
        try:
            sent = self._local.send(memoryview(self._arrived)[:READ_BYTES])
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            self._end.over = True
            return
        del self._arrived[:sent]
        self._stream.taken(sent)

    def _last_words(self) -> None:
        """Give the local socket what came before the end."""
        self._local.settimeout(BEAT_S)
        with contextlib.suppress(OSError):  # it is closed, or takes nothing
            self._local.sendall(self._arrived)

    def _say_end(self) -> None:
        self._tell(self._stream.end())
        self._link.settimeout(BEAT_S)
        with contextlib.suppress(OSError):  # then it learns so when it opens this tunnel again
            self._link.sendall(self._out)
            self._link.shutdown(socket.SHUT_WR)
            until_s = time.monotonic() + BEAT_S  # to close with something unread would drop what is on its way
            while self._link.recv(READ_BYTES) and time.monotonic() < until_s:
                continue

    def _tell(self, frame: bytes) -> None:
        self._out += frame
        self._told_s = time.monotonic()


def dial(host: str, port: int, credentials: Credentials, wanted: Open) -> tuple[ssl.SSLSocket, int]:
    """A link to the node whose control port this is, and how much it has of the tunnel.

    Raises UnreachableError, or what the node raised: then there is no such tunnel (any more).
    """
    session = Session(host, port, credentials, tls.ALPN_TUNNEL)
    try:
        tls.send_message(session.stream, msgspec.msgpack.encode(wanted))
        opened: Opened = decoded(tls.receive_message(session.stream), Opened)
    except OSError as error:
        session.stream.close()
        raise tls.translated(session.where, error) from None
    except BaseException:
        session.stream.close()
        raise
    if opened.error is not None:
        session.stream.close()
        raise from_wire(opened.error)
    return session.stream, opened.received


def refuse(stream: ssl.SSLSocket, error: KosError) -> None:
    """Tell the peer that it gets no tunnel."""
    tls.send_message(stream, msgspec.msgpack.encode(Opened(error=to_wire(error))))


def serve(stream: ssl.SSLSocket, peer: Peer, find: Callable[[Peer, Open], End]) -> None:
    """Carry a verified peer's link. Raises OSError, or KosError, which the peer was told of."""
    try:
        wanted: Open = decoded(tls.receive_message(stream), Open)
        if not may(peer.role, Command.SUBMIT):
            what = f"reach port {wanted.port} of a node" if wanted.port else "use a kernel"
            raise AuthError(f"{peer} may not {what}: its role does not allow to submit work.")
        end = find(peer, wanted)
    except KosError as error:
        refuse(stream, error)
        raise
    try:
        end.carry(stream, wanted.received, lambda received: tls.framed(msgspec.msgpack.encode(Opened(received))))
    finally:
        if wanted.port:
            end.close()
