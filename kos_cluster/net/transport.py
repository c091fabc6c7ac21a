"""Control links over the network: CURVE over TCP, ROUTER at the node (`Server`), DEALER at whoever connects (`Link`).

`net.locallink` has both once more, for clients on the node's own machine. What either does, the other does too.

Theory of operation. Sockets are read in the asyncio loop by `add_reader` on ZeroMQ's descriptor. That descriptor is
edge-triggered: it signals once that something may have changed, and any send or receive may use the signal up. So
`_Reader` reads until nothing is left (or a bound is reached, then goes on at the loop's next turn, so that one peer
cannot starve the rest), and looks again after every send.

Rules:
- Everything here belongs to the thread of the loop.
- Who sent a message is the User-Id that ZeroMQ attached after authentication, looked up in `Admitted` for every
  message; never the routing id, which the peer may choose.
- A message that is malformed, oversized or of a peer no longer admitted is dropped and counted; it never raises.
- A send never blocks: False says that it was not taken (not connected, or the high-water mark).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import zmq
from zmq.utils.monitor import parse_monitor_message

from kos_cluster.errors import LimitError, PortTakenError, ProtocolError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.zap import DOMAIN, Gate

HIGH_WATER_MESSAGES = 8192  # queued for, or from, one peer
READS_LIMIT = 128  # messages a wake-up, before the loop's other work has its turn
# ZeroMQ cuts a connection at the first frame of more than this, unread; what lies between is read, dropped and counted.
CUT_BYTES = 2 * wire.MESSAGE_LIMIT_BYTES
HANDSHAKE_TIMEOUT_MS = 10_000
HEARTBEAT_INTERVAL_MS = 5_000
HEARTBEAT_TIMEOUT_MS = 20_000
RECONNECT_MS = 100
RECONNECT_LIMIT_MS = 2_000
LINGER_MS = 1_000
UNACKED_LIMIT_MS = 4_000  # a connection whose other end acknowledges nothing for so long is dropped, and made anew
KEEPALIVE_IDLE_S = 60
THIS_MACHINE = "127.0.0.1"

Context = zmq.Context[zmq.Socket[bytes]]
Payload = bytes | bytearray | memoryview
LinkState = Literal["up", "down", "closed", "refused"]
Route = bytes | int  # of ZeroMQ's choice, or the peer's; or the number of a connection on this machine

# As plain numbers: an operation on pyzmq's enumerations costs more than a microsecond, several times a message.
_NOW = int(zmq.NOBLOCK)
_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

_EMPTY = memoryview(b"")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from: the authenticated peer, the route that answers take, the address it connected from."""

    peer: Peer
    route: Route
    frame: zmq.Frame | None  # the first, which carries what ZeroMQ knows of the connection; None on this machine

    @property
    def host(self) -> str:
        """The address of the peer's end of the connection, as ZeroMQ saw it."""
        return THIS_MACHINE if self.frame is None else str(self.frame.get("Peer-Address"))


class Server:
    """A node's control socket. One a ZeroMQ context; made and used in the thread of the running loop."""

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        admitted: Admitted,
        on_message: Callable[[Origin, wire.Message, memoryview], None],
    ) -> None:
        self._admitted = admitted
        self._on_message = on_message
        self._malformed = 0
        self._gate = Gate(context, admitted)
        socket = context.socket(zmq.ROUTER)
        _set_common(socket, credentials)
        socket.curve_server = True
        socket.zap_domain = DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.router_mandatory = True
        self._socket = socket
        self._strangers = _Strangers()
        self._monitor = _Monitor(socket, _Strangers.EVENTS, self._strangers.happened)
        self._reader = _Reader(socket, self._receive)

    @property
    def dropped(self) -> int:
        """Messages and connections refused so far: malformed, oversized, too many frames, not admitted."""
        return self._malformed + self._strangers.gone

    def bind(self, host: str, port: int) -> None:
        """Listen. Raises PortTakenError, or UsageError when the address is not one of this machine."""
        self._socket.ipv6 = ":" in host
        try:
            self._socket.bind(f"tcp://{_bracketed(host)}:{port}")
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(
                    f"Port {port} of {host} is in use.", "Choose another with --listen HOST:PORT, or stop its user."
                ) from None
            raise UsageError(
                f"This machine cannot listen on {host}:{port} ({error.strerror}).",
                "Give an address of this machine with --listen HOST[:PORT].",
            ) from None

    def send(self, route: bytes, message: wire.Message, payload: Payload = b"") -> bool:
        """Queue a message for the peer behind a route. False when it is gone or its queue is full."""
        first, rest = framed(message, payload)
        try:
            self._socket.send(route, _AND_MORE)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            return False
        _send(self._socket, first, rest)
        self._reader.sent()
        return True

    def close(self) -> None:
        """Stop. What was sent goes out for up to `LINGER_MS` more while the context ends."""
        self._reader.close()
        self._monitor.close()
        self._gate.close()
        self._socket.close()

    def _receive(self) -> bool:
        try:
            # ZeroMQ attaches the metadata of the message to its first frame, the route, too.
            first = self._socket.recv(_NOW, copy=False)
        except zmq.Again:
            return False
        message, payload = _receive_rest(self._socket)
        peer = self._admitted.get(_user_id(first))
        if peer is None or message is None:
            self._malformed += 1
            if peer is None:
                self.send(first.bytes, wire.Expelled())
            return True
        self._on_message(Origin(peer, first.bytes, first), message, payload)
        return True


