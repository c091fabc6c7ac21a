"""Free ports for embedded nodes, and whether a port can be had.

Rules: a pair is a control port and the bulk port after it. Pairs are free when they are chosen, and no promise after
that: the daemon binds them, and whoever asked chooses others when it finds them taken.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from contextlib import ExitStack

from kos_cluster.errors import PortTakenError, StateError

LOOPBACK = "127.0.0.1"
FIRST_PORT = 20000  # to LAST_PORT: above the services', below the range of outgoing connections
LAST_PORT = 32700
TRIES_LIMIT = 500


def free_pairs(count: int, host: str = LOOPBACK) -> list[int]:
    """Control ports of `count` pairs that are all free now. Raises PortTakenError when there are not so many."""
    pairs: list[int] = []
    with ExitStack() as held:
        for _ in range(TRIES_LIMIT):
            if len(pairs) == count:
                return pairs
            port = random.randrange(FIRST_PORT, LAST_PORT, 2)
            with contextlib.suppress(OSError), ExitStack() as pair:
                for each in (port, port + 1):
                    pair.enter_context(bound(host, each))
                held.push(pair.pop_all())
                pairs.append(port)
    raise PortTakenError(f"No {count} pairs of free ports from {FIRST_PORT} to {LAST_PORT} were found on {host}.")


def check_free(host: str, port: int) -> None:
    """Raises PortTakenError, naming the port, when a node cannot listen there; StateError for a foreign address."""
    for each, use in ((port, "control"), (port + 1, "bulk")):
        try:
            bound(host, each).close()
        except PermissionError:
            raise PortTakenError(
                f"Port {each} on {host} is reserved for root.", "Choose one of 1024 and above."
            ) from None
        except socket.gaierror:
            raise StateError(
                f"{host} is not an address that can be resolved.", "Name one with --listen HOST."
            ) from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StateError(f"{host} is not an address of this machine.", "Name one with --listen HOST.") from None
            raise PortTakenError(
                f"Port {each} on {host}, the node's {use} port, is in use by another program.",
                f"Choose another with --listen {host}:PORT, and give joining machines that port: NAME HOST:PORT.",
            ) from None


def bound(host: str, port: int) -> socket.socket:
    """A socket bound as the daemon would bind it. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(1)
    except OSError:
        opened.close()
        raise
    return opened
