"""Nodes that answer each message with itself, over either kind of link, and clients of theirs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import zmq

from kos_cluster.net import channel, unixsockets, wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.identity import Credentials
from kos_cluster.net.introducing import introduce
from kos_cluster.net.locallink import LocalLink, LocalServer
from kos_cluster.net.transport import Link, Origin, Server

HOST = "127.0.0.1"
WAIT_S = 20.0

Heard = list[tuple[wire.Message, bytes]]
E = TypeVar("E", bound="Echo")
Linked = tuple[Link | LocalLink, Heard, list[str]]


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which the sockets will bring about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Echo(ABC):
    """What the two kinds have in common."""

    server: Server | LocalServer

    def __init__(self, node: Credentials) -> None:
        self.node = node
        self.admitted = Admitted()
        self.origins: list[Origin] = []

    def _echo(self, origin: Origin, message: wire.Message, payload: memoryview) -> None:
        self.origins.append(origin)
        self.server.send(origin.route, message, payload)  # type: ignore[arg-type]  # it is one of its own

    @abstractmethod
    async def link(self, credentials: Credentials) -> Linked:
        """A link, what it hears, and its states; it may not be up yet."""

    @abstractmethod
    async def send_raw(self, credentials: Credentials, frames: list[bytes]) -> Callable[[], bool]:
        """Send frames, which need not be a message, as an admitted peer; says whether that was cut off since."""

    @abstractmethod
    def stop(self) -> None:
        """End the node."""

    @abstractmethod
    def close(self) -> None:
        """End what is left, clients too."""


class NetworkEcho(Echo):
    """CURVE over TCP."""

    def __init__(self, node: Credentials, port: int) -> None:
        super().__init__(node)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.port = port
        self.server = Server(self.context, node, self.admitted, self._echo)
        self.server.bind(HOST, port)
        self.raws: list[zmq.Socket[bytes]] = []

    async def link(self, credentials: Credentials) -> Linked:
        heard: Heard = []
        states: list[str] = []
        link = Link(
            self.clients,
            credentials,
            self.node.curve_public,
            HOST,
            self.port,
            lambda message, payload: heard.append((message, bytes(payload))),
            states.append,
        )
        return link, heard, states

    def raw(self, credentials: Credentials | None = None) -> zmq.Socket[bytes]:
        """A plain ZeroMQ socket, as an attacker or a broken peer would use it."""
        raw = self.clients.socket(zmq.DEALER)
        raw.linger = 0
        if credentials is not None:
            raw.curve_publickey = credentials.curve_public
            raw.curve_secretkey = credentials.curve_secret
            raw.curve_serverkey = self.node.curve_public
        raw.connect(f"tcp://{HOST}:{self.port}")
        self.raws.append(raw)
        return raw

    async def send_raw(self, credentials: Credentials, frames: list[bytes]) -> Callable[[], bool]:
        raw = self.raw(credentials)
        monitor = raw.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.raws.append(monitor)
        raw.send_multipart(frames)
        return lambda: bool(monitor.poll(0))

    def stop(self) -> None:
        self.server.close()
        self.context.destroy(linger=0)

    def close(self) -> None:
        self.server.close()
        for raw in self.raws:
            raw.close()
        self.clients.destroy(linger=0)
        self.context.destroy(linger=0)


class LocalEcho(Echo):
    """A UNIX socket."""

    def __init__(self, node: Credentials, path: Path) -> None:
        super().__init__(node)
        self.path = path
        self.server = LocalServer(node, self.admitted, self._echo)
        self.server.bind(path)
        self.raws: list[socket.socket] = []

    async def link(self, credentials: Credentials) -> Linked:
        heard: Heard = []
        states: list[str] = []
        link = await LocalLink.open(
            self.path, credentials, lambda message, payload: heard.append((message, bytes(payload))), states.append
        )
        return link, heard, states

    def raw(self) -> socket.socket:
        """A plain connection, as an attacker or a broken peer would use it."""
        raw = unixsockets.connect(self.path)
        self.raws.append(raw)
        return raw

    async def send_raw(self, credentials: Credentials, frames: list[bytes]) -> Callable[[], bool]:
        raw = self.raw()
        await introduce(raw, credentials)
        header, payload = (*frames, b"")[:2]
        with contextlib.suppress(ConnectionError):  # cut off while it was writing
            for piece in channel.encode(header, payload):
                await asyncio.get_running_loop().sock_sendall(raw, piece)

        def cut_off() -> bool:
            try:
                while raw.recv(1 << 16):
                    pass
            except BlockingIOError:
                return False
            except ConnectionError:
                pass
            return True

        return cut_off

    def stop(self) -> None:
        self.server.close()

    def close(self) -> None:
        for raw in self.raws:
            raw.close()
        self.server.close()


@contextlib.asynccontextmanager
async def running(echo: E) -> AsyncIterator[E]:
    try:
        yield echo
    finally:
        echo.close()


async def still_serves(echo: Echo, link: Link | LocalLink, heard: Heard) -> None:
    before = len(heard)
    assert link.send(wire.SyncRequest(view=99), b"alive")
    await until(lambda: len(heard) > before)
    assert heard[-1] == (wire.SyncRequest(view=99), b"alive")
