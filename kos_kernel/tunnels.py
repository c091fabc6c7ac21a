"""The client's side of a kernel on a node: five loopback ports, whose connections are carried to the kernel's sockets.

Theory of operation. Jupyter's clients connect to loopback ports, as to a kernel of this machine. A thread accepts; each
connection has a thread that opens a tunnel of its own to the kernel's socket of that kind (`net.tunnel`), and opens it
again whenever the link breaks, until one of the two sockets is closed. So Jupyter does not notice that the laptop
slept. A kernel that is started anew takes the ports over: the old one's connections are closed, and Jupyter's sockets
connect again by themselves.

Rules: loopback only; at most `CONNECTIONS_LIMIT` connections at once, further ones are closed. While there is no kernel
nothing is accepted.
"""

from __future__ import annotations

import logging
import secrets
import select
import socket
import threading
import time

from kos_cluster.errors import KosError, UnreachableError
from kos_cluster.net.tunnel import End, Left
from kos_cluster.tasks.kernels import RemoteKernel

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
LOOPBACK = "127.0.0.1"
CONNECTIONS_LIMIT = 128  # of one kernel
BACKLOG = 64
REDIAL_S = 0.1  # after a link broke; doubled up to
REDIAL_LIMIT_S = 2.0  # this
REFUSED_PAUSE_S = 1.0  # before a connection is closed that the kernel's node refuses
LOOK_S = 0.2  # for the end of a tunnel that waits for a link
CLOSE_TIMEOUT_S = 2.0  # for the thread that accepts

log = logging.getLogger(__name__)


class Tunnels:
    """The ports of one kernel. `serve` and `close` are called by one thread."""

    def __init__(self, ports: dict[str, int] | None = None) -> None:
        """`ports`: channel -> port, of an earlier process. Raises OSError when they are taken."""
        self._listening: dict[str, socket.socket] = {}
        self._kernel: RemoteKernel | None = None
        self._ends: set[End] = set()
        self._lock = threading.Lock()
        self._acceptor: threading.Thread | None = None
        self._wake = socket.socketpair()
        try:
            for channel in CHANNELS:
                address = (LOOPBACK, ports[channel] if ports else 0)
                self._listening[channel] = socket.create_server(address, backlog=BACKLOG)
        except OSError:
            self.close()
            raise

    @property
    def ports(self) -> dict[str, int]:
        """Channel -> port."""
        return {channel: listening.getsockname()[1] for channel, listening in self._listening.items()}

    def serve(self, kernel: RemoteKernel) -> None:
        """Carry what connects to this kernel, which listens."""
        self.rest()
        with self._lock:
            self._kernel = kernel
        self._acceptor = threading.Thread(target=self._accept, args=(kernel,), name="kos-tunnels", daemon=True)
        self._acceptor.start()

    def rest(self) -> None:
        """Carry nothing until the next kernel; the ports are kept."""
        with self._lock:
            self._kernel = None
            ends, self._ends = self._ends, set()
        for end in ends:
            end.close()
        if self._acceptor is not None:
            self._wake[1].send(b"x")
            self._acceptor.join(CLOSE_TIMEOUT_S)
            self._wake[0].recv(1)
            self._acceptor = None

    def close(self) -> None:
        """End all, and give the ports back."""
        self.rest()
        for each in (*self._listening.values(), *self._wake):
            each.close()

    # ---- threads

    def _accept(self, kernel: RemoteKernel) -> None:
        by_socket = {listening: channel for channel, listening in self._listening.items()}
        while self._kernel is kernel:
            ready, _, _ = select.select([self._wake[0], *by_socket], [], [])
            if self._wake[0] in ready:
                return
            for listening in ready:
                connection, _ = listening.accept()
                self._begin(kernel, by_socket[listening], connection)

    def _begin(self, kernel: RemoteKernel, channel: str, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = End(connection)
        with self._lock:
            taken = self._kernel is kernel and len(self._ends) < CONNECTIONS_LIMIT
            if taken:
                self._ends.add(end)
        if not taken:
            end.close()
            return
        threading.Thread(target=self._carry, args=(kernel, channel, end), name=f"kos-{channel}", daemon=True).start()

    def _carry(self, kernel: RemoteKernel, channel: str, end: End) -> None:
        id_, new, pause_s = secrets.token_hex(16), True, REDIAL_S
        try:
            while not end.over:
                try:
                    link, received = kernel.dial(channel, id_, new=new, received=end.received)
                except UnreachableError:
                    pause_s = _paused(end, pause_s)
                    continue
                new, pause_s = False, REDIAL_S
                with link:
                    if end.carry(link, received) is Left.LINK:
                        log.debug("The link to kernel %s on %s broke (%s).", kernel.id, kernel.node_name, channel)
        except KosError as error:  # the kernel has ended, or is not ours; whoever connects will do so again
            log.debug("No tunnel to kernel %s on %s: %s", kernel.id, kernel.node_name, error.message)
            _paused(end, REFUSED_PAUSE_S)
        finally:
            end.close()
            with self._lock:
                self._ends.discard(end)


def _paused(end: End, pause_s: float) -> float:
    """Wait before the next try; how long to wait after that."""
    until = time.monotonic() + pause_s
    while not end.over and time.monotonic() < until:
        time.sleep(min(LOOK_S, pause_s))
    return min(2 * pause_s, REDIAL_LIMIT_S)
