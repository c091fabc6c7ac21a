"""Membership as the daemon uses it: runs the SWIM machine and the spread of loads over the links between nodes.

Theory of operation. Who is alive is gossip's (SWIM); who belongs to the cluster is agreed (the replicated state). What
is shown is both: a member whose identity the cluster has removed has left, whatever gossip says of it. What is known
of the members is kept on disk, as the addresses to come back to after a restart: soon after each change, and at once
where the voters are, since a voter that is killed and started again may be needed by just those.

Rules: a record is believed when the member's own key has signed it. The view's number grows with each change.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from kos_cluster.core import loadgossip, swim
from kos_cluster.core.records import Load, Member, MemberState
from kos_cluster.errors import StateError
from kos_cluster.net import wire
from kos_cluster.net.controlplane import Heartbeat, LoadNews
from kos_cluster.node.alarm import Alarm
from kos_cluster.node.peers import Peers
from kos_cluster.node.store import Store

log = logging.getLogger(__name__)

KEEP_EVERY_S = 2.0  # between two writes of the members, when nothing is new of where the voters are
SUSPICIOUS = (
    swim.Why.FORGED,
    swim.Why.MALFORMED,
    swim.Why.CONTRADICTS,
)  # the others come with gossip, and mean nothing
ALIVE = (MemberState.ALIVE, MemberState.SUSPECT)


class Membership:
    """One node's view of the members. `changed` is called after each new view."""

    def __init__(
        self,
        member: Member,
        profile: swim.Profile,
        store: Store,
        peers: Peers,
        sign: Callable[[bytes], bytes],
        verify: Callable[[str, bytes, bytes], bool],
        changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._peers = peers
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._tick)
        self._keeping: asyncio.TimerHandle | None = None
        self._voters_at: set[tuple[str, str]] = set()  # (id, address) as written since the start
        saved = store.get("members")
        known = msgspec.msgpack.decode(saved, type=list[swim.Known]) if saved else []
        rng = random.Random(secrets.randbits(64))
        self._swim = swim.Swim(
            member, profile, rng, sign, verify, self._loop.time(), known, first_view=int(time.time() * 1000)
        )
        self._loads = loadgossip.LoadGossip(member.id, member.incarnation, rng, self._loop.time())
        for row in known:
            peers.learn(row.member)

    # ---- what is known

    @property
    def view(self) -> int:
        return self._swim.view

    def members(self) -> list[Member]:
        return self._swim.members()

    def member(self, id_: str) -> Member | None:
        return self._swim.member(id_)

    def alive(self) -> list[str]:
        """The ids of the other members that are alive, or only suspected."""
        return [m.id for m in self._swim.members()[1:] if m.state in ALIVE]

    def unsuspected(self) -> list[str]:
        """The ids of the other members that are alive as far as anybody knows."""
        return [m.id for m in self._swim.members()[1:] if m.state is MemberState.ALIVE]

    def loads(self) -> dict[str, tuple[Load, float]]:
        return self._loads.loads(self._loop.time())

    # ---- life

    def start(self, addresses: Sequence[str]) -> None:
        """Look for the others, at these addresses and at those that were known before."""
        self._feed(swim.Join(tuple(addresses)))

    def update(self, member: Member) -> None:
        """This node's own record is another now."""
        self._feed(swim.UpdateSelf(member))

    def measured(self, load: Load) -> None:
        self._spread(self._loads.handle(loadgossip.Measured(load), self._loop.time()))

    def removed(self, id_: str) -> None:
        """The cluster has removed this member."""
        self._feed(swim.Removed(id_))
        self._peers.forget(id_)

    def unreachable(self, id_: str) -> None:
        self._feed(swim.LinkDown(id_))

    def heard(self, id_: str) -> None:
        """This node has said something, of whatever."""
        member = self._swim.member(id_)
        if member is None or member.state not in ALIVE:
            self._feed(swim.Heard(id_))

    def voting(self, ids: Collection[str]) -> None:
        """These vote: where they are is on the disk when this returns."""
        voters_at = {(id_, member.address) for id_ in ids if (member := self._swim.member(id_)) is not None}
        if voters_at - self._voters_at:
            self._keep()
        self._voters_at = voters_at

    async def leave(self, for_good: bool, timeout_s: float) -> None:
        """Tell the others that this node stops, and give that a moment to go out."""
        deadline = self._loop.time() + timeout_s
        self._feed(swim.Leave(for_good))
        while not self._swim.told and self.alive() and self._loop.time() < deadline:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self._alarm.cancel()
        if self._keeping is not None:
            self._keep()

    # ---- messages and time

    def said(self, sender: str, message: wire.Message) -> None:
        match message:
            case Heartbeat(inner):
                self._feed(swim.Received(sender, inner))
            case LoadNews(report):
                self._spread(self._loads.handle(loadgossip.Reported(report), self._loop.time()))

    def _feed(self, event: swim.Event) -> None:
        self._carry_out(self._swim.handle(event, self._loop.time()))

    def _tick(self) -> None:
        now = self._loop.time()
        if now >= self._swim.deadline:
            self._carry_out(self._swim.tick(now))
        if now >= self._loads.deadline:
            self._spread(self._loads.tick(now))
        self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm.set(min(self._swim.deadline, self._loads.deadline))

    def _carry_out(self, effects: Sequence[swim.Effect]) -> None:
        changed = False
        for effect in effects:
            match effect:
                case swim.Send(id_, address, message):
                    self._peers.send(id_, Heartbeat(message), address=address)
                case swim.MemberChanged(member, was, _):
                    changed = True
                    self._peers.learn(member)
                    if member.state is MemberState.ALIVE and was is not MemberState.ALIVE:
                        self._peers.hurry(member.id)
                    log.info("%s is %s (was %s).", member.name, member.state, was or "unknown")
                case swim.NameConflict(name, ids):
                    log.warning("Two nodes are named %s: %s.", name, " and ".join(ids))
                case swim.Ignored(why, about, sender):
                    level = logging.WARNING if why in SUSPICIOUS else logging.DEBUG
                    log.log(level, "What %s said about %s was ignored: %s.", sender, about or "a member", why)
        if changed:
            self._loads_of()
            self._keep_soon()
            self._changed()
        self._set_alarm()

    def _spread(self, effects: Sequence[loadgossip.SendReport]) -> None:
        for effect in effects:
            self._peers.send(effect.id, LoadNews(effect.report))

    def _loads_of(self) -> None:
        """Loads go to the members that are alive."""
        self._spread(self._loads.handle(loadgossip.Peers(tuple(self.alive())), self._loop.time()))

    def _keep_soon(self) -> None:
        if self._keeping is None:
            self._keeping = self._loop.call_later(KEEP_EVERY_S, self._keep)

    def _keep(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        try:
            self._store.put({"members": msgspec.msgpack.encode(self._swim.known())})
        except StateError as error:
            log.warning("%s The members are kept in memory only.", error)
