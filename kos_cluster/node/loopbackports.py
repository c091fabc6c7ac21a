"""Ports of this node's loopback, to which clients have tunnels: the dashboards of engines that run here.

Theory of operation. What a dashboard shows is for who may use the engine, and it has no users of its own; so it listens
on the loopback alone, and is reached through the bulk port, where a peer has shown who it is (`net.tunnel`).

Rules. Only the loopback, never another host, and only what this node's user has listening there: not what took the port
of an engine that has ended. A peer may have this if it may submit work (`net.tunnel.serve` looks): its
tasks run here and reach these ports anyway. At most `TUNNELS_LIMIT` at once. Called by the threads of the bulk port.
"""

from __future__ import annotations

import os
import socket
import threading

from kos_cluster.errors import LimitError, StateError, UsageError
from kos_cluster.net.tcpusers import user_who_listens
from kos_cluster.net.tunnel import End

LOOPBACK = "127.0.0.1"
PORT_LIMIT = 65535
TUNNELS_LIMIT = 128  # at once, of all clients; kernels have the rest of the bulk port's
CONNECT_TIMEOUT_S = 1.0  # to a socket of this machine


class LoopbackPorts:
    """One node's."""

    def __init__(self) -> None:
        self._ends: list[End] = []
        self._lock = threading.Lock()

    def tunnel(self, port: int) -> End:
        """This node's end of a new tunnel to a port. Raises UsageError, LimitError, StateError."""
        if not 0 < port <= PORT_LIMIT:
            raise UsageError(f"There is no port {port}.", f"Give one from 1 to {PORT_LIMIT}.")
        end = End(_connected(port))
        with self._lock:
            self._ends = [other for other in self._ends if not other.over]
            if len(self._ends) < TUNNELS_LIMIT:
                self._ends.append(end)
                return end
        end.close()
        raise LimitError(f"The node has {TUNNELS_LIMIT} tunnels to its loopback open.", "Close some pages.")


def _connected(port: int) -> socket.socket:
    """Raises StateError."""
    if user_who_listens(LOOPBACK, port) not in (None, os.getuid()):
        raise StateError(
            f"What listens on port {port} of the node's loopback is another user's.",
            "Give a port of what runs as the node's own user.",
        )
    try:
        connection = socket.create_connection((LOOPBACK, port), CONNECT_TIMEOUT_S)
    except OSError as error:
        raise StateError(
            f"Nothing answers on port {port} of the node's loopback ({error.strerror or error}).",
            "See whether what is to listen there still runs.",
        ) from None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
