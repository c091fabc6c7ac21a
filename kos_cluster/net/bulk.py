"""The bulk port: one TLS 1.3 port to present certificates, to move parts and results, for the tunnels to kernels, and
to join. ALPN decides which.

Theory of operation. A thread accepts; each connection is served by a thread of its own, at most `CONNECTIONS_LIMIT` at
once: further ones wait in the kernel's backlog. Tunnels, which last, are counted apart. Connections that have not
proved who they are (a handshake, a join) end within seconds, and one source has at most `UNPROVEN_LIMIT` of them, so
that a flood leaves room for other sources.

Rules: without a certificate that verifies, a peer gets nothing but the join exchange. No ALPN of ours: closed. What
goes wrong with a connection ends that connection, and is counted in `dropped`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from kos_cluster.errors import AuthError, JoinError, KosError, LimitError, PortTakenError, UsageError
from kos_cluster.net import joining, tls, transfers, tunnel
from kos_cluster.net.identity import Credentials, Peer, verify_issued, verify_peer
from kos_cluster.net.outcome import to_wire
from kos_cluster.net.transfers import Outcome, get_kept, get_result, put_part

__all__ = ["BulkServer", "Handler", "get_kept", "get_result", "put_part"]

CONNECTIONS_LIMIT = 128
TUNNELS_LIMIT = 512  # links of tunnels, which last; some five to ten for each client of a kernel
UNPROVEN_LIMIT = 48  # of one source at once
BACKLOG = 256
JOINS_LIMIT = 30  # of one source in `JOIN_WINDOW_S`
JOIN_WINDOW_S = 60.0
SOURCES_LIMIT = 4096  # whose joins are remembered
ACCEPT_PAUSE_S = 0.1  # when the process has no descriptor left
CLOSE_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class Handler(transfers.Store, Protocol):
    """What the node does. Called from several threads at once; refusals are raised as KosError and reach the peer."""

    def presented(self, peer: Peer, /) -> None:
        """A peer's certificate was verified on a new connection. Raises AuthError to send it away, say when revoked."""

    def join(self, request: joining.JoinRequest, source_host: str, /) -> joining.JoinReply:
        """Answer a joiner; only asked of the coordinator. Raises JoinError."""

    def tunnel(self, peer: Peer, wanted: tunnel.Open, /) -> tunnel.End:
        """The node's end of a tunnel to a kernel or port. Raises when there is none, or when it is not this peer's."""

    def coordinator(self) -> joining.Address | None:
        """Host and control port of the node that coordinates; None when it is this one, or not known."""


