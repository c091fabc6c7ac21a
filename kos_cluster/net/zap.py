"""ZeroMQ's authentication hook (RFC 27): asks the allow-list whether a CURVE key may connect; denies everything else.

Rules: one gate a ZeroMQ context, opened before any socket of it is bound. The User-Id that it hands back is the CURVE
key, which ZeroMQ then attaches to every message of that connection; no peer can choose it.
"""

from __future__ import annotations

import asyncio
import logging

import zmq
from zmq.utils import z85

from kos_cluster.net.admission import Admitted

DOMAIN = b"kos"
_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_CURVE_REQUEST_FRAMES = 7  # version, request id, domain, address, routing id, mechanism, key
_REPLIES_LIMIT = 64  # answered a wake-up, before the loop's other work has its turn

_log = logging.getLogger(__name__)


class Gate:
    """Answers ZeroMQ's question about each new connection of a context."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admitted: Admitted) -> None:
        self._admitted = admitted
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._fd = int(self._socket.get(zmq.FD))
        self._loop.add_reader(self._fd, self._answer)

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close()

    def _answer(self) -> None:
        for _ in range(_REPLIES_LIMIT):
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(self._verdict(request))
        self._loop.call_soon(self._answer_if_open)

    def _answer_if_open(self) -> None:
        if not self._socket.closed:
            self._answer()

    def _verdict(self, request: list[bytes]) -> list[bytes]:
        request_id = request[1] if len(request) > 1 else b""
        key = _curve_key(request)
        if key is not None and self._admitted.get(key) is not None:
            return [_VERSION, request_id, b"200", b"OK", key, b""]
        _log.info("Denied a connection: its key has not been presented with a certificate.")
        return [_VERSION, request_id, b"400", b"Present a certificate first", b"", b""]


def _curve_key(request: list[bytes]) -> bytes | None:
    if len(request) != _CURVE_REQUEST_FRAMES:
        return None
    version, _, domain, _, _, mechanism, key = request
    if version != _VERSION or domain != DOMAIN or mechanism != b"CURVE" or len(key) != 32:
        return None
    return z85.encode(key)
