"""UNIX sockets in a folder, at a path of any length, and whose process is at the other end.

Rules. The system limits the text of such an address to 107 bytes; what counts here is the name in its folder, as the
folder is reached by a descriptor of it. The kernel says which process is at the other end, and which user it runs as
(SO_PEERCRED). `kind` is SOCK_STREAM, or SOCK_SEQPACKET where a packet is a message.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

BACKLOG = 128  # connections that wait to be accepted
ACCEPT_PAUSE_S = 1.0  # of who accepts, when the system has no descriptor left
_DESCRIPTOR_BYTES = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def listen(path: Path, *, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that listens there; what an earlier process has left there is removed. Raises OSError."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, kind)
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


def connect(
    path: Path, *, kind: socket.SocketKind = socket.SOCK_STREAM, timeout_s: float | None = 0.0
) -> socket.socket:
    """A connection to the process that listens there. Raises OSError.

    Neither connecting nor what is done with it waits longer than `timeout_s`: 0 is not at all, None without an end.
    """
    stream = socket.socket(socket.AF_UNIX, kind)
    try:
        stream.settimeout(timeout_s)
        with _address(path) as address:
            stream.connect(address)
    except BaseException:
        stream.close()
        raise
    return stream


def peer_of(stream: socket.socket) -> tuple[int, int]:
    """The process id and the user id at the other end, as they were when it connected or began to listen."""
    pid, uid, _ = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def receive(stream: socket.socket, limit_bytes: int, descriptors: int) -> tuple[bytes, list[int]]:
    """What comes next, empty at the end, and the descriptors that come with it (SCM_RIGHTS), which the caller closes.

    No process that is started meanwhile inherits them, as it would by `socket.recv_fds`. Raises OSError, also for a
    packet of more bytes or more descriptors than that.
    """
    room = socket.CMSG_LEN(descriptors * _DESCRIPTOR_BYTES)
    packet, ancillary, flags, _ = stream.recvmsg(limit_bytes, room, socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_BYTES])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for descriptor in received:
            os.close(descriptor)
        raise OSError(f"a packet of over {limit_bytes} bytes, or with over {descriptors} descriptors")
    return packet, received.tolist()


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
