"""One rank's end of all its links: it listens, opens links when they are first used, and says what it is doing.

Theory of operation. A rank listens before its owner tells the others where; two listeners, for ranks of its node and of
others, are served by one thread. Whoever connects says in a `Hello` which rank it is, with the epoch's secret, and what
it wants: to send messages, or to know what this rank is doing. A refusal is answered in words.

Rules. Who does not show a certificate of the cluster (between nodes) or is another user (within one), or does not know
the secret, gets no message of the gang. At most `GREETING_LIMIT` connections are greeted at once, each for
`GREETING_TIMEOUT_S`.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, KosError, RankGoneError
from kos_cluster.net import tls, unixsockets
from kos_cluster.net.identity import Credentials, verify_peer
from kos_cluster.tasks.comm import links
from kos_cluster.tasks.comm.table import Address, Table
from kos_cluster.tasks.conditions import Condition

log = logging.getLogger(__name__)

GREETING_LIMIT = 64  # connections that have not said yet who they are; further ones wait
GREETING_TIMEOUT_S = 5.0
HELLO_LIMIT_BYTES = 1 << 10
CONNECT_TIMEOUT_S = 10.0
BACKLOG = 1024  # every rank may connect at once
ACCEPT_PAUSE_S = 0.2  # when the system has no descriptor left
LINK_WAIT_S = 0.5  # between two looks at whether a rank still lives that has not connected
STATUS_TIMEOUT_S = 2.0
CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: pid, uid, gid
TAKEN = b"\0"  # the answer to a hello that is not refused; a refusal is text


class Hello(msgspec.Struct, frozen=True):
    """The first message on a connection."""

    secret: bytes
    rank: int
    asks: bool = False  # only what this rank is doing


class Doing(msgspec.Struct, frozen=True):
    """What a rank is doing: how many collectives it has called, the last of them, and whether it still is in it."""

    serial: int = 0
    call: str = ""
    inside: bool = False


@dataclass(frozen=True)
class Listeners:
    """The sockets of a rank, bound before anybody is told of them. `held` keeps `master_port` from being given away."""

    remote: socket.socket
    local: socket.socket
    held: socket.socket

    @classmethod
    def open(cls, host: str) -> Listeners:
        """On the address that the node listens on. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        remote = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.bind(f"\0kos-{secrets.token_hex(16)}")
        local.listen(BACKLOG)
        held = socket.socket(family, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # whoever listens there does the same
        held.bind((host, 0))
        return cls(remote, local, held)

    def address(self) -> Address:
        local = self.local.getsockname()
        return Address(self.remote.getsockname()[1], local[1:].decode(), self.held.getsockname()[1])

    def close(self) -> None:
        for listener in (self.remote, self.local, self.held):
            listener.close()


class Endpoint:
    """The links of one rank. Links are used by one thread at a time; `doing` is set by the communicator."""

    def __init__(self, rank: int, table: Table, listeners: Listeners, credentials: Callable[[], Credentials]) -> None:
        self.rank = rank
        self.table = table
        self.doing = Doing()
        self._listeners = listeners
        self._load_credentials = credentials
        self._credentials: Credentials | None = None
        self._near = frozenset(table.neighbours(rank))
        self._out: dict[int, links.Outgoing] = {}
        self._in: dict[int, links.Incoming] = {}
        self._arrived = Condition()
        self._greeting = threading.Semaphore(GREETING_LIMIT)
        self._closed = False
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="kos-rank", daemon=True)
        self._thread.start()

    def named(self, rank: int) -> str:
        """A rank for people."""
        return f"rank {rank} (node {self.table.places[rank].name})"

    # ---- links

    def outgoing(self, rank: int) -> links.Outgoing:
        """The link to a rank. Raises RankGoneError when it cannot be opened."""
        link = self._out.get(rank)
        if link is None:
            stream = self._connect(rank, CONNECT_TIMEOUT_S)
            if isinstance(stream, ssl.SSLSocket):
                self._greet(stream, rank, Hello(self.table.secret, self.rank))
                link = links.StreamOut(stream)
            else:
                ring = links.make_ring()
                self._greet(stream, rank, Hello(self.table.secret, self.rank), ring)
                link = links.SharedOut(stream, ring)
            with self._arrived:
                self._out[rank] = link
                if self._closed:
                    link.close()
        return link

    def incoming(self, rank: int, patience_s: float) -> links.Incoming:
        """The link from a rank, once that has opened it. Raises `links.Stalled`, or `links.Gone` if it never will."""
        waited_s = 0.0
        while True:
            with self._arrived:
                if self._arrived.wait_for(lambda: rank in self._in, min(LINK_WAIT_S, patience_s - waited_s)):
                    return self._in[rank]
            waited_s += LINK_WAIT_S
            if waited_s >= patience_s:
                raise links.Stalled
            if self._has_ended(rank):
                with self._arrived:
                    if rank not in self._in:
                        raise links.Gone

    def ask(self, rank: int) -> Doing | None:
        """What another rank is doing; None when it does not answer."""
        try:
            stream = self._connect(rank, STATUS_TIMEOUT_S)
            with stream:
                self._greet(stream, rank, Hello(self.table.secret, self.rank, asks=True))
                return msgspec.msgpack.decode(_receive(stream), type=Doing)
        except (OSError, KosError, msgspec.DecodeError):  # how it fails does not matter to who asks
            return None

    def _has_ended(self, rank: int) -> bool:
        """Whether nobody listens any more where a rank does."""
        try:
            self._plain(rank, STATUS_TIMEOUT_S).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False  # it may be slow to answer
        return False

    def close(self) -> None:
        """Close every link. What was written is still delivered. Safe to call twice."""
        with self._arrived:
            if self._closed:
                return
            self._closed = True
        self._wake.close()
        self._thread.join()
        self._woken.close()
        self._listeners.close()
        for opened in self._out.values():
            opened.close()
        for taken in self._in.values():
            taken.close()

    # ---- connecting

    def _connect(self, rank: int, timeout_s: float) -> links.Socket:
        place = self.table.places[rank]
        try:
            plain = self._plain(rank, timeout_s)
            return plain if rank in self._near else tls.client_context(self._own(), tls.ALPN_GANG).wrap_socket(plain)
        except OSError as error:
            where = "on this node" if rank in self._near else f"at {place.host}:{place.address.port}"
            raise RankGoneError(
                f"Rank {self.rank} cannot reach {self.named(rank)} {where}: {error.strerror or error}.",
                "That rank has ended; or no connection between these nodes is possible on such a port.",
                rank,
            ) from None

    def _plain(self, rank: int, timeout_s: float) -> socket.socket:
        """A connection to where a rank listens. Raises OSError."""
        place = self.table.places[rank]
        if rank not in self._near:
            stream = socket.create_connection((place.host, place.address.port), timeout_s)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return stream
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(timeout_s)
        try:
            stream.connect(f"\0{place.address.local}")
        except OSError:
            stream.close()
            raise
        return stream

    def _greet(self, stream: links.Socket, rank: int, hello: Hello, ring: int | None = None) -> None:
        """Say who we are. Raises RankGoneError when that is refused."""
        try:
            data = tls.framed(msgspec.msgpack.encode(hello))
            if ring is None:
                stream.sendall(data)
            else:
                socket.send_fds(stream, [data], [ring])
            answer = _receive(stream)
        except OSError as error:
            stream.close()
            raise RankGoneError(
                f"Rank {self.rank} cannot speak with {self.named(rank)}: {error.strerror or error}.",
                "That rank has returned before this call, or has ended: the gang's own error tells which.",
                rank,
            ) from None
        if answer != TAKEN:
            stream.close()
            why = answer.decode(errors="replace")
            raise RankGoneError(f"A link of rank {self.rank} to {self.named(rank)} was refused: {why}.", rank=rank)

    def _own(self) -> Credentials:
        if self._credentials is None:
            self._credentials = self._load_credentials()
        return self._credentials

    # ---- serving

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for listener in (self._listeners.remote, self._listeners.local):
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    self._accept(key.fileobj, key.fileobj is self._listeners.local)

    def _accept(self, listener: socket.socket, is_local: bool) -> None:
        """Take one that has come. Those beyond `GREETING_LIMIT` wait in the backlog, as all ranks may come at once."""
        if not self._greeting.acquire(timeout=GREETING_TIMEOUT_S):
            return
        try:
            stream, _ = listener.accept()
        except OSError as error:
            self._greeting.release()
            if not isinstance(error, BlockingIOError | ConnectionAbortedError):  # it has not just gone again
                log.warning("A rank could not accept a connection: %s", error)
                time.sleep(ACCEPT_PAUSE_S)
            return
        stream.settimeout(GREETING_TIMEOUT_S)
        threading.Thread(target=self._welcome, args=(stream, is_local), name="kos-hello", daemon=True).start()

    def _welcome(self, plain: socket.socket, is_local: bool) -> None:
        stream: links.Socket = plain
        ring: int | None = None
        try:
            stream, refusal = self._authenticated(plain, is_local)
            hello, ring = _receive_hello(stream)
            refusal = refusal or self._refused(hello)
            if not refusal and not hello.asks:
                stream.sendall(tls.framed(TAKEN))
                taken, ring = ring, None
                self._take(hello.rank, stream, taken)  # from here on another thread reads it
                return
            with stream:
                stream.sendall(tls.framed(refusal.encode() or TAKEN))
                if not refusal:
                    stream.sendall(tls.framed(msgspec.msgpack.encode(self.doing)))
        except (OSError, KosError, msgspec.MsgspecError):  # nobody that this rank waits for
            stream.close()
        finally:
            if ring is not None:
                os.close(ring)
            self._greeting.release()

    def _take(self, rank: int, stream: links.Socket, ring: int | None) -> None:
        link = links.StreamIn(stream) if ring is None else links.SharedIn(stream, ring)
        with self._arrived:
            self._in[rank] = link
            if self._closed:
                link.close()
            self._arrived.notify_all()

    def _authenticated(self, plain: socket.socket, is_local: bool) -> tuple[links.Socket, str]:
        """The stream, and why its other end is refused, if it is."""
        if is_local:
            found = plain.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
            _, uid, _ = CREDENTIALS.unpack(found)
            return plain, "" if uid == os.getuid() else "it is another user's"
        credentials = self._own()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = tls.rank_context(credentials).wrap_socket(plain, server_side=True)
        try:
            certificate = stream.getpeercert(binary_form=True) or b""
            peer = verify_peer(certificate, credentials.ca_pem, credentials.peer.cluster)
        except AuthError as error:
            return stream, error.message
        return stream, "" if may(peer.role, Command.SUBMIT) else f"the role {peer.role} runs no work"

    def _refused(self, hello: Hello) -> str:
        if not hmac.compare_digest(hello.secret, self.table.secret):
            return f"it is not of epoch {self.table.epoch} of gang {self.table.gang}"
        if not 0 <= hello.rank < len(self.table.places) or (hello.rank in self._in and not hello.asks):
            return "there is no such rank, or it has a link already"
        return ""


def _receive(stream: links.Socket) -> bytes:
    """One length-prefixed message. Raises OSError."""
    size = int.from_bytes(_exactly(stream, tls.LENGTH_BYTES), "big")
    if size > HELLO_LIMIT_BYTES:
        raise OSError("a message is too long")
    return _exactly(stream, size)


def _receive_hello(stream: links.Socket) -> tuple[Hello, int | None]:
    """A hello, and the ring that came with it, if one did. It is so short that it comes in one piece."""
    if isinstance(stream, ssl.SSLSocket):
        return msgspec.msgpack.decode(_receive(stream), type=Hello), None
    data, fds = unixsockets.receive(stream, HELLO_LIMIT_BYTES, 1)
    try:
        return msgspec.msgpack.decode(data[tls.LENGTH_BYTES :], type=Hello), fds[0] if fds else None
    except msgspec.MsgspecError:
        for fd in fds:
            os.close(fd)
        raise


def _exactly(stream: links.Socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = stream.recv(size - len(data))
        if not piece:
            raise ConnectionError("it has closed the link")
        data += piece
    return data
