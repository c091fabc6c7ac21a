"""Which user's process is at the other end of a TCP connection within this machine.

Theory of operation. For UNIX sockets the kernel says so (SO_PEERCRED); for TCP it lists each socket with its user, and
the two ends of a connection within one machine both stand in the list.

Rules: what is not in the list is nobody's. A socket whose process has closed it is listed as root's, whoever had it, so
root is believed to be nobody but root.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

LISTED = Path("/proc/net/tcp")
LOOKS_LIMIT = 3  # while sockets come and go, one look may miss one that is there
_LOCAL, _REMOTE, _USER = 1, 2, 7  # the fields of a line


def user_of_peer(connection: socket.socket) -> int | None:
    """The user id at the other end of a connection over IPv4; None when that is not known. Raises OSError."""
    peer, own = _written(connection.getpeername()), _written(connection.getsockname())
    looks = (_listed_user(peer, own) for _ in range(LOOKS_LIMIT))
    return next((user for user in looks if user is not None), None)


def _listed_user(peer: str, own: str) -> int | None:
    with LISTED.open() as lines:
        next(lines)  # the heading
        for line in lines:
            fields = line.split()
            if fields[_LOCAL] == peer and fields[_REMOTE] == own:
                return int(fields[_USER])
    return None


def _written(address: tuple[str, int]) -> str:
    """As the list has an address: in the order of bytes of this machine."""
    host, port = address
    (number,) = struct.unpack("=I", socket.inet_aton(host))
    return f"{number:08X}:{port:04X}"
