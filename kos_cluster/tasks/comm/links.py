"""One-way streams of messages from one rank to another.

Theory of operation. Each direction between two ranks has a connection of its own, so that one thread may write while
another reads, and neither waits for the other. Between nodes it is TLS over TCP. Within a node it is a UNIX stream
socket, on which bodies under `SHARED_FROM_BYTES` travel; larger ones go through a ring of `SLOTS` slots in a memfd that
the writer made and passed: a byte on the socket says that a slot is full, a byte back that it is free again. So a large
body is copied twice and never passes through the kernel.

Rules. The ring's memory is really allocated when it is first used, so that a full machine is an error and no SIGBUS. A
wait for the other side ends when nothing has moved for `patience_s` (`Stalled`), or when it has gone (`Gone`).
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np

SLOTS = 4
SLOT_BYTES = 512 << 10
RING_BYTES = SLOTS * SLOT_BYTES
SHARED_FROM_BYTES = 32 << 10
JOIN_LIMIT_BYTES = 16 << 10  # a body up to this size is written together with its header
CHUNK_BYTES = SLOT_BYTES  # what `chunks` gives at once, at most
LOOK_S = 1.0  # between two looks at the time while nothing comes

Socket = socket.socket | ssl.SSLSocket


class Gone(Exception):
    """The other rank has closed the link, or its process has ended."""


class Stalled(Exception):
    """Nothing has moved for too long."""


class Outgoing(Protocol):
    """The writer's end. `write` returns when the message is on its way and its memory may be reused."""

    def write(self, head: bytes, body: memoryview, patience_s: float) -> None: ...
    def close(self) -> None: ...


class Incoming(Protocol):
    """The reader's end: fixed parts of a header with `read`, then the whole body with `fill` or `chunks`."""

    def read(self, size: int, patience_s: float) -> bytes: ...
    def fill(self, body: memoryview, patience_s: float) -> None: ...
    def chunks(self, size: int, patience_s: float) -> Iterator[memoryview]: ...
    def close(self) -> None: ...


class _Stream:
    """Whole reads and writes on a socket."""

    def __init__(self, stream: Socket) -> None:
        stream.settimeout(LOOK_S)
        self.stream = stream

    def send(self, data: bytes | memoryview, patience_s: float) -> None:
        view, moved_s = memoryview(data), time.monotonic()
        while view:
            try:
                count = self.stream.send(view)
            except OSError as error:
                _check(error, moved_s, patience_s)
                continue
            view, moved_s = view[count:], time.monotonic()

    def receive_into(self, view: memoryview, patience_s: float) -> None:
        moved_s = time.monotonic()
        while view:
            try:
                count = self.stream.recv_into(view)
            except OSError as error:
                _check(error, moved_s, patience_s)
                continue
            if not count:
                raise Gone
            view, moved_s = view[count:], time.monotonic()

    def receive_some(self, limit: int, patience_s: float) -> int:
        """Take up to `limit` bytes that say nothing but how many they are."""
        moved_s = time.monotonic()
        while True:
            try:
                count = len(self.stream.recv(limit))
            except OSError as error:
                _check(error, moved_s, patience_s)
                continue
            if not count:
                raise Gone
            return count


class StreamOut:
    """Everything on the socket: between nodes."""

    def __init__(self, stream: Socket) -> None:
        self._stream = _Stream(stream)

    def write(self, head: bytes, body: memoryview, patience_s: float) -> None:
        if len(body) <= JOIN_LIMIT_BYTES:
            self._stream.send(b"".join((head, body)), patience_s)
        else:
            self._stream.send(head, patience_s)
            self._stream.send(body, patience_s)

    def close(self) -> None:
        self._stream.stream.close()


class StreamIn:
    """The other end of `StreamOut`."""

    def __init__(self, stream: Socket) -> None:
        self._stream = _Stream(stream)
        self._scratch = memoryview(b"")

    def read(self, size: int, patience_s: float) -> bytes:
        data = bytearray(size)
        self._stream.receive_into(memoryview(data), patience_s)
        return bytes(data)

    def fill(self, body: memoryview, patience_s: float) -> None:
        self._stream.receive_into(body, patience_s)

    def chunks(self, size: int, patience_s: float) -> Iterator[memoryview]:
        if len(self._scratch) < min(size, CHUNK_BYTES):
            self._scratch = memoryview(bytearray(CHUNK_BYTES))
        while size:
            chunk = self._scratch[: min(size, CHUNK_BYTES)]
            self._stream.receive_into(chunk, patience_s)
            size -= len(chunk)
            yield chunk

    def close(self) -> None:
        self._stream.stream.close()


