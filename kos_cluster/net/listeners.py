"""Where a node hears of others: its control socket on the network, and the one in its folder for its own machine.

Rules. A route says which of the two it belongs to. A node that cannot have a socket in its folder does without: its
machine's clients then come over the network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from kos_cluster.net import wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Credentials
from kos_cluster.net.locallink import LocalServer
from kos_cluster.net.transport import Context, Origin, Payload, Route, Server

_log = logging.getLogger(__name__)


class Listeners:
    """Both sockets of one node. Made and used in the thread of the running loop."""

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        admitted: Admitted,
        on_message: Callable[[Origin, wire.Message, memoryview], None],
    ) -> None:
        self._network = Server(context, credentials, admitted, on_message)
        self._local = LocalServer(credentials, admitted, on_message)

    @property
    def dropped(self) -> int:
        """Messages and connections refused so far."""
        return self._network.dropped + self._local.dropped

    def bind(self, host: str, port: int) -> None:
        """Listen on the network. Raises PortTakenError, or UsageError when the address is not one of this machine."""
        self._network.bind(host, port)

    def bind_local(self, path: Path) -> None:
        """Listen in the node's folder. To be called when the address is this process's: another may have been there."""
        try:
            self._local.bind(path)
        except OSError as error:
            _log.warning("Clients of this machine have to come over the network: no socket at %s (%s).", path, error)

    def send(self, route: Route, message: wire.Message, payload: Payload = b"") -> bool:
        """Queue a message for the peer behind a route. False when it is gone or its queue is full."""
        if isinstance(route, int):
            return self._local.send(route, message, payload)
        return self._network.send(route, message, payload)

    def renewed(self, credentials: Credentials) -> None:
        """Show another certificate, of the same keys, from now on."""
        self._local.renewed(credentials)

    def cut_denied(self) -> None:
        """End the links on this machine of those that are not admitted any more; those on the network are deaf."""
        self._local.cut_denied()

    def close(self) -> None:
        """Stop. What was sent goes out for a moment more."""
        self._local.close()
        self._network.close()
