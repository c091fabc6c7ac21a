"""A byte stream that outlives the link beneath it: one end of it.

Theory of operation. Bytes travel in frames over a link. Each end counts what it has sent and received since the stream
began, and keeps what the other end has not acknowledged. When a link breaks, both ends tell over the next one how much
they have received; what is missing is sent again from there. So no byte is lost or comes twice, and whoever reads the
stream does not notice. (The idea is that of TCP's sequence numbers, one layer above it.)

Rules. At most `WINDOW_BYTES` are unacknowledged in each direction, so that much is kept at each end. What has been
received is acknowledged when its reader has taken it, which slows a sender down to its reader. A frame is twelve bytes,
how much this end has taken and how many bytes follow, and these bytes.

    state      event                           next
    linked     the link breaks                 parted: frames that were cut are dropped
    parted     another link, its end is told   linked: what the other lacks is sent first
    any        one end is done                 over: the last frame says so
"""

from __future__ import annotations

import struct

from kos_cluster.errors import ProtocolError

WINDOW_BYTES = 1 << 20  # sent and not acknowledged, in one direction
ACKNOWLEDGED_EVERY_BYTES = 64 << 10  # taken since the last acknowledgement; it also goes with every frame
_FRAME = struct.Struct("!QI")
_END = 0xFFFFFFFF  # in place of a length: the stream is over


class Resumable:
    """One end of a stream."""

    def __init__(self) -> None:
        self.received = 0  # bytes from the other end, of all links
        self.ended = False  # the other end is done
        self._sent = 0
        self._unacknowledged = bytearray()  # the last bytes that were sent
        self._taken = 0
        self._told = 0  # of what was taken
        self._partial = bytearray()  # a frame that has not come whole

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return WINDOW_BYTES - len(self._unacknowledged)

    @property
    def acknowledgement_due(self) -> bool:
        return self._taken - self._told >= ACKNOWLEDGED_EVERY_BYTES

    def send(self, data: bytes) -> bytes:
        """The frame for these bytes, at most `room` of them."""
        if len(data) > self.room:
            raise ValueError(f"{len(data)} bytes are more than the {self.room} that the other end can take.")
        self._sent += len(data)
        self._unacknowledged += data
        return self._frame(len(data)) + data

    def acknowledge(self) -> bytes:
        """A frame without bytes; it also shows that this end is there."""
        return self._frame(0)

    def end(self) -> bytes:
        """The last frame."""
        return self._frame(_END)

    def receive(self, data: bytes) -> bytes:
        """What the reader gets of what has come over the link. Raises ProtocolError."""
        self._partial += data
        got = bytearray()
        while not self.ended and len(self._partial) >= _FRAME.size:
            acknowledged, size = _FRAME.unpack_from(self._partial)
            if size != _END and self.received + len(got) + size - self._taken > WINDOW_BYTES:
                raise ProtocolError(f"The other end of a stream sent {size} bytes, more than it may.")
            self._acknowledged(acknowledged)
            self.ended = size == _END
            if not self.ended:
                if len(self._partial) < _FRAME.size + size:
                    break
                got += self._partial[_FRAME.size : _FRAME.size + size]
                del self._partial[: _FRAME.size + size]
        self.received += len(got)
        return bytes(got)

    def taken(self, size_bytes: int) -> None:
        """The reader has taken so many more bytes."""
        self._taken += size_bytes

    def resume(self, received: int) -> bytes:
        """A new link, whose other end has received so many bytes: what to send first. Raises ProtocolError."""
        self._partial.clear()
        start = self._sent - len(self._unacknowledged)
        if not start <= received <= self._sent:
            raise ProtocolError(f"The other end of a stream has {received} bytes; {start} to {self._sent} are kept.")
        missing = bytes(self._unacknowledged[received - start :])  # it has the rest, though it has not taken it
        return self._frame(len(missing)) + missing

    def _acknowledged(self, count: int) -> None:
        start = self._sent - len(self._unacknowledged)
        if count > self._sent:
            raise ProtocolError(f"The other end of a stream took {count} bytes, of {self._sent} that were sent.")
        if count > start:  # an older frame's count says nothing new
            del self._unacknowledged[: count - start]

    def _frame(self, size: int) -> bytes:
        self._told = self._taken
        return _FRAME.pack(self._taken, size)
