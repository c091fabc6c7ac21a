"""The SWIM machine of one node.

Theory of operation. Each node probes the others in random turns (`probing`, `turns`). Whom nobody can reach is
suspected; the suspicion is told, ends the sooner the more members confirm it (`suspicion`), and then the member is
dead. Updates travel on the probes' messages and in a gossip round of their own while there are any (`rumours`). What
gossip missed, anti-entropy repairs (`antientropy`). The state of each member is a belief with a precedence: a higher
incarnation holds against a lower one, and within one incarnation alive < suspect < dead < left. Only the member
itself makes its incarnations, and signs each.

    state     event                                               next
    -         record, alive                                       alive
    alive     own probe failed, or a suspicion is heard           suspect
    suspect   another accuser                                     suspect, for a shorter time
    suspect   its time is over, or a death is heard               dead
    alive     a death is heard in gossip                          dead
    alive     a death is heard in anti-entropy                    suspect, so that it can refute
    any       record of a higher incarnation, alive               alive    (a refutation, a restart, a healed partition)
    any       record of a higher incarnation, left                left
    alive, suspect, dead   the cluster removed it                 left, for good
    left      `LEFT_KEPT_S` later                                 - (its incarnation is remembered as a floor)

Rules.
- An accused node that hears of it signs a higher incarnation at once. It hears soon: whatever is sent to a member
  that is held suspect or dead tells it so first (Lifeguard's buddy system), and members that hear a suspicion probe
  next.
- A node that ran late was stalled: the time did not count for its suspicions, the probe under way gets its time anew,
  and its local health is worse. So one that stalls accuses nobody on waking, before it has read what came meanwhile.
- Accusations are believed only from members that are alive, and about exactly the incarnation that is held; a record
  only when its signature is right and its incarnation is newer. All else is `Ignored`, and counted in `ignored`.
- Dead members are tried for ever, one each `reconnect_s`, by anti-entropy, and at once when they are heard, so both
  sides of a healed partition meet again. A node that knows nobody alive tries its bootstrap list each `JOIN_RETRY_S`.
- Names are compared, never decided here.

Traffic. A node in a quiet cluster sends a ping and an ack each `probe_s`, and now and then a sum per 16 members, at a
period that grows with them; so it is flat. An update costs each node `rumours.tellings` times its size.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable

from msgspec.structs import replace

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.swim import antientropy
from kos_cluster.core.swim.beliefs import Beliefs, Sign, Verify
from kos_cluster.core.swim.events import (
    Effect,
    Event,
    Heard,
    Join,
    Leave,
    LinkDown,
    Received,
    Removed,
    Send,
    UpdateSelf,
    Why,
)
from kos_cluster.core.swim.messages import (
    INCARNATION_LIMIT,
    Ack,
    Gossip,
    Known,
    Message,
    Nack,
    Ping,
    PingReq,
    SyncData,
    SyncDigest,
    SyncRequest,
)
from kos_cluster.core.swim.profile import Profile

GOSSIP_FANOUT = 3  # members told in one round of gossip
FAREWELL_FANOUT = 8  # members told at once by one that stops
SEEDS_LIMIT = 16  # addresses of the bootstrap list
JOIN_RETRY_S = 2.0  # from one try of the bootstrap list to the next
JOIN_QUIET_S = 5.0  # what a node that knew nobody is sent within this time is no news to the others


class Swim:
    """One node's membership. `known` is what `known()` gave before a restart; `first_view` must be larger than any
    view number told before. `sign` signs bytes with this node's key, `verify(id, bytes, signature)` checks another's.
    """

    def __init__(
        self,
        member: Member,
        profile: Profile,
        rng: random.Random,
        sign: Sign,
        verify: Verify,
        now: float,
        known: Iterable[Known] = (),
        first_view: int = 1,
    ) -> None:
        self._profile, self._rng = profile, rng
        self._effects: list[Effect] = []  # of the call that is running
        self._beliefs = Beliefs(member, profile, rng, sign, verify, known, now, self._effects)
        self._beliefs.view = first_view
        self._id = member.id
        self._stopped = False
        self._seeds: tuple[str, ...] = ()
        self._join_at = self._greet_at = self._ran_at = now
        self._quiet_until = -math.inf
        self._sync_at = now + rng.random() * self._spaced(profile.sync_s)
        self._reconnect_at = now + self._spaced(profile.reconnect_s)
        self.deadline = self._due()  # when `tick` must be called next; it changes with each call

    # ---- what is known

    @property
    def view(self) -> int:
        """The number of the view that `members()` gives; it grows with each change."""
        return self._beliefs.view

    @property
    def ignored(self) -> Counter[Why]:
        """How often what was heard was ignored, by reason."""
        return self._beliefs.ignored

    @property
    def health(self) -> int:
        """Local health: 0 is good; time-outs are `1 + health` times as long."""
        return self._beliefs.prober.health

    @property
    def told(self) -> bool:
        """Whether this node's last news of itself (a farewell, for one) has been told as often as it will be."""
        return self._id not in self._beliefs.rumours

    def members(self) -> list[Member]:
        """Every member that is not forgotten, this node first."""
        return [row.member for row in self._beliefs.rows()]

    def member(self, id: str) -> Member | None:
        """One member."""
        row = self._beliefs.row(id)
        return row.member if row else None

    def known(self) -> list[Known]:
        """What to keep for the next start, this node's own record included."""
        return self._beliefs.rows()

    def name_taken(self, name: str) -> bool:
        """Whether a member that has not left holds this name."""
        return name == self._beliefs.own.member.name or self._beliefs.table.holder_of(name, but="") is not None

    # ---- events and time

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event in. Raises LimitError for a record of this node that is too large."""
        self._notice_stall(now)
        beliefs = self._beliefs
        match event:
            case Received(sender, message) if sender != self._id:
                self._receive(sender, message, now)
            case LinkDown(id_) if beliefs.is_live(id_):
                beliefs.prober.link_down(id_, now)
            case Heard(id_) if not self._stopped and beliefs.table.floor(id_) < INCARNATION_LIMIT:
                self._greet(id_, now)
            case UpdateSelf(member) if not self._stopped:
                incarnation = max(member.incarnation, beliefs.own.member.incarnation + 1)
                beliefs.renew(replace(member, id=self._id, state=MemberState.ALIVE, incarnation=incarnation), now)
            case Join(addresses) if not self._stopped:
                self._seeds = addresses[:SEEDS_LIMIT]
                self._ask_seeds(now)
            case Removed(id_) if id_ != self._id:
                beliefs.remove(id_, now)
            case Leave(for_good) if not self._stopped:
                self._leave(for_good, now)
        return self._taken(now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        self._notice_stall(now)
        if not self._stopped:
            self._tick_probes(now)
            self._tick_sync(now)
        if self._beliefs.rumours and now >= self._beliefs.gossip_at:
            self._gossip(GOSSIP_FANOUT, now)
        return self._taken(now)

    def _notice_stall(self, now: float) -> None:
        late_s = now - max(self.deadline, self._ran_at)
        if late_s <= self._profile.late_s:
            return
        self._beliefs.prober.stalled(now)
        for suspicion in self._beliefs.suspicions.values():
            suspicion.postpone(late_s, now + self._profile.probe_s)

    def _tick_probes(self, now: float) -> None:
        beliefs = self._beliefs
        sent, failed = beliefs.prober.tick(now)
        self._send_all(sent)
        if failed is not None and (row := beliefs.table.get(failed)) is not None:
            beliefs.suspect(row, (self._id,), now)
        for id_ in [id_ for id_, suspicion in beliefs.suspicions.items() if now >= suspicion.ends]:
            if (row := beliefs.table.get(id_)) is not None:
                beliefs.bury(row, self._id, now)

    def _tick_sync(self, now: float) -> None:
        table, turns = self._beliefs.table, self._beliefs.turns
        if now >= self._sync_at:
            self._sync_at = now + self._spaced(self._profile.sync_s)
            self._beliefs.view += table.forget_left(now)
            for id_ in turns.some(1):
                self._request_sync(id_)
        if now >= self._reconnect_at:
            self._reconnect_at = now + self._spaced(self._profile.reconnect_s)
            if dead := table.dead_ids():
                self._request_sync(dead[self._rng.randrange(len(dead))])
        if self._alone and self._seeds and now >= self._join_at:
            self._ask_seeds(now)

    def _ask_seeds(self, now: float) -> None:
        self._join_at = now + JOIN_RETRY_S
        if self._alone:
            self._quiet_until = now + JOIN_QUIET_S
        for address in self._seeds:
            if address != self._beliefs.own.member.address:
                self._request_sync("", address)

    def _gossip(self, fanout: int, now: float) -> None:
        beliefs = self._beliefs
        beliefs.gossip_at = now + self._profile.gossip_s
        if self._alone:
            beliefs.rumours.clear()  # whoever comes gets it by anti-entropy
        for id_ in beliefs.turns.some(fanout):
            if updates := beliefs.updates_for(id_):
                self._send(id_, Gossip(updates))

    def _leave(self, for_good: bool, now: float) -> None:
        beliefs, own = self._beliefs, self._beliefs.own.member
        if for_good:
            beliefs.renew(replace(own, state=MemberState.LEFT, incarnation=own.incarnation + 1), now)
        else:
            beliefs.stop(now)
        self._stopped = True
        self._gossip(FAREWELL_FANOUT, now)

    # ---- messages

    def _receive(self, sender: str, message: Message, now: float) -> None:
        beliefs = self._beliefs
        if beliefs.table.floor(sender) >= INCARNATION_LIMIT:
            beliefs.ignore(Why.FORGOTTEN, sender, sender)
            return
        if self._stopped:
            if isinstance(message, Ping):
                self._send(sender, Ack(message.seq))
            return
        if isinstance(message, (SyncRequest, SyncDigest, SyncData)):
            self._receive_sync(sender, message, now)
            return
        if not isinstance(message, Nack):
            for update in message.gossip:
                beliefs.hear(update, sender, now)
        match message:
            case Ping(seq):
                self._send(sender, Ack(seq))
            case Ack(seq):
                self._send_all(beliefs.prober.acked(sender, seq))
            case Nack(seq):
                beliefs.prober.nacked(sender, seq)
            case PingReq(seq, target) if beliefs.is_live(target):
                self._send_all(beliefs.prober.asked(sender, seq, target, now))
            case PingReq(seq):
                self._send(sender, Nack(seq))
        self._greet(sender, now)

    def _greet(self, sender: str, now: float) -> None:
        """Who speaks but is not held alive is asked to compare, and so learns what is held of it."""
        if not self._beliefs.is_live(sender) and now >= self._greet_at:
            self._greet_at = now + self._profile.gossip_s
            self._request_sync(sender)

    def _receive_sync(self, sender: str, message: SyncRequest | SyncDigest | SyncData, now: float) -> None:
        beliefs = self._beliefs
        match message:
            case SyncRequest(record, bits, sums) if antientropy.are_sums(bits, sums):
                beliefs.hear_record(record, sender, now)
                self._send_all((sender, answer) for answer in antientropy.digests(beliefs.rows(), bits, sums))
            case SyncDigest(bits) if antientropy.are_bits(bits):
                offered, wanted = antientropy.compare(beliefs.rows(), message, beliefs.precedence)
                self._send_data(sender, offered, wanted)
            case SyncData(entries, wanted):
                tell = now >= self._quiet_until
                newer = [row for entry in entries if (row := beliefs.hear_entry(entry, sender, now, tell=tell))]
                asked = [row for id_ in dict.fromkeys(wanted) if (row := beliefs.row(id_))]
                self._send_data(sender, newer + asked, [])
            case _:
                beliefs.ignore(Why.MALFORMED, "", sender)

    def _request_sync(self, id: str, address: str = "") -> None:
        rows = self._beliefs.rows()
        bits = antientropy.bits_for(len(rows) - 1)
        self._send(id, SyncRequest(self._beliefs.own.record, bits, antientropy.sums(rows, bits)), address)

    def _send_data(self, id: str, rows: list[Known], wanted: list[str]) -> None:
        self._send_all((id, message) for message in antientropy.data(map(self._beliefs.entry, rows), wanted))

    def _send(self, id: str, message: Message, address: str = "") -> None:
        if isinstance(message, (Ping, Ack, PingReq)) and (updates := self._beliefs.updates_for(id)):
            message = replace(message, gossip=updates)
        row = self._beliefs.table.get(id)
        self._effects.append(Send(id, row.member.address if row else address, message))

    def _send_all(self, sent: Iterable[tuple[str, Message]]) -> None:
        for id_, message in sent:
            self._send(id_, message)

    # ---- small steps

    @property
    def _alone(self) -> bool:
        return not self._beliefs.turns

    def _spaced(self, period_s: float) -> float:
        """A period for this many members, spread so that nodes do not act together."""
        return period_s * self._profile.growth(self._beliefs.count) * (0.5 + self._rng.random())

    def _due(self) -> float:
        beliefs, due = self._beliefs, math.inf
        if not self._stopped:
            due = min(beliefs.prober.deadline, self._sync_at, self._reconnect_at)
            if self._seeds and self._alone:
                due = min(due, self._join_at)
            for suspicion in beliefs.suspicions.values():
                due = min(due, suspicion.ends)
        return min(due, beliefs.gossip_at) if beliefs.rumours else due

    def _taken(self, now: float) -> list[Effect]:
        self._ran_at, self.deadline = now, self._due()
        effects = self._effects.copy()
        self._effects.clear()
        return effects
