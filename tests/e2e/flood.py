"""A flood of strangers on a node's ports, who show no certificate and say what no node says."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from contextlib import suppress

from kos_cluster.net import wire

THREADS = 6
HELD_OPEN = 40  # connections of each thread
# What strangers say: nothing, noise, TLS to the bulk port, and ZeroMQ's greeting (RFC 23) with the largest of frames.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE".ljust(23, b"\0") + bytes(32)
LARGEST_FRAME = b"\x06" + (wire.MESSAGE_LIMIT_BYTES).to_bytes(8, "big") + bytes(wire.MESSAGE_LIMIT_BYTES)
STRANGERS = (b"", os.urandom(4096), b"\x16\x03\x01\x40\x00" + bytes(1 << 14), GREETING + LARGEST_FRAME, LARGEST_FRAME)


class Flood:
    """Strangers who connect to both ports of a node, again and again, and say what no node says."""

    def __init__(self, host: str, port: int) -> None:
        self.sent = 0
        self._ended = threading.Event()
        self._addresses = ((host, port), (host, port + 1))
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        held: list[socket.socket] = []  # some are kept open, as many as a node lets wait
        for turn in itertools.count(number):
            if self._ended.is_set():
                break
            with suppress(OSError):
                connection = socket.create_connection(self._addresses[turn % 2], timeout=1.0)
                held.append(connection)
                connection.sendall(STRANGERS[turn % len(STRANGERS)])
            if len(held) > HELD_OPEN:
                held.pop(0).close()
            self.sent += 1
        for connection in held:
            connection.close()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
