"""Messages of two frames over a stream socket, sent and received in the asyncio loop, which never waits for either.

Theory of operation. A message is written at once, as far as the socket takes it; the rest follows when it can take
more. `net.channel` has the form. What has come is handed on a message at a time, `READS_LIMIT` a turn of the loop, so
that one peer cannot starve the rest; nothing more is read before all of it is.

Rules:
- Everything here belongs to the thread of the loop.
- A send never blocks: False says that it was not taken, as the stream is closed or too much waits already.
- Who sends what is no message is cut off. What a handler raises is reported by the loop and stops nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable

from kos_cluster.errors import ProtocolError
from kos_cluster.net import channel
from kos_cluster.net.transport import HIGH_WATER_MESSAGES, READS_LIMIT, Payload
from kos_cluster.net.wire import MESSAGE_LIMIT_BYTES

UNSENT_LIMIT_BYTES = 256 << 20  # that wait for one peer; a message may go beyond it

_log = logging.getLogger(__name__)


class MessageStream:
    """One connected stream socket. `on_end` is called once, when the other end has closed it or was cut off."""

    def __init__(
        self, stream: socket.socket, on_frames: Callable[[bytes, bytes], None], on_end: Callable[[], None]
    ) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._fd = stream.fileno()
        self._on_frames = on_frames
        self._on_end = on_end
        self._decoder = channel.Decoder(MESSAGE_LIMIT_BYTES)
        self._came: deque[channel.Frames] = deque()
        self._scheduled = False
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._receive)

    def send(self, header: bytes, payload: Payload = b"") -> bool:
        """Queue a message."""
        if not self._open or len(self._unsent) >= HIGH_WATER_MESSAGES or self._unsent_bytes >= UNSENT_LIMIT_BYTES:
            return False
        pieces = channel.encode(header, payload if isinstance(payload, bytes) else memoryview(payload).cast("B"))
        if not self._unsent:
            first = pieces[0]
            sent = self._write(first)
            if sent == len(first):
                del pieces[0]
            else:
                pieces[0] = memoryview(first)[sent:]
        if pieces:
            self._wait(pieces)
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Close it, once what was sent is written; the loop stands still for that, but no longer than this.

        `on_end` is not called.
        """
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._linger(linger_s)
        self._unsent.clear()
        self._came.clear()
        self._stream.close()

    # ---- sending

    def _wait(self, pieces: list[bytes | memoryview]) -> None:
        if not self._unsent:
            self._loop.add_writer(self._fd, self._send_more)
        for piece in pieces:
            self._unsent.append(memoryview(piece).cast("B"))
            self._unsent_bytes += len(self._unsent[-1])

    def _linger(self, linger_s: float) -> None:
        deadline = time.monotonic() + linger_s
        with contextlib.suppress(OSError):  # it is late, or the other end is gone
            for piece in self._unsent:
                self._stream.settimeout(max(0.0, deadline - time.monotonic()))
                self._stream.sendall(piece)

    def _send_more(self) -> None:
        while self._unsent:
            piece = self._unsent[0]
            sent = self._write(piece)
            self._unsent_bytes -= sent
            if sent < len(piece):
                self._unsent[0] = piece[sent:]
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._fd)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return self._stream.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the other end is gone, which reading tells
            return len(data)

    # ---- receiving

    def _receive(self) -> None:
        if self._came:  # and will be handed on in a moment
            return
        if self._read():
            self._hand_on()
        else:
            self.close()
            self._on_end()

    def _read(self) -> bool:
        """Take what the socket has; False when the stream has ended."""
        try:
            data = self._stream.recv(channel.READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        try:
            self._came.extend(self._decoder.feed(data))
        except ProtocolError as error:
            _log.warning("A stream was cut off: %s", error)
            return False
        return bool(data)

    def _hand_on(self) -> None:
        self._scheduled = False
        try:
            for _ in range(READS_LIMIT):
                if not self._came:
                    return
                self._on_frames(*self._came.popleft())
        finally:
            if self._came and not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._hand_on)
