"""Messages over a stream socket, between a daemon and one of its workers, or a client of the same machine.

A message is two lengths (u32 each, little-endian), a header frame and a payload frame, which may be empty. `Decoder` is
pure and takes bytes as they come; `Channel` is the blocking end that a worker holds.

Why not ZeroMQ here: a socket pair wakes the other process directly, where ZeroMQ goes through a thread on either side,
which doubles the hand-overs of a small task's round trip. And a pair that is passed has no address for others to find.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator

from kos_cluster.errors import ProtocolError

LENGTHS = struct.Struct("<II")
READ_BYTES = 1 << 16  # at once; the memory for more would be mapped anew, and given back, for each read
FRAME_LIMIT_BYTES = 64 << 20
JOIN_LIMIT_BYTES = 1 << 16  # messages up to this size are written in one piece

Frames = tuple[bytes, bytes]  # header, payload


class Decoder:
    """Cuts a stream into messages, whose frames have a limit each."""

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frames]:
        """The messages that are complete with `data`. Raises ProtocolError for a length over the limit."""
        self._held += data
        start, end = 0, len(self._held)
        view = memoryview(self._held)
        try:
            while end - start >= LENGTHS.size:
                header, payload = LENGTHS.unpack_from(view, start)
                if header > self._limit_bytes or payload > self._limit_bytes:
                    raise ProtocolError(f"A message of {header + payload:,} bytes is over the limit between processes.")
                middle = start + LENGTHS.size + header
                if end < middle + payload:
                    break
                message = bytes(view[start + LENGTHS.size : middle]), bytes(view[middle : middle + payload])
                start = middle + payload  # even if the reader goes no further
                yield message
        finally:
            view.release()
            del self._held[:start]


def encode(header: bytes, payload: bytes | memoryview = b"") -> list[bytes | memoryview]:
    """A message as the pieces to write, one where it is small."""
    lengths = LENGTHS.pack(len(header), len(payload))
    if len(payload) <= JOIN_LIMIT_BYTES:
        return [b"".join((lengths, header, payload))]
    return [lengths + header, payload]


class Channel:
    """A worker's end. `receive` and `send` block; the caller keeps threads apart."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._decoder = Decoder()
        self._ready: list[Frames] = []

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something to receive within this time. May be interrupted; nothing is taken."""
        if self._ready:
            return True
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self) -> Frames:
        """The next message. Raises EOFError when the daemon has closed its end."""
        while not self._ready:
            data = self._stream.recv(READ_BYTES)
            if not data:
                raise EOFError("the daemon has closed the channel")
            self._ready = list(self._decoder.feed(data))
            self._ready.reverse()
        return self._ready.pop()

    def send(self, header: bytes, payload: bytes = b"") -> None:
        """Raises BrokenPipeError when the daemon has closed its end."""
        for piece in encode(header, payload):
            self._stream.sendall(piece)

    def close(self) -> None:
        self._stream.close()
