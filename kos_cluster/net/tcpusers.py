"""Which user's process is at the other end of a TCP connection within this machine, or listens on a port of it.

Theory of operation. For UNIX sockets the kernel says so (SO_PEERCRED); for TCP it lists each socket with its user and
state, and the two ends of a connection within one machine both stand in the list.

Rules: what is not in the list is nobody's. Nor has a socket a user that its process has closed, which the list gives to
root, whoever had it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

LISTED = Path("/proc/net/tcp")
LISTED_IPV6 = Path("/proc/net/tcp6")  # one that listens on all addresses is reached over IPv4, too
LOOKS_LIMIT = 3  # while sockets come and go, one look may miss one that is there
_LOCAL, _REMOTE, _STATE, _USER = 1, 2, 3, 7  # the fields of a line
_OPEN = ("01", "08")  # established, and closed by the other end alone (include/net/tcp_states.h)
_LISTENING = "0A"
_ANY, _ANY_IPV6 = "0" * 8, "0" * 32


def user_of_peer(connection: socket.socket) -> int | None:
    """The user id at the other end of a connection over IPv4; None when that is not known. Raises OSError."""
    peer, own = _written(connection.getpeername()), _written(connection.getsockname())
    for _ in range(LOOKS_LIMIT):
        for fields in _listed(LISTED):
            if fields[_LOCAL] == peer and fields[_REMOTE] == own and fields[_STATE] in _OPEN:
                return int(fields[_USER])
    return None


def user_who_listens(host: str, port: int) -> int | None:
    """The user id of the socket that listens there, an address of IPv4; None when none does. Raises OSError."""
    exact = _written((host, port))
    number = exact.partition(":")[2]
    wanted = {LISTED: (exact, f"{_ANY}:{number}"), LISTED_IPV6: (f"{_ANY_IPV6}:{number}",)}
    for _ in range(LOOKS_LIMIT):
        for path, addresses in wanted.items():
            for fields in _listed(path):
                if fields[_STATE] == _LISTENING and fields[_LOCAL] in addresses:
                    return int(fields[_USER])
    return None


def _listed(path: Path) -> Iterator[list[str]]:
    """The fields of each line; none where the machine has no IPv6."""
    if path.exists():
        with path.open() as lines:
            next(lines)  # the heading
            yield from map(str.split, lines)


def _written(address: tuple[str, int]) -> str:
    """As the list has an address: in the order of bytes of this machine."""
    host, port = address
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
