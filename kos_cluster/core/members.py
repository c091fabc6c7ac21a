"""The registry of members: who is in the cluster, alive or not, as one keeper hears it by heartbeats.

Theory of operation. Each node sends `Heard` (a heartbeat) every `HEARTBEAT_S`. Silence turns a member `suspect`,
longer silence `dead`; hearing from it turns it `alive` again. A member that said it leaves is `left` until it is
heard under a newer incarnation. Every change makes a new view, with a larger number, which the keeper hands to
whoever holds an older one.

This is the interface that later membership protocols take over: `handle(event, now)` and `tick(now)` return
effects, `view` and `members()` tell the state; nobody else asks how it was agreed.

    state     event            next
    -         Heard            alive
    alive     silence 2 s      suspect
    suspect   silence 5 s      dead
    suspect   Heard            alive
    dead      Heard            alive     (a healed link, or a new incarnation)
    any       Departed(left)   left
    any       Departed(stop)   dead
    left      Heard, newer     alive
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Load, Member, MemberState

HEARTBEAT_S = 0.5
SUSPECT_AFTER_S = 2.0
DEAD_AFTER_S = 5.0
MEMBERS_LIMIT = 1024  # members kept, those that are dead or left included


class Heard(msgspec.Struct, frozen=True):
    """A heartbeat of a member, its own record and load in it."""

    member: Member
    load: Load


class Departed(msgspec.Struct, frozen=True):
    """A member says that it stops; for good when `left`."""

    id: str
    left: bool


class ViewChanged(msgspec.Struct, frozen=True):
    """Effect: a member's record changed. Persist it, then tell those who hold an older view."""

    view: int
    member: Member
    was: MemberState | None


class MemberRefused(msgspec.Struct, frozen=True):
    """Effect: the registry will not take this record; the sentence says why."""

    id: str
    reason: str


Event = Heard | Departed
Effect = ViewChanged | MemberRefused


class Registry:
    """The keeper's machine. `restored` are members known before a restart; they count as heard at `now`.

    `first_view` must be larger than any view number told before.
    """

    def __init__(self, restored: list[Member], now: float, first_view: int = 1) -> None:
        self.view = first_view
        self._members = {member.id: member for member in restored}
        self._heard = dict.fromkeys(self._members, now)
        self._loads: dict[str, Load] = {}

    def members(self) -> list[Member]:
        return list(self._members.values())

    def loads(self, now: float) -> dict[str, tuple[Load, float]]:
        """The last load of each member with its age in seconds."""
        return {id_: (load, max(0.0, now - self._heard[id_])) for id_, load in self._loads.items()}

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Heard(member, load):
                return self._hear(member, load, now)
            case Departed(id_, left):
                return self._depart(id_, left)

    def tick(self, now: float) -> list[Effect]:
        """Turn the silent ones suspect, then dead."""
        effects: list[Effect] = []
        for id_, member in self._members.items():
            silent_s = now - self._heard[id_]
            if member.state is MemberState.ALIVE and silent_s >= SUSPECT_AFTER_S:
                effects.append(self._become(member, MemberState.SUSPECT))
            elif member.state is MemberState.SUSPECT and silent_s >= DEAD_AFTER_S:
                effects.append(self._become(member, MemberState.DEAD))
        return effects

    def name_taken(self, name: str) -> bool:
        """Whether a member that has not left holds this name."""
        return any(m.name == name and m.state is not MemberState.LEFT for m in self._members.values())

    def _hear(self, member: Member, load: Load, now: float) -> list[Effect]:
        known = self._members.get(member.id)
        if known is not None and member.incarnation < known.incarnation:
            return [MemberRefused(member.id, "its heartbeat is of an older incarnation")]
        if known is not None and known.state is MemberState.LEFT and member.incarnation == known.incarnation:
            return [MemberRefused(member.id, "it has left the cluster")]
        if any(other.name == member.name and other.id != member.id for other in self._standing()):
            return [MemberRefused(member.id, f"another node is named {member.name}")]
        if known is None and not self._make_room():
            return [MemberRefused(member.id, f"the cluster has {MEMBERS_LIMIT} members, which is its limit")]
        self._heard[member.id] = now
        self._loads[member.id] = load
        fresh = msgspec.structs.replace(member, state=MemberState.ALIVE)
        if known == fresh:
            return []
        self._members[member.id] = fresh
        self.view += 1
        return [ViewChanged(self.view, fresh, known.state if known else None)]

    def _standing(self) -> list[Member]:
        return [m for m in self._members.values() if m.state is not MemberState.LEFT]

    def _make_room(self) -> bool:
        if len(self._members) < MEMBERS_LIMIT:
            return True
        gone = [m for m in self._members.values() if m.state in (MemberState.LEFT, MemberState.DEAD)]
        if not gone:
            return False
        oldest = min(gone, key=lambda m: self._heard[m.id])
        del self._members[oldest.id], self._heard[oldest.id]
        self._loads.pop(oldest.id, None)
        return True

    def _depart(self, id_: str, left: bool) -> list[Effect]:
        member = self._members.get(id_)
        state = MemberState.LEFT if left else MemberState.DEAD
        if member is None or member.state is state:
            return []
        return [self._become(member, state)]

    def _become(self, member: Member, state: MemberState) -> ViewChanged:
        changed = msgspec.structs.replace(member, state=state)
        self._members[member.id] = changed
        self.view += 1
        return ViewChanged(self.view, changed, member.state)