class Link:
    """A control link to one node. Made and used in the thread of the running loop.

    `on_state` is told "up" when the handshake is done, "down" when the connection is lost (ZeroMQ goes on trying), and
    "refused" when the node does not admit this key, or no longer: present the certificate again, then make a new link.
    (A local link that is lost is "closed", and does not come back.)
    """

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        server_curve_public: bytes,
        host: str,
        port: int,
        on_message: Callable[[wire.Message, memoryview], None],
        on_state: Callable[[LinkState], None],
    ) -> None:
        self.dropped = 0
        self.state: LinkState = "down"
        self._on_message = on_message
        self._on_state = on_state
        socket = context.socket(zmq.DEALER)
        _set_common(socket, credentials)
        socket.curve_serverkey = server_curve_public
        # Nothing is queued for a connection that is not there: False then means what it says.
        socket.immediate = True
        socket.reconnect_ivl = RECONNECT_MS
        socket.reconnect_ivl_max = RECONNECT_LIMIT_MS
        socket.ipv6 = ":" in host
        self._socket = socket
        self._monitor = _Monitor(socket, _LINK_EVENTS, self._happened)
        self._reader = _Reader(socket, self._receive)
        socket.connect(f"tcp://{_bracketed(host)}:{port}")

    def send(self, message: wire.Message, payload: Payload = b"") -> bool:
        """Queue a message. False when the link is not up or the queue is full."""
        first, rest = framed(message, payload)
        if self.state != "up":
            return False
        try:
            _send(self._socket, first, rest)
        except zmq.Again:
            return False
        self._reader.sent()
        return True

    def close(self) -> None:
        """Disconnect. What was sent goes out for up to `LINGER_MS` more. `on_state` is not called."""
        self.state = "down"
        self._reader.close()
        self._monitor.close()
        self._socket.close()

    def _happened(self, event: int, value: int) -> None:
        self._become(_STATE_AFTER[event])

    def _receive(self) -> bool:
        try:
            message, payload = _receive_rest(self._socket)
        except zmq.Again:
            return False
        if message is None:
            self.dropped += 1
        elif isinstance(message, wire.Expelled):
            self._become("refused")
        else:
            self._on_message(message, payload)
        return True

    def _become(self, state: LinkState) -> None:
        if state != self.state and not (self.state == "refused" and state == "down"):
            self.state = state
            self._on_state(state)


_STATE_AFTER: dict[int, LinkState] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "up",
    zmq.EVENT_DISCONNECTED: "down",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "down",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "refused",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused",
}
_LINK_EVENTS = sum(_STATE_AFTER)


