"""UNIX sockets in a folder, at a path of any length, and whose process is at the other end.

Rules. The system limits the text of such an address to `ADDRESS_BYTES`; what counts here is the name in its folder, as
the folder is reached by a descriptor of it. The kernel says which user the other process runs as (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

BACKLOG = 128  # connections that wait to be accepted
ADDRESS_BYTES = 107
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def listen(path: Path) -> socket.socket:
    """A socket that listens there; what an earlier process has left there is removed. Raises OSError."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    try:
        with _address(path) as address:
            listening.bind(address)
        path.chmod(0o600)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def connect(path: Path) -> socket.socket:
    """A connection to the process that listens there; it does not wait for it. Raises OSError."""
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.setblocking(False)
        with _address(path) as address:
            stream.connect(address)
    except BaseException:
        stream.close()
        raise
    return stream


def user_of(stream: socket.socket) -> int:
    """The user id of the process at the other end, as it was when it connected or began to listen."""
    told = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(told)[1])


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
