"""The table of members that a node holds, and what it remembers of those that it has forgotten.

Rules. A row changes only to a belief of higher precedence; the machine sees to that. Members that are alive or
suspected are never forgotten. One that left is forgotten after `LEFT_KEPT_S`; a dead one only when more than
`GONE_LIMIT` are gone, those that are gone longest first, since it may come back. What is forgotten leaves its
incarnation behind as a floor: no record up to the floor is taken, so an old record that some node still holds brings
nobody back. Floors are bounded by `FLOORS_LIMIT`, oldest first; beyond it an old record could make a member appear
for one detection time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.swim.messages import INCARNATION_LIMIT, Known, precedence

GONE_LIMIT = 1024  # members kept that are dead or left
LEFT_KEPT_S = 3600.0  # for which one that left is still listed
FLOORS_LIMIT = 8192  # forgotten ids whose last incarnation is remembered

_LIVE = (MemberState.ALIVE, MemberState.SUSPECT)


class Table:
    """Members by id, without the node itself."""

    def __init__(self, known: Iterable[Known], now: float) -> None:
        self._rows = {row.member.id: row for row in known}
        self._gone = {id_: now for id_, row in self._rows.items() if row.member.state not in _LIVE}
        self._floors: dict[str, int] = {}

    def __iter__(self) -> Iterator[Known]:
        return iter(self._rows.values())

    @property
    def live_count(self) -> int:
        """Members that are alive or suspected."""
        return len(self._rows) - len(self._gone)

    def get(self, id: str) -> Known | None:
        return self._rows.get(id)

    def precedence(self, id: str) -> int:
        """Of what is held or was forgotten of this id; -1 when nothing is known."""
        row = self._rows.get(id)
        if row is not None:
            return precedence(row.member.incarnation, row.member.state)
        floor = self._floors.get(id)
        return -1 if floor is None else precedence(floor, MemberState.LEFT)

    def floor(self, id: str) -> int:
        """The incarnation up to which nothing is believed of this id; -1: none."""
        return self._floors.get(id, -1)

    def dead_ids(self) -> list[str]:
        return [id_ for id_ in self._gone if self._rows[id_].member.state is MemberState.DEAD]

    def holder_of(self, name: str, but: str) -> str | None:
        """The id of a member other than `but` that has not left and has this name."""
        for id_, row in self._rows.items():
            if row.member.name == name and id_ != but and row.member.state is not MemberState.LEFT:
                return id_
        return None

    def put(self, row: Known, now: float) -> None:
        """Take a row in, in place of an older one."""
        id_ = row.member.id
        self._rows[id_] = row
        if row.member.state in _LIVE:
            self._gone.pop(id_, None)
        elif id_ not in self._gone:
            self._gone[id_] = now
            if len(self._gone) > GONE_LIMIT:
                self._forget(next(iter(self._gone)))

    def turn(self, row: Known, state: MemberState, now: float) -> Member:
        """Give a row another state; returns the changed member."""
        member = replace(row.member, state=state)
        self.put(Known(member, row.record), now)
        return member

    def bar(self, id: str, incarnation: int) -> None:
        """Believe nothing of this id up to this incarnation."""
        floor = max(incarnation, self._floors.pop(id, -1))
        self._floors[id] = floor
        if len(self._floors) > FLOORS_LIMIT:
            del self._floors[next(iter(self._floors))]

    def bar_for_good(self, id: str) -> None:
        """Believe nothing of this id again."""
        self.bar(id, INCARNATION_LIMIT)

    def forget_left(self, now: float) -> int:
        """Forget those that left long ago; returns how many."""
        forgotten = 0
        for id_, since in list(self._gone.items()):
            if now < since + LEFT_KEPT_S:
                break  # they stand in the order in which they went
            if self._rows[id_].member.state is MemberState.LEFT:
                self._forget(id_)
                forgotten += 1
        return forgotten

    def _forget(self, id: str) -> None:
        row = self._rows.pop(id)
        del self._gone[id]
        self.bar(id, row.member.incarnation)