class SharedOut(StreamOut):
    """Large bodies through shared memory: within a node. `ring` is a memfd of `RING_BYTES` that the reader has too."""

    def __init__(self, stream: Socket, ring: int) -> None:
        super().__init__(stream)
        self._ring: int | None = ring
        self._slots: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
        self._free = SLOTS
        self._next = 0

    def write(self, head: bytes, body: memoryview, patience_s: float) -> None:
        if len(body) < SHARED_FROM_BYTES:
            super().write(head, body, patience_s)
            return
        if self._ring is not None:
            self._allocate(self._ring)
        self._stream.send(head, patience_s)
        source = np.frombuffer(body, np.uint8)
        for start in range(0, len(source), SLOT_BYTES):
            while not self._free:
                self._free += self._stream.receive_some(SLOTS, patience_s)
            chunk = source[start : start + SLOT_BYTES]
            self._slots[self._next][: len(chunk)] = chunk
            self._next = (self._next + 1) % SLOTS
            self._free -= 1
            self._stream.send(b"\0", patience_s)

    def close(self) -> None:
        super().close()
        self._slots.clear()
        if self._ring is not None:
            os.close(self._ring)
            self._ring = None

    def _allocate(self, ring: int) -> None:
        """Raises OSError when the machine has no memory for it."""
        os.posix_fallocate(ring, 0, RING_BYTES)
        self._slots = _slots(mmap.mmap(ring, RING_BYTES))
        os.close(ring)
        self._ring = None


class SharedIn(StreamIn):
    """The other end of `SharedOut`."""

    def __init__(self, stream: Socket, ring: int) -> None:
        super().__init__(stream)
        self._slots = _slots(mmap.mmap(ring, RING_BYTES, prot=mmap.PROT_READ))
        os.close(ring)
        self._next = 0

    def fill(self, body: memoryview, patience_s: float) -> None:
        if len(body) < SHARED_FROM_BYTES:
            super().fill(body, patience_s)
            return
        target, start = np.frombuffer(body, np.uint8), 0
        for chunk in self.chunks(len(target), patience_s):
            target[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
            start += len(chunk)

    def chunks(self, size: int, patience_s: float) -> Iterator[memoryview]:
        if size < SHARED_FROM_BYTES:
            yield from super().chunks(size, patience_s)
            return
        while size:
            self._stream.receive_some(1, patience_s)
            chunk = self._slots[self._next][: min(size, SLOT_BYTES)]
            size -= len(chunk)
            yield chunk.data
            self._next = (self._next + 1) % SLOTS
            self._give_back(patience_s)

    def close(self) -> None:
        super().close()
        self._slots.clear()

    def _give_back(self, patience_s: float) -> None:
        try:
            self._stream.send(b"\0", patience_s)
        except Gone:
            return  # it has written all that it had to


def make_ring() -> int:
    """A memfd for `SharedOut`; it takes no memory before it is used."""
    ring = os.memfd_create("kos-rank", os.MFD_CLOEXEC)
    os.ftruncate(ring, RING_BYTES)
    return ring


def _slots(memory: mmap.mmap) -> list[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    whole = np.frombuffer(memory, np.uint8)
    return [whole[start : start + SLOT_BYTES] for start in range(0, RING_BYTES, SLOT_BYTES)]


def _check(error: OSError, moved_s: float, patience_s: float) -> None:
    """Return if the call only took longer than `LOOK_S`. Raises Gone, Stalled, or what is neither."""
    if not isinstance(error, TimeoutError):
        if isinstance(error, ssl.SSLError) or error.errno in (errno.EPIPE, errno.ECONNRESET):
            raise Gone from None
        raise error
    if time.monotonic() - moved_s > patience_s:
        raise Stalled from None
