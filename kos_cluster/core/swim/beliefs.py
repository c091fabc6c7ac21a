"""What a node believes of the members, and how it takes in what it hears. `machine` tells the theory and the states.

Rules. A record is believed when its signature is right and its incarnation newer than what is held; an accusation
when it is about exactly the incarnation that is held and its accuser is alive. Whatever is believed for the first
time is told on. All else is `Ignored`, and counted. An accusation of this node itself is answered by a higher
incarnation at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec
from msgspec.structs import replace

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.swim.events import Effect, Ignored, MemberChanged, NameConflict, Why
from kos_cluster.core.swim.messages import (
    ACCUSERS_LIMIT,
    ID_LIMIT_BYTES,
    INCARNATION_LIMIT,
    RECORD_LIMIT_BYTES,
    Dead,
    Entry,
    Known,
    Record,
    Suspect,
    Update,
    body_of,
    precedence,
    sealed,
    size_bytes,
)
from kos_cluster.core.swim.probing import Prober
from kos_cluster.core.swim.profile import Profile
from kos_cluster.core.swim.rumours import Rumours
from kos_cluster.core.swim.suspicion import Suspicion
from kos_cluster.core.swim.table import Table
from kos_cluster.core.swim.turns import Turns
from kos_cluster.errors import LimitError

CONFIRMERS = 8  # members that probe a suspected one out of turn, about, in a cluster of any size

Sign = Callable[[bytes], bytes]
Verify = Callable[[str, bytes, bytes], bool]

_ALIVE, _SUSPECT, _DEAD, _LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT
_LIVE = (_ALIVE, _SUSPECT)
_decode_member = msgspec.msgpack.Decoder(Member).decode


class Beliefs:
    """The members, this node included, and what follows from a change of one. Effects are appended to `effects`."""

    def __init__(
        self,
        member: Member,
        profile: Profile,
        rng: random.Random,
        sign: Sign,
        verify: Verify,
        known: Iterable[Known],
        now: float,
        effects: list[Effect],
    ) -> None:
        self.view = 0
        self.ignored: Counter[Why] = Counter()
        self._profile, self._rng, self._sign, self._verify, self._effects = profile, rng, sign, verify, effects
        self.id = member.id
        rows = [_unsuspected(row) for row in known]
        before = next((row for row in rows if row.member.id == self.id), None)
        self.own = self._signed(_after(before, replace(member, state=_ALIVE)))
        self.table = Table((row for row in rows if row.member.id != self.id), now)
        self.turns = Turns((row.member.id for row in self.table if row.member.state is _ALIVE), rng)
        self.prober = Prober(profile, self.turns, rng, now)
        self.suspicions: dict[str, Suspicion] = {}
        self.rumours = Rumours()
        self.gossip_at = now  # the next round of gossip, when there are rumours
        if before is None or before.record != self.own.record:
            self._tell(self.id, self.own.record, now)

    # ---- what is held

    @property
    def count(self) -> int:
        """Members that are alive or suspected, this node included."""
        return self.table.live_count + 1

    def row(self, id: str) -> Known | None:
        return self.own if id == self.id else self.table.get(id)

    def is_live(self, id: str) -> bool:
        """Whether another member of this id is alive or suspected."""
        row = self.table.get(id)
        return row is not None and row.member.state in _LIVE

    def rows(self) -> list[Known]:
        """All, this node first."""
        return [self.own, *self.table]

    def precedence(self, id: str) -> int:
        """Of what is held of this id, or was forgotten; -1 when nothing is known."""
        if id == self.id:
            return precedence(self.own.member.incarnation, self.own.member.state)
        return self.table.precedence(id)

    def entry(self, row: Known) -> Entry:
        """A row as anti-entropy sends it."""
        return Entry(row.record, self._verdict(row))

    def updates_for(self, id: str) -> tuple[Update, ...]:
        """What a message to this member carries: first what is held against itself (the buddy system), then rumours."""
        row = self.table.get(id)
        first = self._verdict(row) if row is not None else None
        if first is None and not self.rumours:
            return ()
        return self.rumours.take(self.count, first)

    def _verdict(self, row: Known) -> Suspect | Dead | None:
        member = row.member
        if member.state is _SUSPECT:
            return Suspect(member.id, member.incarnation, self.suspicions[member.id].accusers)
        return Dead(member.id, member.incarnation, self.id) if member.state is _DEAD and member.id != self.id else None

    # ---- what is heard

    def hear(self, update: Update, sender: str, now: float) -> None:
        """Take in an update that was gossiped."""
        if isinstance(update, Record):
            self.hear_record(update, sender, now)
            return
        accusers = update.accusers[:ACCUSERS_LIMIT] if isinstance(update, Suspect) else (update.accuser,)
        row = self._accused(update.id, update.incarnation, sender, now)
        if row is None:
            return
        members = tuple(id_ for id_ in accusers if id_ in (self.id, row.member.id) or self.is_live(id_))
        if not members:
            self.ignore(Why.STRANGER, update.id, sender)
        elif isinstance(update, Suspect):
            self.suspect(row, members, now)
        else:
            self.bury(row, members[0], now)

    def hear_entry(self, entry: Entry, sender: str, now: float, *, tell: bool) -> Known | None:
        """Take in an entry of anti-entropy; returns the row that the sender should have instead, if it is outdated.

        A death of a member that is held alive is taken for a suspicion, so that the member can refute.
        """
        verdict = entry.verdict
        member = self.hear_record(entry.record, sender, now, dead=isinstance(verdict, Dead), tell=tell)
        if member is None:
            return None
        id_, incarnation, theirs = member.id, member.incarnation, member.state
        if verdict is not None and (verdict.id, verdict.incarnation) == (id_, incarnation):
            theirs = _DEAD if isinstance(verdict, Dead) else _SUSPECT
            if self.precedence(id_) < precedence(incarnation, theirs):
                row = self._accused(id_, incarnation, sender, now)
                if row is not None:
                    self.suspect(row, (sender,), now)
        return self.row(id_) if self.precedence(id_) > precedence(incarnation, theirs) else None

    def hear_record(
        self, record: Record, sender: str, now: float, *, dead: bool = False, tell: bool = True
    ) -> Member | None:
        """Believe a record if it is news. With `dead` a member that was not known is dead from the start.

        Returns what the record says, unless it is malformed or forged.
        """
        member = _member_of(record)
        if member is None:
            self.ignore(Why.MALFORMED, "", sender)
            return None
        row, incarnation = self.row(member.id), member.incarnation
        if row is not None and record == row.record:
            return member
        why = self._why_not(member, row)
        if why is not None:
            self.ignore(why, member.id, sender)
            return member
        if not self._verify(member.id, sealed(record.body), record.signature):
            self.ignore(Why.FORGED, member.id, sender)
            return None
        if member.id == self.id:  # an earlier life of this node, whose clock was ahead
            self.renew(replace(self.own.member, incarnation=incarnation + 1), now)
        elif row is None and member.state is _LEFT:
            self.table.bar(member.id, incarnation)
        else:
            self._place(Known(replace(member, state=_DEAD) if dead and row is None else member, record), row, now)
            if tell:
                self._tell(member.id, record, now)
        return member

    def ignore(self, why: Why, about: str, sender: str) -> None:
        """Count and tell that something heard is not believed."""
        self.ignored[why] += 1
        self._effects.append(Ignored(why, about, sender))

    def _accused(self, id: str, incarnation: int, sender: str, now: float) -> Known | None:
        """The row that an accusation is about, if it is to be believed. This node itself refutes."""
        row = self.row(id)
        if row is None:
            self.ignore(Why.AHEAD, id, sender)
        elif incarnation != row.member.incarnation:
            self.ignore(Why.OLDER if incarnation < row.member.incarnation else Why.AHEAD, id, sender)
        elif id == self.id:
            self.prober.worsen()
            self.renew(replace(row.member, incarnation=incarnation + 1), now)
        else:
            return row
        return None

    def _why_not(self, member: Member, row: Known | None) -> Why | None:
        """Why a record is not believed, be it genuine or not."""
        if member.incarnation <= self.table.floor(member.id):
            return Why.FORGOTTEN
        if row is not None and member.incarnation <= row.member.incarnation:
            return Why.OLDER if member.incarnation < row.member.incarnation else Why.CONTRADICTS
        joins = member.state is _ALIVE and (row is None or row.member.state not in _LIVE)
        return Why.FULL if joins and self.count >= self._profile.members_limit else None

    # ---- what follows

    def suspect(self, row: Known, accusers: tuple[str, ...], now: float) -> None:
        """These members accuse that one: begin a suspicion, or confirm it."""
        id_, incarnation = row.member.id, row.member.incarnation
        suspicion = self.suspicions.get(id_)
        if row.member.state is _ALIVE:
            suspicion = Suspicion(incarnation, accusers, self._profile.suspicion_s(self.count), self.count, now)
            self.suspicions[id_] = suspicion
            self._changed(self.table.turn(row, _SUSPECT, now), _ALIVE)
            if self.id not in accusers and self._rng.random() * self.count < CONFIRMERS:
                self.turns.hasten(id_)
        elif suspicion is None or not suspicion.confirm(accusers):
            return
        self._tell(id_, Suspect(id_, incarnation, suspicion.accusers), now)

    def bury(self, row: Known, accuser: str, now: float) -> None:
        """A live member is dead."""
        if row.member.state in _LIVE:
            self._place(Known(replace(row.member, state=_DEAD), row.record), row, now)
            self._tell(row.member.id, Dead(row.member.id, row.member.incarnation, accuser), now)

    def remove(self, id: str, now: float) -> None:
        """The cluster removed this member for good."""
        self.table.bar_for_good(id)
        self.rumours.drop(id)
        row = self.table.get(id)
        if row is not None and row.member.state is not _LEFT:
            self._place(Known(replace(row.member, state=_LEFT), row.record), row, now)

    def renew(self, member: Member, now: float) -> None:
        """Tell a new record of this node."""
        was, self.own = self.own.member, self._signed(member)
        self._changed(member, was.state)
        self._tell(self.id, self.own.record, now)
        if member.name != was.name:
            self._compare_name(member)

    def stop(self, now: float) -> None:
        """This node stops, to come back later."""
        member = self.own.member
        self.own = Known(replace(member, state=_DEAD), self.own.record)
        self._changed(self.own.member, member.state)
        self._tell(self.id, Dead(self.id, member.incarnation, self.id), now)

    def _place(self, known: Known, row: Known | None, now: float) -> None:
        """Put a row in place of an older one, and see to what hangs on it."""
        member, was = known.member, row.member.state if row else None
        self.suspicions.pop(member.id, None)
        if was in _LIVE and member.state not in _LIVE:
            self.turns.remove(member.id)
            self.prober.forget(member.id)
        elif was not in _LIVE and member.state is _ALIVE:
            self.turns.add(member.id)
        self.table.put(known, now)
        self._changed(member, was)
        if member.state is _ALIVE and (row is None or was is _LEFT or row.member.name != member.name):
            self._compare_name(member)

    def _compare_name(self, member: Member) -> None:
        if member.id != self.id and member.name == self.own.member.name:
            self._effects.append(NameConflict(member.name, (self.id, member.id)))
        elif (holder := self.table.holder_of(member.name, but=member.id)) is not None:
            self._effects.append(NameConflict(member.name, (holder, member.id)))

    def _tell(self, about: str, update: Update, now: float) -> None:
        if not self.rumours:
            self.gossip_at = max(self.gossip_at, now + self._rng.random() * self._profile.gossip_s)
        self.rumours.add(about, update)

    def _changed(self, member: Member, was: MemberState | None) -> None:
        self.view += 1
        self._effects.append(MemberChanged(member, was, self.view))

    def _signed(self, member: Member) -> Known:
        body = body_of(member)
        record = Record(body, self._sign(sealed(body)))
        if (size := size_bytes(record)) > RECORD_LIMIT_BYTES:
            raise LimitError(
                f"The record of node {member.name} takes {size} bytes; at most {RECORD_LIMIT_BYTES} can be gossiped.",
                "Give the node a shorter name or host name.",
            )
        return Known(member, record)


def _member_of(record: Record) -> Member | None:
    """What a record says, or None when it is no record."""
    if len(record.body) + len(record.signature) > RECORD_LIMIT_BYTES:
        return None
    try:
        member = _decode_member(record.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    sound = 0 <= member.incarnation < INCARNATION_LIMIT and member.state in (_ALIVE, _LEFT)
    return member if sound and 0 < len(member.id.encode()) <= ID_LIMIT_BYTES else None


def _after(before: Known | None, member: Member) -> Member:
    """This node's record with an incarnation that is newer than before, unless it is the same record."""
    if before is None or before.member == member or before.member.incarnation < member.incarnation:
        return member
    return replace(member, incarnation=before.member.incarnation + 1)


def _unsuspected(row: Known) -> Known:
    return Known(replace(row.member, state=_ALIVE), row.record) if row.member.state is _SUSPECT else row
