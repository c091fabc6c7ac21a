"""A port of this machine's loopback that leads to one of a node's loopback: for a browser that looks at a dashboard.

Theory of operation. A thread accepts; each connection has a thread, with a tunnel of its own through the node's bulk
port (`net.tunnel`). Bytes are passed as they are, so HTTP and websockets work. When either end closes its connection,
the link breaks, or the node is gone, the other end's connection is closed as well; browsers connect again by
themselves. A connection is closed for both directions at once.

Rules. Loopback only, and only processes of this user are let in, as whoever connects acts in this user's name. At most
`CONNECTIONS_LIMIT` connections at once, further ones are closed. Why one could not be had stands in the log.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.roles import Command, may
from kos_cluster.errors import (
    AuthError,
    KosError,
    NoSuchNodeError,
    PortTakenError,
    UnreachableError,
    UsageError,
)
from kos_cluster.net import tunnel, wire
from kos_cluster.net.tcpusers import user_of_peer
from kos_cluster.net.tunnel import End, Left

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh

LOOPBACK = "127.0.0.1"
CONNECTIONS_LIMIT = 64  # a browser opens some six for a host, and a websocket for each page
PORT_LIMIT = 65535
BACKLOG = 64
ACCEPT_PAUSE_S = 0.1  # when the process has no descriptor left
CLOSE_TIMEOUT_S = 2.0  # for the thread that accepts

log = logging.getLogger(__name__)


class ForwardedPort:
    """Made by `cluster.forward_port`; ends with `close`, or as a context manager."""

    def __init__(self, dial: Callable[[str], ssl.SSLSocket], target: str, port: int = 0) -> None:
        """`dial` opens a link for a tunnel of this id; `target` is what it leads to, in words. `port` 0: any.

        Raises PortTakenError.
        """
        self._dial = dial
        self._target = target
        try:
            self._listening = socket.create_server((LOOPBACK, port), backlog=BACKLOG)
        except OSError as error:
            raise PortTakenError(
                f"Port {port} of this machine cannot be had ({error.strerror}).", "Choose another, or none for any."
            ) from None
        self.port: int = self._listening.getsockname()[1]  # of 127.0.0.1, on this machine
        self._ends: set[End] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="kos-forwarding", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Close all connections, and give the port back. Safe to call twice."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            ends = list(self._ends)
        with suppress(OSError):  # it is woken by this, as Linux has it
            self._listening.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(CLOSE_TIMEOUT_S)
        self._listening.close()
        for end in ends:
            end.close()

    def __enter__(self) -> ForwardedPort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kos ForwardedPort {LOOPBACK}:{self.port} to {self._target}>"

    # ---- threads

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:  # the end, or this process has no descriptor left
                self._closing.wait(ACCEPT_PAUSE_S)
                continue
            try:
                self._begin(connection)
            except OSError as error:
                log.warning("A connection to %s was closed (%s).", self._target, error.strerror)
                connection.close()

    def _begin(self, connection: socket.socket) -> None:
        """Raises OSError."""
        if user_of_peer(connection) != os.getuid():
            log.warning("A connection to %s by another user was closed.", self._target)
            connection.close()
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = End(connection)
        with self._lock:
            taken = not self._closing.is_set() and len(self._ends) < CONNECTIONS_LIMIT
            if taken:
                self._ends.add(end)
        if not taken:
            log.warning("A connection to %s was closed, as %d are open.", self._target, CONNECTIONS_LIMIT)
            end.close()
            return
        try:
            threading.Thread(target=self._carry, args=(end,), name="kos-forwarded", daemon=True).start()
        except RuntimeError as error:  # this process has too many
            log.warning("A connection to %s was closed (%s).", self._target, error)
            self._over(end)

    def _carry(self, end: End) -> None:
        try:
            with self._dial(secrets.token_hex(16)) as link:
                if end.carry(link, 0) is Left.LINK:
                    log.warning("A connection to %s was closed, as the link to the node broke.", self._target)
        except KosError as error:
            log.warning("A connection to %s was closed: %s", self._target, error.message)
        finally:
            self._over(end)

    def _over(self, end: End) -> None:
        end.close()
        with self._lock:
            self._ends.discard(end)


def forward(mesh: Mesh, node: str, port: int, local_port: int = 0) -> ForwardedPort:
    """To a port of the loopback of the node of this name or id.

    Raises NoSuchNodeError, UnreachableError, PortTakenError, AuthError for who may not submit work, UsageError.
    """
    peer = mesh.credentials.peer
    if not may(peer.role, Command.SUBMIT):
        raise AuthError(
            f"The role {peer.role} of {peer.name} may not reach a port of a node.",
            "Join with a token for the role client.",
        )
    for number, least in ((port, 1), (local_port, 0)):
        if not least <= number <= PORT_LIMIT:
            raise UsageError(f"{number} is not a port.", f"Give a number from {least} to {PORT_LIMIT}.")
    found = _member(mesh, node)

    def dial(id: str) -> ssl.SSLSocket:
        member = mesh.member(found.id) or found
        if member.state in (MemberState.DEAD, MemberState.LEFT):
            raise UnreachableError(f"Node {found.name} cannot be reached.", "Type 'kos cluster nodes'.")
        wanted = tunnel.Open("", "", id, new=True, port=port)
        return tunnel.dial(member.host, member.port, mesh.credentials, wanted)[0]

    return ForwardedPort(dial, f"port {port} of {found.name}", local_port)


def _member(mesh: Mesh, node: str) -> Member:
    """The node of this name or id, whether this process was told of it by now or not.

    Raises NoSuchNodeError, UnreachableError.
    """
    members = mesh.members
    if not any(node in (member.name, member.id) for member in members):
        members = mesh.request(wire.Nodes(), wire.SyncData).members or []
    standing = [member for member in members if member.state is not MemberState.LEFT]
    for member in standing:
        if node in (member.name, member.id):
            return member
    known = ", ".join(sorted(member.name for member in standing))
    raise NoSuchNodeError(f"No node is named {node!r}.", f"The cluster has {known}.")
