"""A peer that speaks the wire format itself to one real daemon, under any identity that the cluster's authority signs.

Rules: messages of one link arrive in their order, so an answered question shows that what came before was dealt with.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import uuid
from typing import Any, TypeVar

import cloudpickle
import msgspec
import zmq

from kos_cluster.core import swim
from kos_cluster.core.records import Member, Needs
from kos_cluster.core.roles import Role
from kos_cluster.core.swim import messages as swim_messages
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.net import wire
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.controlplane import Heartbeat
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.node import machine
from kos_cluster.node.vouching import Vouching

ANSWER_S = 20.0

M = TypeVar("M")


def authority_of(home: Home) -> CertificateAuthority:
    """The authority of an embedded cluster, as only its founder has it."""
    folder = ClusterHome(home, EMBEDDED_NAME).path
    return CertificateAuthority.load(EMBEDDED_NAME, folder, home.path / "wrap.key")


def identity(authority: CertificateAuthority, role: Role, *, id: str = "", name: str = "") -> Credentials:
    """A fresh identity of a role."""
    id = id or uuid.uuid4().hex
    return authority.local(id, name or f"{role}-{id[:6]}", role)


def part(data: bytes) -> tuple[str, bytes]:
    return hashlib.sha256(data).hexdigest(), data


def by_value(fn: Any) -> bytes:
    """Pickle a function of a test for workers, who cannot import the tests."""
    module = sys.modules[fn.__module__]
    if not fn.__module__.startswith("tests."):
        return cloudpickle.dumps(fn)
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(fn)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


class Speaker:
    """Use as `async with Speaker(credentials, host, port) as speaker`: entered when the link is up and said hello.

    It speaks over the network, with a `home` over the node's own socket there.
    """

    def __init__(self, credentials: Credentials, host: str, port: int, home: ClusterHome | None = None) -> None:
        self.credentials = credentials
        self.heard: list[tuple[wire.Message, bytes]] = []  # everything
        self._read = 0  # how many of them were waited for, or passed over
        self._address = (host, port)
        self._home = home
        self._arrived = asyncio.Event()
        self._requests = 0

    async def __aenter__(self) -> Speaker:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        # pid 0: the node does not watch this process, which speaks as several owners.
        hello = wire.Hello(uuid.uuid4().hex[:16], machine.versions(), 0, "", 0)
        self.link = NodeLink(self._context, self.credentials, *self._address, hello, self, self._home)
        self.member = (await self.wait(wire.Welcome))[0].member
        return self

    async def __aexit__(self, *_: object) -> None:
        self.say(wire.Goodbye())
        self.link.close()
        self._context.destroy()

    def link_gone(self, link: NodeLink, why: str) -> None:
        raise AssertionError(f"the link was lost: {why}")

    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        self.heard.append((message, bytes(payload)))
        self._arrived.set()

    def say(self, message: wire.Message, payload: bytes = b"") -> None:
        assert self.link.send(message, payload)

    async def wait(self, *kinds: type[M]) -> tuple[M, bytes]:
        """The next message of one of these kinds; those before it are passed over."""
        async with asyncio.timeout(ANSWER_S):
            while True:
                while self._read < len(self.heard):
                    message, payload = self.heard[self._read]
                    self._read += 1
                    if isinstance(message, kinds):
                        return message, payload
                self._arrived.clear()
                await self._arrived.wait()

    def has_heard(self, kind: type[wire.Message]) -> bool:
        return any(isinstance(message, kind) for message, _ in self.heard)

    async def ask(self, question: wire.Asked) -> wire.Reply:
        self._requests += 1
        self.say(wire.Request(self._requests, question))
        while True:
            reply, _ = await self.wait(wire.Reply)
            if reply.id == self._requests:
                return reply

    async def answer(self, question: wire.Asked, kind: type[M]) -> M:
        """What is answered to a question that may be asked."""
        reply = await self.ask(question)
        assert reply.error is None, reply.error
        return msgspec.msgpack.decode(reply.value, type=kind)

    async def members(self) -> dict[str, Member]:
        data = await self.answer(wire.Nodes(), wire.SyncData)
        assert data.members is not None
        return {member.id: member for member in data.members}

    def run(self, fn: Any, *args: Any, batch: int = 1, parent: str = "") -> str:
        """Send one task with its function; gives its job's id."""
        hash_, data = part(by_value(fn))
        job = uuid.uuid4().hex[:8]
        self.say(wire.PutPart(hash_), data)
        exec_ = wire.Exec(batch, job, "work", [(0, 1)], 1, hash_, "", [hash_], Needs(), parent=parent)
        self.say(exec_, msgspec.msgpack.encode([cloudpickle.dumps((args, {}))]))
        return job

    def heartbeat(self, **changes: Any) -> Heartbeat:
        """What the node that this identity could be would say to join: its own signed record."""
        peer = self.credentials.peer
        member = Member(
            id=peer.id,
            name=peer.name,
            host="127.0.0.1",
            port=9,
            slots=1,
            versions=machine.versions(),
            incarnation=1,
            pid=os.getpid(),
        )
        body = swim_messages.body_of(msgspec.structs.replace(member, **changes))
        voucher = Vouching(self.credentials, lambda serial: False).sign(swim_messages.sealed(body))
        return Heartbeat(swim.SyncRequest(swim.Record(body, voucher), 0, (0,)))
