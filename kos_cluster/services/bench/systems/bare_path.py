"""The limit: pyzmq alone on the path that a task of KOS takes, and nothing else.

    client  DEALER --CURVE over TCP--> ROUTER  daemon  ROUTER --ipc--> DEALER  worker (forked), and back

Rules: the same processes, hops and pickles as KOS; no queue, table, retry or scheduling. The daemon admits one CURVE
key, the client's. All processes are forked before any ZeroMQ context exists. High-water marks are unlimited here,
because the number of messages is the benchmark's own and a ROUTER drops what exceeds them.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zmq
import zmq.auth.thread

from kos_cluster.services.bench.systems import WORKERS, Noop, System

CHUNK = 1000
STOP = b""  # as a payload: end, daemon and worker
STOP_TIMEOUT_MS = 2_000
_WORKER_ID = b"worker"
_DOMAIN = "bench"


class OneKey:
    """Admits one CURVE public key (Z85); the form that pyzmq's authenticator asks for."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


class BarePath:
    """Two such paths side by side; single tasks alternate between them, except in `sync`, which uses the first."""

    def start(self, folder: Path, noop: Noop) -> None:
        public, secret = zmq.curve_keypair()
        server_public, server_secret = zmq.curve_keypair()
        started = []
        for number in range(WORKERS):
            ipc = f"ipc://{folder}/bare-{number}"
            worker = _forked(partial(_work, ipc, noop))
            reader, writer = os.pipe()
            daemon = _forked(partial(_forward, ipc, writer, (server_public, server_secret), public))
            os.close(writer)
            started.append((reader, daemon, worker))
        self._pids = [pid for _, *pids in started for pid in pids]
        self._context = zmq.Context()
        self._links = [_link(self._context, _port(reader), (public, secret), server_public) for reader, _, _ in started]

    def sync(self, item: int) -> Any:
        link = self._links[0]
        link.send_multipart([b"", pickle.dumps([item], 5)])
        return pickle.loads(link.recv_multipart()[1])[0]

    def submits(self, items: range) -> list[Any]:
        return self._exchange([pickle.dumps([item], 5) for item in items])

    def map(self, items: range) -> list[Any]:
        return self.submits(items)

    def map_chunked(self, items: range) -> list[Any]:
        return self._exchange(
            [pickle.dumps(list(items[start : start + CHUNK]), 5) for start in range(0, len(items), CHUNK)]
        )

    def stop(self) -> None:
        for link in self._links:
            link.send_multipart([b"", STOP])
            link.close(linger=STOP_TIMEOUT_MS)
        self._context.term()
        for pid in self._pids:
            os.waitpid(pid, 0)

    def _exchange(self, payloads: Sequence[bytes]) -> list[Any]:
        """Send all, then receive all; the results of each message in the order of the messages."""
        count = len(self._links)
        for number, payload in enumerate(payloads):
            self._links[number % count].send_multipart([number.to_bytes(4, "big"), payload])
        answers: dict[bytes, bytes] = {}
        for number in range(len(payloads)):
            key, answer = self._links[number % count].recv_multipart()
            answers[key] = answer
        return [value for key in sorted(answers) for value in pickle.loads(answers[key])]


def _forked(run: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 1
    try:
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _forward(ipc: str, port_fd: int, keys: tuple[bytes, bytes], admitted: bytes) -> None:
    """The daemon: from the client to the worker and back, until told to stop."""
    context = zmq.Context()
    authenticator = zmq.auth.thread.ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback(_DOMAIN, OneKey(admitted))
    outer, inner = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    outer.curve_publickey, outer.curve_secretkey = keys
    outer.curve_server = True
    outer.zap_enforce_domain = True
    outer.zap_domain = _DOMAIN.encode()
    for socket in (outer, inner):
        socket.sndhwm = socket.rcvhwm = 0
    inner.router_mandatory = True
    inner.bind(ipc)
    inner.recv_multipart()  # the worker says that it is there
    port = outer.bind_to_random_port("tcp://127.0.0.1")
    os.write(port_fd, port.to_bytes(2, "big"))
    os.close(port_fd)
    poller = zmq.Poller()
    poller.register(outer, zmq.POLLIN)
    poller.register(inner, zmq.POLLIN)
    running = True
    while running:
        for socket, _ in poller.poll():
            frames = socket.recv_multipart(copy=True)
            if socket is outer:
                inner.send_multipart([_WORKER_ID, *frames])
                running = frames[-1] != STOP
            else:
                outer.send_multipart(frames[1:])
    authenticator.stop()
    context.destroy(linger=STOP_TIMEOUT_MS)


def _work(ipc: str, noop: Noop) -> None:
    """The worker: calls the no-op on each element of a message."""
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.routing_id = _WORKER_ID
    socket.sndhwm = socket.rcvhwm = 0
    socket.connect(ipc)
    socket.send(b"ready")
    while True:
        client, key, payload = socket.recv_multipart()
        if payload == STOP:
            break
        answers = [noop(item) for item in pickle.loads(payload)]
        socket.send_multipart([client, key, pickle.dumps(answers, 5)])
    context.destroy(linger=0)


def _port(reader: int) -> int:
    """The port that a daemon reports; raises when it ended before it had one."""
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read(2)
    if len(told) != 2:
        raise RuntimeError("A daemon of the bare path ended before it listened.")
    return int.from_bytes(told, "big")


def _link(context: zmq.Context[Any], port: int, keys: tuple[bytes, bytes], server: bytes) -> zmq.Socket[Any]:
    link: zmq.Socket[Any] = context.socket(zmq.DEALER)
    link.sndhwm = link.rcvhwm = 0
    link.curve_publickey, link.curve_secretkey = keys
    link.curve_serverkey = server
    link.connect(f"tcp://127.0.0.1:{port}")
    return link


open_system: type[System] = BarePath
