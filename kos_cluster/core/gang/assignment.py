"""How many ranks of a gang go to which node: arithmetic, and its words when they do not fit.

Rules. The ranks of one node are numbered without a gap, nodes in the order of their names. `PACK` takes as few nodes as
the cluster's slots allow, and `SPREAD` puts as few ranks as they allow on the fullest node; either waits rather than do
with less. `ANY` takes as few nodes as what is free allows. Nodes that the gang is to be near to come first, as far as
the shape leaves a choice; of `ANY` they do before few nodes. Equal input gives equal output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kos_cluster.core.capacity import slots_told
from kos_cluster.core.records import Layout

RANKS_LIMIT = 1024  # of one gang


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has for the ranks of one gang: how many fit `at_most`, and how many `now`. `why` explains a 0."""

    node: str
    name: str
    at_most: int
    now: int
    why: str = ""
    near: bool = False  # it has tasks of a job that the gang is to be near to


def assign(ranks: int, rooms: Sequence[Room], layout: Layout) -> tuple[str, ...] | None:
    """The node's id for each rank, by what is free now; None when the ranks do not fit in the shape asked for."""
    counts = _counts(ranks, rooms, layout)
    if counts is None:
        return None
    placed = sorted(zip(rooms, counts, strict=True), key=lambda pair: (pair[0].name, pair[0].node))
    return tuple(room.node for room, count in placed for _ in range(count))


def never(ranks: int, slots: int, rooms: Sequence[Room]) -> str:
    """Why the cluster cannot hold these ranks, of `slots` slots each, even when it is idle; empty when it can."""
    total = sum(room.at_most for room in rooms)
    if total >= ranks:
        return ""
    each = f"{_told(ranks)} of {slots_told(slots)}{' each' * (ranks != 1)}"
    return f"{each} {_fits_not(ranks)}: the cluster holds {total} of them at most ({_listed(rooms, at_most=True)})"


def waits(ranks: int, rooms: Sequence[Room], layout: Layout) -> str:
    """Why the ranks do not fit now."""
    free = sum(room.now for room in rooms)
    shape = "" if layout is Layout.ANY or free < ranks else f" in the shape asked for ({layout.value})"
    told = f"{_told(ranks)} {_fits_not(ranks)} now{shape}"
    return f"{told}; there is room for {free} ({_listed(rooms, at_most=False)})"


def _told(ranks: int) -> str:
    return f"{ranks} rank{'s' * (ranks != 1)}"


def _fits_not(ranks: int) -> str:
    return "does not fit" if ranks == 1 else "do not fit"


def _listed(rooms: Sequence[Room], *, at_most: bool) -> str:
    told = []
    for room in sorted(rooms, key=lambda room: room.name):
        count = room.at_most if at_most else room.now
        told.append(f"{room.name}: {count}" + (f", {room.why}" if room.why and not count else ""))
    return "; ".join(told) or "no node is alive"


def _counts(ranks: int, rooms: Sequence[Room], layout: Layout) -> list[int] | None:
    free, most, near = [room.now for room in rooms], [room.at_most for room in rooms], [room.near for room in rooms]
    if sum(free) < ranks:
        return None
    if layout is Layout.SPREAD:
        level = next(level for level in range(1, ranks + 1) if _under(most, level) >= ranks)
        return _level(ranks, free, near, level) if _under(free, level) >= ranks else None
    fewest = _fewest(ranks, most) if layout is Layout.PACK else ranks
    shapes = (_fill_near(ranks, free, near), _fill(ranks, free))
    return next((counts for counts in shapes if sum(map(bool, counts)) <= fewest), None)


def _under(rooms: Sequence[int], level: int) -> int:
    """The ranks that fit when no node takes more than `level`."""
    return sum(min(room, level) for room in rooms)


def _level(ranks: int, free: Sequence[int], near: Sequence[bool], level: int) -> list[int]:
    """Each node the same number, as far as it has room; the last ones go near, and where most is free."""
    while level > 1 and _under(free, level - 1) >= ranks:
        level -= 1
    counts = [min(room, level - 1) for room in free]
    over = ranks - sum(counts)
    roomy = [place for place in range(len(free)) if free[place] >= level]
    for place in sorted(roomy, key=lambda place: (not near[place], -free[place]))[:over]:
        counts[place] += 1
    return counts


def _fewest(ranks: int, most: Sequence[int]) -> int:
    """With how few nodes the ranks could do."""
    return sum(map(bool, _fill(ranks, most)))


def _fill_near(ranks: int, free: Sequence[int], near: Sequence[bool]) -> list[int]:
    """As `_fill`, the near nodes first."""
    beside = [room if is_near else 0 for room, is_near in zip(free, near, strict=True)]
    first = _fill(min(ranks, sum(beside)), beside)
    others = [room - near_room for room, near_room in zip(free, beside, strict=True)]
    rest = _fill(ranks - sum(first), others)
    return [one + other for one, other in zip(first, rest, strict=True)]


def _fill(ranks: int, free: Sequence[int]) -> list[int]:
    """As few nodes as possible: the roomiest first, and for the rest the tightest one that holds it."""
    counts = [0] * len(free)
    left = ranks
    for place in sorted(range(len(free)), key=lambda place: -free[place]):
        if not left:
            break
        fitting = [other for other in range(len(free)) if not counts[other] and free[other] >= left]
        chosen = min(fitting, key=lambda other: free[other]) if fitting else place
        counts[chosen] = min(left, free[chosen])
        left -= counts[chosen]
    return counts
