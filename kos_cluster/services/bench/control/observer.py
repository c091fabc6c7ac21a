"""A client that is linked to every node, asks them, and sees what each of them believes of the others.

Theory of operation. It attaches as every client does. A node sends its view to its clients whenever that changes, so
nothing is polled: what a node believes is known here a moment after it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Callable

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.voters import voters_wanted
from kos_cluster.errors import UnreachableError
from kos_cluster.home import ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials
from kos_cluster.net.locks import LockAsked
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.tasks.asking import Asking
from kos_cluster.tasks.attachment import Attachment, hello

BEAT_S = 1.0
SETTLE_TIMEOUT_S = 60.0


class Observer:
    """One client. Used in one loop."""

    def __init__(self, home: ClusterHome) -> None:
        credentials = Credentials.load(home.client)
        self.attachment = Attachment(home, home.read(), credentials, hello(secrets.token_hex(8), os.getpid()), self)
        self.states: dict[str, dict[str, MemberState]] = {}  # what each node that is up believes of each, by id
        self.agreed: dict[str, wire.SyncData] = {}  # what each node that is up told last of coordinator and voters
        self._asking = Asking(self.attachment)
        self._news = asyncio.Event()

    async def ask(self, question: wire.Asked, node: str = "", timeout_s: float = 5.0) -> bytes:
        """Ask a node by id (or the coordinator); its answer's MessagePack. Raises what it answers."""
        return await self._asking.one(question, node, timeout_s)

    async def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until it holds; it is looked at after each news. Raises UnreachableError when it takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            raise UnreachableError(f"After {timeout_s:.0f} s this was still not so: {what}.") from None

    async def settled(self, nodes: int) -> None:
        """Wait until so many nodes all hold each other alive, agree on coordinator and voters, and decide."""
        await self.until(lambda: self._agrees(nodes), SETTLE_TIMEOUT_S, f"{nodes} nodes are alive and agree")
        await self.ask(LockAsked("settled"), timeout_s=SETTLE_TIMEOUT_S)

    def _agrees(self, nodes: int) -> bool:
        linked = self.attachment.by_node
        if len(linked) != nodes or not all(link.up for link in linked.values()):
            return False
        views = [self.states.get(id_, {}) for id_ in linked]
        alive = all(len(view) == nodes and set(view.values()) == {MemberState.ALIVE} for view in views)
        if not alive or not all(id_ in self.agreed for id_ in linked):
            return False
        told = {(self.agreed[id_].coordinator, *self.agreed[id_].voters) for id_ in linked}
        return len(told) == 1 and len(told.pop()) == 1 + voters_wanted(nodes)

    async def beat(self) -> None:
        """Be known to the nodes, and link again to those that were started anew. Does not return."""
        while True:
            self.attachment.greet_lost()
            for id_, link in list(self.attachment.by_node.items()):
                link.send(wire.OwnerBeat(self.attachment.view_of(id_), [], []))
            self._news.set()  # links come up without a message
            await asyncio.sleep(BEAT_S)

    # ---- attachment.Listener

    def node_up(self, member: Member, packages: dict[str, str]) -> None:
        self._news.set()

    def node_down(self, id_: str, why: str) -> None:
        self.states.pop(id_, None)
        self.agreed.pop(id_, None)
        self._news.set()

    def node_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        if isinstance(message, wire.Reply):
            self._asking.answered(message)
        elif isinstance(message, wire.SyncData) and link.peer is not None:
            self.agreed[link.peer.id] = message
            if message.members is not None:
                self.states[link.peer.id] = {member.id: member.state for member in message.members}
            self._news.set()


@contextlib.asynccontextmanager
async def observing(home: ClusterHome) -> AsyncIterator[Observer]:
    """An attached observer."""
    observer = Observer(home)
    beating = asyncio.get_running_loop().create_task(observer.beat(), name="beat")
    try:
        await observer.attachment.attach()
        yield observer
    finally:
        beating.cancel()
        observer.attachment.tell_all(wire.Goodbye())
        observer.attachment.close()