class BulkServer:
    """Serves the bulk port `port` of `host`. Raises PortTakenError, or UsageError for an address that is not ours."""

    def __init__(self, host: str, port: int, credentials: Credentials, handler: Handler) -> None:
        self.dropped = 0
        self._address = (host, port)
        self._credentials = credentials
        self._handler = handler
        self._context = tls.server_context(credentials)
        self._slots = threading.Semaphore(CONNECTIONS_LIMIT)
        self._tunnels = threading.Semaphore(TUNNELS_LIMIT)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, int] = {}  # with the serial of the certificate, once it was shown
        self._unproven: Counter[str] = Counter()
        self._joins = _JoinRate()
        self._closing = False
        self._listening = _listen(host, port)
        self._acceptor = threading.Thread(target=self._accept, name=f"bulk-{port}", daemon=True)

    def start(self) -> None:
        self._acceptor.start()

    def renewed(self, credentials: Credentials) -> None:
        """Show another certificate to whoever connects from now on."""
        self._credentials = credentials
        self._context = tls.server_context(credentials)

    def cut(self, serial: int) -> None:
        """End the connections of whoever showed this certificate, wherever they are."""
        with self._lock:
            connections = [connection for connection, shown in self._open.items() if shown == serial]
        _shut(connections)

    def close(self) -> None:
        """Stop at once: connections end where they are."""
        self._closing = True
        with contextlib.suppress(OSError):  # not connected: this is how a blocked accept is woken
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            connections = list(self._open)
        _shut(connections)
        if self._acceptor.is_alive():
            self._acceptor.join(CLOSE_TIMEOUT_S)

    def _accept(self) -> None:
        while not self._closing:
            if not self._slots.acquire(timeout=CLOSE_TIMEOUT_S / 2):
                continue
            try:
                connection, source = self._listening.accept()
            except OSError as error:
                self._slots.release()
                if not self._closing:
                    _log.warning("The bulk port cannot accept connections: %s.", error.strerror)
                    time.sleep(ACCEPT_PAUSE_S)
                continue
            self._begin(connection, source[0])

    def _begin(self, connection: socket.socket, source: str) -> None:
        with self._lock:
            crowded = self._unproven[source] >= UNPROVEN_LIMIT
            if not crowded:
                self._unproven[source] += 1
        if crowded:
            self._drop(f"{source} has {UNPROVEN_LIMIT} connections that have not proved who they are")
            connection.close()
            self._slots.release()
            return
        threading.Thread(target=self._serve, args=(connection, source), name="bulk-connection", daemon=True).start()

    def _serve(self, connection: socket.socket, source: str) -> None:
        """One connection, from its first byte to its last."""
        with contextlib.ExitStack() as slot:
            slot.callback(self._slots.release)
            try:
                with self._followed(connection) as handle:
                    try:
                        stream, peer = self._met(connection, source)
                    finally:
                        self._no_longer_unproven(source)
                    with stream:
                        if peer is not None:
                            with self._lock:
                                self._open[handle] = peer.serial
                            self._handler.presented(peer)  # it may have been denied before it could be cut
                            self._work(stream, peer, slot)
            except OSError as error:
                self._drop(f"a connection from {source} failed ({error.strerror or error})")
            except KosError as error:
                self._drop(f"{source} was refused: {error.message}")

    def _work(self, stream: ssl.SSLSocket, peer: Peer, slot: contextlib.ExitStack) -> None:
        """What a peer whose certificate was taken has come for. `slot` is given up when it is not a transfer."""
        if stream.selected_alpn_protocol() == tls.ALPN_BULK:
            transfers.serve(stream, peer, self._handler)
            return
        slot.close()
        if not self._tunnels.acquire(blocking=False):
            refused = LimitError(f"The node has {TUNNELS_LIMIT} tunnels open.", "Shut kernels down that nobody needs.")
            tunnel.refuse(stream, refused)
            raise refused
        try:
            tunnel.serve(stream, peer, self._handler.tunnel)
        finally:
            self._tunnels.release()

    def _met(self, connection: socket.socket, source: str) -> tuple[ssl.SSLSocket, Peer | None]:
        """The stream after the handshake, and the peer that has something to ask for; None when all is done."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(tls.HANDSHAKE_TIMEOUT_S)
        stream = self._context.wrap_socket(connection, server_side=True)
        try:
            stream.settimeout(tls.IDLE_TIMEOUT_S)
            alpn = stream.selected_alpn_protocol()
            if alpn == tls.ALPN_JOIN:
                answer = partial(self._joined, source)
                joining.serve(stream, self._credentials, self._coordinator_elsewhere(), answer)
                return stream, None
            if alpn not in (tls.ALPN_PRESENT, tls.ALPN_BULK, tls.ALPN_TUNNEL):
                raise AuthError("It asked for no protocol of this port.")
            peer = self._presented(stream)
            return stream, None if alpn == tls.ALPN_PRESENT else peer
        except BaseException:
            stream.close()
            raise

    def _presented(self, stream: ssl.SSLSocket) -> Peer:
        certificate = stream.getpeercert(binary_form=True)
        if certificate is None:
            raise AuthError("It showed no certificate.")
        ca_pem, cluster = self._credentials.ca_pem, self._credentials.peer.cluster
        verify_issued(certificate, ca_pem, cluster)  # a stranger is told nothing
        try:
            peer = verify_peer(certificate, ca_pem, cluster)
            self._handler.presented(peer)
        except KosError as error:
            transfers.reply(stream, Outcome(error=to_wire(error)))
            raise
        transfers.reply(stream, Outcome())
        return peer

    def _joined(self, source: str, request: joining.JoinRequest) -> joining.JoinReply:
        with self._lock:
            allowed = self._joins.allow(source, time.monotonic())
        if not allowed:
            raise JoinError(f"More than {JOINS_LIMIT} joins came from {source} within {JOIN_WINDOW_S:.0f} s.", "Wait.")
        return self._handler.join(request, source)

    def _coordinator_elsewhere(self) -> joining.Address | None:
        coordinator = self._handler.coordinator()
        here = (self._address[0], self._address[1] - 1)
        return None if coordinator == here else coordinator

    @contextlib.contextmanager
    def _followed(self, connection: socket.socket) -> Iterator[socket.socket]:
        """Let `close` and `cut` reach the connection: by a duplicate, as TLS takes the descriptor over."""
        with connection.dup() as handle:
            with self._lock:
                self._open[handle] = 0
            try:
                yield handle
            finally:
                with self._lock:
                    del self._open[handle]
                connection.close()

    def _no_longer_unproven(self, source: str) -> None:
        with self._lock:
            self._unproven[source] -= 1
            if not self._unproven[source]:
                del self._unproven[source]

    def _drop(self, why: str) -> None:
        with self._lock:
            self.dropped += 1
        _log.info("Bulk port: %s.", why.rstrip("."))


class _JoinRate:
    """Counts the joins of each source within a window. Used under its owner's lock."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def allow(self, source: str, now: float) -> bool:
        times = self._times.setdefault(source, deque())
        self._times.move_to_end(source)
        while len(self._times) > SOURCES_LIMIT:
            self._times.popitem(last=False)
        while times and now - times[0] >= JOIN_WINDOW_S:
            times.popleft()
        if len(times) >= JOINS_LIMIT:
            return False
        times.append(now)
        return True


def _shut(connections: list[socket.socket]) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # it ended by itself meanwhile
            connection.shutdown(socket.SHUT_RDWR)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"Port {port} of {host}, the bulk port, is in use.",
                "Choose another control port with --listen HOST:PORT; the bulk port is the next one.",
            ) from None
        raise UsageError(
            f"This machine cannot listen on {host}:{port} ({error.strerror}).",
            "Give an address of this machine with --listen HOST[:PORT].",
        ) from None
