"""Finding nodes by their ids alone: runs the look-up machine (`core.kademlia`) over the links between nodes.

Theory of operation. Gossip tells each node where every member says that it is. That is not all: a cluster may have
more nodes than gossip holds, agreement names nodes that gossip has not told of yet, and a node may be elsewhere than
its record says, or not to be reached there from here. So a node that is written to and has no known address, and one
that cannot be reached where it is looked for, is looked up through the others. Where it is found, `Peers` sends to it.

    event                                              the machine hears
    a link of our own was welcomed                     Seen, at the address that was dialled
    a node has said hello over its own link            Seen, at the address in its signed record, if there is one
    Finding came                                       Received, with the sender that the link has proved
    a link could not be made, or broke                 Failed; the node is looked up
    an address, when dialled, proved to be another's   Mistaken; the node is looked up
    a message to a node with no known address          - ; the node is looked up

Rules. What others say of an address opens no link. It is tried by presenting the certificate there; only when the
certificate shown there is of the node that was meant, and holds, is anything said to it. So a member that lies makes
this node show its certificate at places that it names, `DIALS_LIMIT` at a time, and costs a look-up the time of that. A
sender whose address is not known is answered, and not kept. Nodes that the cluster does not know (any more) are not
looked up, and nodes of a wire version without look-ups are asked nothing.

Limits: a node is looked up again after `AGAIN_S` at the soonest, and the time doubles up to `LONGEST_AGAIN_S`, so that
one that is gone for weeks costs nothing. `SOUGHT_LIMIT` nodes are remembered. `DIALS_LIMIT` addresses are tried at a
time, and `WAITING_LIMIT` wait for that, each for as long as its question may take.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from kos_cluster.core.buckets import Contact
from kos_cluster.core.kademlia import (
    ANSWER_TIMEOUT_S,
    Event,
    Failed,
    FindNode,
    Kademlia,
    Lookup,
    LookupDone,
    LookupRefused,
    Message,
    Mistaken,
    Received,
    Seen,
    Send,
)
from kos_cluster.core.records import Member
from kos_cluster.core.roles import Role
from kos_cluster.errors import KosError
from kos_cluster.net.controlplane import Finding
from kos_cluster.net.identity import Credentials
from kos_cluster.net.presenting import present
from kos_cluster.node.peers import Peers

log = logging.getLogger(__name__)

AGAIN_S = 30.0  # from one look-up of a node to the next; doubles up to
LONGEST_AGAIN_S = 3600.0
SOUGHT_LIMIT = 1024  # nodes whose last look-up is remembered
DIALS_LIMIT = 4  # addresses that others named and that are tried at a time
WAITING_LIMIT = 256  # that wait for their turn
SPOKEN_SINCE = 2  # the wire version from which on nodes understand `Finding`


class Lookups:
    """One node's. `member` gives what gossip knows of a node, `belongs` whether the cluster knows it."""

    def __init__(
        self,
        me: Member,
        peers: Peers,
        credentials: Credentials,
        denied: Callable[[int], bool],
        member: Callable[[str], Member | None],
        belongs: Callable[[str], bool],
    ) -> None:
        self._me = me.id
        self._peers = peers
        self._credentials = credentials
        self._denied = denied
        self._member = member
        self._belongs = belongs
        self._loop = asyncio.get_running_loop()
        self._machine = Kademlia(Contact(me.id, me.host, me.port), random.Random(secrets.randbits(64)))
        self._events: deque[Event] = deque()
        self._feeding = False
        self._sought: OrderedDict[str, tuple[float, float]] = OrderedDict()  # id -> not before, and the pause after it
        self._turns = asyncio.Semaphore(DIALS_LIMIT)
        self._dials: set[asyncio.Task[None]] = set()

    @property
    def contacts(self) -> int:
        """How many nodes this one can name to others."""
        return self._machine.contacts()

    def renewed(self, credentials: Credentials) -> None:
        """This node has another certificate now."""
        self._credentials = credentials

    def close(self) -> None:
        for dial in self._dials:
            dial.cancel()

    # ---- what happens

    def reached(self, member: Member, address: str) -> None:
        """A link of our own has proved that the node is at this address."""
        if member.versions.wire >= SPOKEN_SINCE:
            self._feed(Seen(_contact(member.id, address)))

    def greeted(self, id_: str) -> None:
        """A node has said hello over a link that it has opened."""
        address = self._peers.address(id_)
        if address and self._understands(id_):
            self._feed(Seen(_contact(id_, address)))

    def said(self, sender: str, message: Message) -> None:
        self._feed(Received(_contact(sender, self._peers.address(sender)), message))

    def unreachable(self, id_: str, address: str) -> None:
        """A link to the node at this address could not be made, or broke."""
        self._feed(Failed(_contact(id_, address)))
        if address == self._peers.address(id_):  # else it is looked for elsewhere by now
            self.seek(id_)

    def mistaken(self, id_: str, address: str) -> None:
        """Another node is at the address where this one was looked for."""
        self._feed(Mistaken(_contact(id_, address)))
        self.seek(id_)

    def seek(self, id_: str) -> None:
        """Look a node up, unless that was done lately."""
        if id_ == self._me or not self._belongs(id_):
            return
        now = self._loop.time()
        not_before, pause_s = self._sought.pop(id_, (now, AGAIN_S))
        if now < not_before:
            self._sought[id_] = (not_before, pause_s)
            return
        self._sought[id_] = (now + pause_s, min(pause_s * 2, LONGEST_AGAIN_S))
        if len(self._sought) > SOUGHT_LIMIT:
            self._sought.popitem(last=False)
        self._feed(Lookup(id_))

    def tick(self) -> None:
        """To be called at least once a second."""
        self._feed(None)

    # ---- inside

    def _feed(self, event: Event | None) -> None:
        """Let the machine handle an event, and what follows from carrying out its effects; None: the time has come."""
        if event is not None:
            self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            effects = self._machine.tick(self._loop.time()) if event is None else []
            while effects or self._events:
                for effect in effects:
                    self._carry_out(effect)
                effects = self._machine.handle(self._events.popleft(), self._loop.time()) if self._events else []
        finally:
            self._feeding = False

    def _carry_out(self, effect: Send | LookupDone | LookupRefused) -> None:
        match effect:
            case Send(contact, FindNode() as question):
                self._ask(contact, question)
            case Send(contact, answer):
                self._peers.send(contact.id, Finding(answer))
            case LookupDone(target, found):
                self._done(target, found)
            case LookupRefused(target, reason):
                log.warning("%s was not looked up: %s.", target, reason)

    def _ask(self, contact: Contact, question: FindNode) -> None:
        """Ask a node where it is known to be; where it is only said to be, see first who is there."""
        address = f"{contact.host}:{contact.port}"
        if not self._understands(contact.id):
            self._feed(Failed(contact))
        elif address != self._peers.address(contact.id):
            self._dial(contact, question)
        elif not self._peers.send(contact.id, Finding(question)):
            self._feed(Failed(contact))

    def _dial(self, contact: Contact, question: FindNode) -> None:
        if len(self._dials) >= DIALS_LIMIT + WAITING_LIMIT:
            self._feed(Failed(contact))
            return
        dial = self._loop.create_task(self._try(contact, question), name="look-up")
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)

    async def _try(self, contact: Contact, question: FindNode) -> None:
        until = time.monotonic() + ANSWER_TIMEOUT_S
        try:
            async with self._turns:
                if time.monotonic() >= until:
                    return  # too late; the machine has given the question up
                peer = await present(contact.host, contact.port, self._credentials)
        except (KosError, OSError, ValueError, OverflowError) as error:  # also for a name or port that cannot be one
            log.debug("%s is not at %s:%d: %s", contact.id, contact.host, contact.port, error)
            self._feed(Failed(contact))
            return
        if peer.id != contact.id or peer.role is not Role.NODE or self._denied(peer.serial):
            log.warning("%s is said to be at %s:%d, where %s is.", contact.id, contact.host, contact.port, peer)
            self._feed(Mistaken(contact))
            return
        self._peers.found(contact.id, f"{contact.host}:{contact.port}")
        if not self._peers.send(contact.id, Finding(question)):
            self._feed(Failed(contact))

    def _done(self, target: str, found: Contact | None) -> None:
        if found is None:
            log.debug("%s was looked up and not found.", target)
            return
        self._sought[target] = (self._loop.time() + AGAIN_S, AGAIN_S)
        log.info("%s was looked up and found at %s.", target, self._peers.address(target) or "a link of its own")

    def _understands(self, id_: str) -> bool:
        """Whether a node can be asked, as far as is known."""
        member = self._member(id_)
        return member is None or member.versions.wire >= SPOKEN_SINCE


def _contact(id_: str, address: str) -> Contact:
    """A contact; its port is 0 when no address is known."""
    host, _, port = address.rpartition(":")
    return Contact(id_, host, int(port or 0))
