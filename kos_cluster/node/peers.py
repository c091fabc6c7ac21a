"""Links between nodes: a message to a node goes over whichever link between the two is there.

Theory of operation. A node reaches another over the link that the other has opened to it, if it has, else over one of
its own, which it opens when there is something to send. So two nodes that talk have one link between them, seldom two.
What is sent while an own link comes up waits for it, a little; all else that cannot be sent is lost, and its senders
(gossip, Raft) live with that.

A node is looked for where its own record says, or where a look-up has found it, while that works (`lookups`).

Rules. Who speaks is the identity that the link has proved. A link whose node proves to be another than the one that it
was opened for is closed. A link that nobody wants is closed `IDLE_S` later; links that are up stay. Whether this node
was removed is `turning.TurnedAway`'s to say, from who refuses it and who speaks with it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kos_cluster.core.records import Member
from kos_cluster.core.roles import Role
from kos_cluster.errors import RevokedError
from kos_cluster.net import wire
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.listeners import Listeners
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.transport import Context, Origin, Payload, Route
from kos_cluster.node.turning import TurnedAway

log = logging.getLogger(__name__)

WAITING_LIMIT = 64  # messages that wait for one link to come up
WAITING_S = 2.0  # for so long they are worth sending
IDLE_S = 30.0
LAST_WORD_S = 1.0  # for which a link to a node that was removed stays
LINKS_LIMIT = 1100  # links that this node has opened; beyond it no further ones are
REACHED_LIMIT = 8  # members that are tried at once at the start
FOUND_LIMIT = 1024  # nodes that were found elsewhere than their records say, or that have none here


class Listener(Protocol):
    """Whom a message of another node is handed to, and what is learnt of where nodes are."""

    def node_said(self, peer: Peer, message: wire.Message, payload: memoryview) -> None: ...
    def node_reached(self, member: Member, address: str) -> None: ...
    def node_unreachable(self, id_: str, address: str) -> None: ...
    def node_mistaken(self, id_: str, address: str) -> None: ...
    def node_sought(self, id_: str) -> None: ...


@dataclass(slots=True)
class _Way:
    """A link of our own, and what waits for it. `id` is empty while an address is all that is known."""

    id: str
    link: NodeLink
    wanted_s: float
    waiting: deque[tuple[float, wire.Message, Payload]] = field(default_factory=lambda: deque(maxlen=WAITING_LIMIT))


class Peers:
    """This node's links to the others. Used in the daemon's loop."""

    def __init__(
        self,
        context: Context,
        credentials: Credentials,
        hello: wire.Hello,
        listeners: Listeners,
        denied: Callable[[int], bool],
        listener: Listener,
    ) -> None:
        self._context = context
        self._credentials = credentials
        self._hello = hello
        self._listeners = listeners
        self._denied = denied
        self._listener = listener
        self._routes: dict[str, Route] = {}  # id -> the route of the link that this node has opened to us
        self._ways: dict[str, _Way] = {}  # by address
        self._addresses: dict[str, str] = {}  # id -> address
        self._found: dict[str, str] = {}  # id -> the address that a look-up has proved, while it works
        self._asked: dict[int, tuple[str, asyncio.Future[wire.Reply]]] = {}  # id of the node, and its answer
        self._next = 1
        self._turned_away = TurnedAway()

    # ---- what is known of the others

    def came(self, origin: Origin) -> None:
        """A node has said something over its own link."""
        self.greeted(origin)
        self._heard(origin.peer.id)

    def greeted(self, origin: Origin) -> None:
        """A node has said hello over its own link, to whoever is here: that is no word for this node's belonging.

        A new link shows that it is back, whatever ours has met.
        """
        if self._routes.get(origin.peer.id) != origin.route:
            self._routes[origin.peer.id] = origin.route
            self.hurry(origin.peer.id)

    def learn(self, member: Member) -> None:
        """Where a member can be reached."""
        before = self._addresses.get(member.id)
        self._addresses[member.id] = member.address
        if before == member.address:
            return
        self._close(before)
        if self._found.get(member.id) != member.address:
            self._close(self._found.pop(member.id, None))  # the record is news, so it is tried first

    def found(self, id_: str, address: str) -> None:
        """A certificate has just proved that the node is at this address. Its own record's is used while it works."""
        where = self.address(id_)
        way = self._ways.get(where)
        if address == where or (where and (way is None or way.link.failure is None)):
            return
        self._close(self._found.pop(id_, None))
        self._found[id_] = address
        if len(self._found) > FOUND_LIMIT:
            self._close(self._found.pop(next(iter(self._found))))

    def address(self, id_: str) -> str:
        """Where a node is looked for; empty when that is not known."""
        return self._found.get(id_) or self._addresses.get(id_, "")

    def hurry(self, id_: str) -> None:
        """The member is known to be back: try it now."""
        way = self._ways.get(self.address(id_))
        if way is not None:
            way.link.hurry()

    def forget(self, id_: str) -> None:
        """The member is gone for good. Nothing more is taken from it; the answer to its farewell still goes out."""
        asyncio.get_running_loop().call_later(LAST_WORD_S, self._forget, id_)

    def _forget(self, id_: str) -> None:
        self._routes.pop(id_, None)
        self._close(self._addresses.pop(id_, None))
        self._close(self._found.pop(id_, None))

    def renewed(self, credentials: Credentials) -> None:
        """This node has another certificate now."""
        self._credentials = credentials
        for way in self._ways.values():
            way.link.renewed(credentials)

    def succeeded(self, peer: Peer) -> None:
        """Another node has another certificate now, of the same keys."""
        way = self._ways.get(self.address(peer.id))
        if way is not None:
            way.link.succeeded(peer)

    @property
    def met(self) -> bool:
        """Whether any node has spoken with this one since its start, or refused it."""
        return self._turned_away.met

    @property
    def doubted(self) -> bool:
        """Whether more nodes refuse this one as revoked than speak with it."""
        return self._turned_away.doubted(time.monotonic())

    def turned_away(self, now: float) -> bool:
        """Whether this node is held to be removed from the cluster."""
        own = self._credentials.peer.id
        return self._turned_away.held({address for id_, address in self._addresses.items() if id_ != own}, now)

    # ---- sending

    def send(self, id_: str, message: wire.Message, payload: Payload = b"", address: str = "") -> bool:
        """Send to a node by its id, or to whoever is at an address. False when it is lost at once."""
        route = self._routes.get(id_)
        if route is not None:
            if self._listeners.send(route, message, payload):
                return True
            del self._routes[id_]
        where = self._found.get(id_) or address or self._addresses.get(id_, "")
        if not where:
            self._listener.node_sought(id_)
            return False
        way = self._ways.get(where) or self._open(where, id_)
        if way is None:
            return False
        now = way.wanted_s = time.monotonic()
        if way.link.up and not way.waiting:
            return way.link.send(message, payload)
        way.waiting.append((now, message, payload))
        return True

    def reach(self) -> None:
        """Open links to members that are known, some at least, before there is anything to say."""
        for id_, address in itertools.islice(self._addresses.items(), REACHED_LIMIT):
            if id_ != self._credentials.peer.id and address not in self._ways:
                self._open(address, id_)

    def tell_all(self, ids: list[str], message: wire.Message) -> None:
        for id_ in ids:
            self.send(id_, message)

    async def ask(self, id_: str, question: wire.Asked, timeout_s: float) -> wire.Reply:
        """Ask a node something, and wait for its answer.

        Raises TimeoutError; RevokedError when that node holds this one to be removed, perhaps by what was asked.
        """
        number, self._next = self._next, self._next + 1
        answer: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._asked[number] = id_, answer
        try:
            self.send(id_, wire.Request(number, question))
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            del self._asked[number]

    def answered(self, reply: wire.Reply) -> None:
        _, answer = self._asked.get(reply.id, ("", None))
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def tick(self, now: float) -> None:
        """Close what nobody has wanted for a while."""
        for address, way in list(self._ways.items()):
            if not way.link.up and now - way.wanted_s > IDLE_S:
                self._close(address)

    def close(self) -> None:
        for address in list(self._ways):
            self._close(address)

    def _open(self, address: str, id_: str) -> _Way | None:
        if len(self._ways) >= LINKS_LIMIT:
            return None
        host, _, port = address.rpartition(":")
        link = NodeLink(self._context, self._credentials, host, int(port), self._hello, self)
        way = self._ways[address] = _Way(id_, link, time.monotonic())
        return way

    def _close(self, address: str | None) -> None:
        way = self._ways.pop(address or "", None)
        if way is not None:
            way.link.close()

    # ---- nodelink.Listener

    def link_gone(self, link: NodeLink, why: str) -> None:
        way = self._ways.get(link.address)
        if way is None or way.link is not link:
            return
        way.waiting.clear()
        id_ = way.id or (link.peer.id if link.peer is not None else "")
        if isinstance(link.failure, RevokedError) and link.shown == self._credentials.peer.serial:
            self._turned_away.refuse(link.address, time.monotonic())
            for asked, answer in self._asked.values():
                if asked == id_ and not answer.done():
                    answer.set_exception(link.failure)
        if id_:
            self._give_up(id_, link.address)
            self._listener.node_unreachable(id_, link.address)

    def link_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        way = self._ways.get(link.address)
        peer = link.peer
        if way is None or way.link is not link or peer is None or self._denied(peer.serial):
            return
        if peer.role is not Role.NODE or way.id not in ("", peer.id):
            log.warning("%s is %s, not the node that was looked for.", link.address, peer)
            self._close(link.address)
            if way.id:
                self._give_up(way.id, link.address)
                self._listener.node_mistaken(way.id, link.address)
            return
        self._heard(peer.id)
        if isinstance(message, wire.Welcome):
            way.id = peer.id
            self._addresses.setdefault(peer.id, link.address)
            self._send_waiting(way)
            if message.member.id == peer.id:
                self._listener.node_reached(message.member, link.address)
        elif isinstance(message, wire.HelloWanted):
            link.greet()
        self._listener.node_said(peer, message, payload)

    def _heard(self, id_: str) -> None:
        """A node of the cluster has spoken with this one; its refusals are counted by the address of its record."""
        self._turned_away.heard(self._addresses.get(id_, id_), time.monotonic())

    def _give_up(self, id_: str, address: str) -> None:
        """A node is not, or no longer, where it was found."""
        if self._found.get(id_) == address:
            del self._found[id_]

    def _send_waiting(self, way: _Way) -> None:
        oldest = time.monotonic() - WAITING_S
        while way.waiting:
            since, message, payload = way.waiting.popleft()
            if since >= oldest:
                way.link.send(message, payload)
