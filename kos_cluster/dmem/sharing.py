"""Blocks that another node of this machine shares: both arenas have the same pages, and nothing is copied.

Theory of operation. The arenas of one KOS_HOME lie beside each other, so a node comes to another's socket as any
process of the machine does. What is sealed there is given by descriptor, and held there until the connection is closed,
which is when this node has it in its own books: at every moment some arena counts it.

Rules: nothing is believed. Who answers must be a process of this user, and what it gives a sealed segment, whole and of
the size that was said. A node that says nothing for `ANSWER_TIMEOUT_S` is given up. This blocks: a daemon calls it in a
thread.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kos_cluster.core.arena import Owner
from kos_cluster.dmem import protocol
from kos_cluster.dmem.segments import Segment
from kos_cluster.errors import ProtocolError, UnreachableError
from kos_cluster.net import unixsockets
from kos_cluster.net.outcome import from_wire

ANSWER_TIMEOUT_S = 5.0  # for the other arena, which may have to read the block back; then it is sent over the network
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(protocol.FromArena).decode


@contextmanager
def shared(folder: Path, block: str) -> Iterator[tuple[Segment, list[Owner]]]:
    """A block of the arena in that folder, with who keeps it there; the segment is the caller's to close.

    Raises UnreachableError when there is no such arena, ProtocolError, or what the arena refuses.
    """
    try:
        stream = unixsockets.connect(folder / protocol.SOCKET, kind=socket.SOCK_SEQPACKET, timeout_s=ANSWER_TIMEOUT_S)
    except OSError as error:
        raise UnreachableError(f"There is no arena in {folder} ({error.strerror}).") from None
    with stream:
        _, user = unixsockets.peer_of(stream)
        if user != os.getuid():
            raise UnreachableError(f"The arena in {folder} is of another user, {user}.")
        try:
            answer = _asked(stream, block)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnreachableError(f"The arena in {folder} does not answer ({error}).") from None
        yield answer


def _asked(stream: socket.socket, block: str) -> tuple[Segment, list[Owner]]:
    stream.send(_encode(protocol.Share(0, block)))
    packet, descriptors = unixsockets.receive(stream, protocol.PACKET_LIMIT_BYTES, 1)
    try:
        if not packet:
            raise ConnectionResetError("it closed the connection")
        answer = _decode(packet)
        if isinstance(answer, protocol.Refused):
            raise from_wire((answer.error, answer.message, answer.hint))
        if not isinstance(answer, protocol.Shared) or not descriptors:
            raise ProtocolError("An arena gave no descriptor.")
        return Segment.shared(descriptors[0], answer.size_bytes), answer.keepers
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