class _Reader:
    """Calls `receive` until it returns False, whenever the socket may have something to read."""

    def __init__(self, socket: zmq.Socket[bytes], receive: Callable[[], bool]) -> None:
        self._socket = socket
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._fd: int | None = int(socket.get(zmq.FD))
        self._draining = False
        self._scheduled = False
        self._loop.add_reader(self._fd, self._drain)
        self._schedule()  # a pipe signals only once its reader has found it empty

    def sent(self) -> None:
        """To be called after each send, which may have used up the descriptor's signal."""
        if not self._draining and not self._scheduled and _readable(self._socket):
            self._schedule()

    def close(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            self._fd = None

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._scheduled = False
        more = True  # also when `receive` raises, which the loop reports
        self._draining = True
        try:
            for count in range(READS_LIMIT):
                if self._fd is None:
                    return
                # A signal mostly means a message, so the first is read without asking whether there is one.
                if (count and not _readable(self._socket)) or not self._receive():
                    more = False
                    return
        finally:
            self._draining = False
            if more and self._fd is not None and not self._scheduled:
                self._schedule()


class _Strangers:
    """Counts the connections that end without having got through the handshake.

    ZeroMQ does not say which connection has got through; it is taken to be the newest one, as strangers linger. A wrong
    guess counts later, when the other one ends.
    """

    EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED

    def __init__(self) -> None:
        self.gone = 0
        self._waiting: dict[int, None] = {}  # descriptors, in the order of their coming

    def happened(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._waiting[value] = None
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if self._waiting:
                self._waiting.popitem()
        elif value in self._waiting:
            del self._waiting[value]
            self.gone += 1


class _Monitor:
    """Tells a socket's connection events in the loop."""

    def __init__(self, socket: zmq.Socket[bytes], events: int, tell: Callable[[int, int], None]) -> None:
        self._watched = socket
        self._tell = tell
        self._socket = socket.get_monitor_socket(events)
        self._reader = _Reader(self._socket, self._receive)

    def close(self) -> None:
        self._reader.close()
        if not self._socket.closed:
            self._watched.disable_monitor()
            self._socket.close(linger=0)

    def _receive(self) -> bool:
        try:
            told = parse_monitor_message(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            return False
        self._tell(told["event"], told["value"])
        return True


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(socket.getsockopt(_EVENTS) & _POLLIN)  # type: ignore[operator]  # an int, for this option


def _set_common(socket: zmq.Socket[bytes], credentials: Credentials) -> None:
    socket.curve_publickey = credentials.curve_public
    socket.curve_secretkey = credentials.curve_secret
    socket.linger = LINGER_MS
    socket.sndhwm = HIGH_WATER_MESSAGES
    socket.rcvhwm = HIGH_WATER_MESSAGES
    socket.maxmsgsize = CUT_BYTES
    socket.handshake_ivl = HANDSHAKE_TIMEOUT_MS
    socket.heartbeat_ivl = HEARTBEAT_INTERVAL_MS
    socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
    socket.tcp_maxrt = UNACKED_LIMIT_MS
    socket.tcp_keepalive = 1
    socket.tcp_keepalive_idle = KEEPALIVE_IDLE_S


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def framed(message: wire.Message, payload: Payload) -> tuple[bytes, Payload]:
    """The first frame, and what is left of the payload for the second. Raises LimitError."""
    size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
    inline = size < wire.INLINE_BYTES
    first = wire.encode(message, payload) if inline else wire.encode(message)
    total = len(first) + (0 if inline else size)
    if total > wire.MESSAGE_LIMIT_BYTES:
        raise LimitError(
            f"A {type(message).__name__} message of {total} bytes is over the limit of {wire.MESSAGE_LIMIT_BYTES}."
        )
    return first, b"" if inline else payload


def _send(socket: zmq.Socket[bytes], first: bytes, rest: Payload) -> None:
    """Raises zmq.Again when the first frame is not taken; after it the second always is."""
    if rest:
        socket.send(first, _AND_MORE)
        socket.send(rest, _NOW, copy=False)
    else:
        socket.send(first, _NOW)


def _receive_rest(socket: zmq.Socket[bytes]) -> tuple[wire.Message | None, memoryview]:
    """The message and payload of what is being received, read to its end; None when it is not a good one."""
    first = socket.recv(_NOW, copy=False)
    count, size, frame = 1, len(first), first
    while frame.more:
        frame = socket.recv(_NOW, copy=False)
        count += 1
        size += len(frame)
    if count > wire.FRAMES_LIMIT or size > wire.MESSAGE_LIMIT_BYTES:
        _log.warning("Dropped a message of %d bytes in %d frames, which is over the limit.", size, count)
        return None, _EMPTY
    return decoded(first.buffer, None if frame is first else frame.buffer)


def decoded(first: bytes | memoryview, second: memoryview | None) -> tuple[wire.Message | None, memoryview]:
    """The message and payload of these frames; None when they are none, which is told in the log."""
    try:
        message, payload = wire.decode(first)
    except ProtocolError as error:
        _log.warning("Dropped a message: %s", error)
        return None, _EMPTY
    return message, payload if second is None else second


def _user_id(frame: zmq.Frame) -> bytes:
    try:
        return str(frame.get("User-Id")).encode()
    except zmq.ZMQError:
        return b""
