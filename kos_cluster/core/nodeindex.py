"""The nodes of an owner, kept in the groups that placement chooses from, so that a choice does not look at all of them.

Theory of operation. For each kind of needs there is a pool: all nodes, filed by `placement.rank`. When something of a
node changes, only its id is noted; a pool that is asked for a node first files anew what was noted since it was last
asked. So placing a task costs as much as the few nodes that have changed, however many there are. A node that refused
work comes back by itself when its pause is over.

Rules: what `placement` decides is decided here, too, from the same functions; nothing here is policy. A pool that was
not asked for long is dropped and made anew when it is: that costs one look at every node.

Limits: `POOLS_LIMIT` pools; `NOTES_LIMIT` notes. A pool that has missed older ones is made anew.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Collection, Iterator

import msgspec

from kos_cluster.core import reasons
from kos_cluster.core.placement import (
    FREE,
    FREE_BARE,
    FULL,
    NEVER,
    PLAIN,
    QUEUES,
    QUEUES_BARE,
    WIDE_LIMIT,
    Candidate,
    Leaning,
    Placement,
    by_inputs,
    choose,
    rank,
    rank_now,
    ranks,
    why_never,
)
from kos_cluster.core.randomset import RandomSet
from kos_cluster.core.records import Layout, Needs

POOLS_LIMIT = 256  # kinds of needs that are kept filed
NOTES_LIMIT = 1 << 14  # changes of nodes that are remembered for pools that have not seen them


class _Pool:
    """All nodes, filed for one kind of needs."""

    def __init__(self, needs: Needs, seen: int) -> None:
        self.needs = needs
        self.seen = seen  # notes that are taken in
        self.groups: list[RandomSet[Candidate]] = [RandomSet() for _ in range(NEVER + 1)]
        self._filed: dict[str, int] = {}  # node id -> its group
        self._paused: list[tuple[float, str]] = []  # a heap of when nodes come back that refused
        self._until: dict[str, float] = {}  # node id -> what is in the heap for it

    def file(self, node: Candidate, now: float, *, changed: bool) -> None:
        """Put a node where it belongs; with `changed` what it is may have changed, not only what it has free."""
        before = self._filed.get(node.id)
        if before is not None and not changed:
            group = NEVER if before == NEVER else rank_now(self.needs, node, now)
        else:
            group = NEVER if why_never(self.needs, node) else rank_now(self.needs, node, now)
        if node.refused_until_s > now and group != NEVER and self._until.get(node.id) != node.refused_until_s:
            self._until[node.id] = node.refused_until_s
            heapq.heappush(self._paused, (node.refused_until_s, node.id))
        if group != before or changed:
            self.drop(node.id)
            self.groups[group].add(node)
            self._filed[node.id] = group

    def drop(self, id_: str) -> None:
        """Take a node out, if it is there."""
        before = self._filed.pop(id_, None)
        if before is not None:
            self.groups[before].remove(id_)

    def back(self, now: float) -> Iterator[str]:
        """The nodes whose pause is over by now."""
        while self._paused and self._paused[0][0] <= now:
            until_s, id_ = heapq.heappop(self._paused)
            if self._until.get(id_) == until_s:
                del self._until[id_]
            yield id_


class NodeIndex:
    """The nodes that are up. `rng` decides ties."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._nodes: dict[str, Candidate] = {}
        self._pools: OrderedDict[Needs, _Pool] = OrderedDict()
        self._notes: list[tuple[str, bool]] = []  # ids of changed nodes; True: what the node is may have changed
        self._first = 0  # the number of the first note
        self.slots = 0  # of all nodes

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._nodes.values())

    def get(self, id_: str) -> Candidate | None:
        return self._nodes.get(id_)

    def put(self, node: Candidate) -> None:
        """A node is up, or is not what it was."""
        self.remove(node.id)
        self._nodes[node.id] = node
        self.slots += node.slots
        self._note(node.id, True)

    def remove(self, id_: str) -> None:
        """A node is not up any more. Nothing happens when it was not."""
        node = self._nodes.pop(id_, None)
        if node is not None:
            self.slots = sum(other.slots for other in self._nodes.values())
            self._note(id_, True)

    def changed(self, id_: str) -> None:
        """Something else of a node is free now."""
        self._note(id_, False)

    def place(
        self,
        needs: Needs,
        now: float,
        *,
        prefetch: bool = False,
        crowded: bool = False,
        leaning: Leaning = PLAIN,
        told: bool = True,
    ) -> Placement:
        """Choose a node for one batch, or tell why there is none; without `told` it does not tell.

        With `crowded` it may be one that has as much as it should hold already.
        """
        pool = self._pool(needs, now)
        chosen, held = None, False
        for group in (*ranks(prefetch or crowded), FULL) if crowded else ranks(prefetch):
            chosen = choose(pool.groups[group], leaning, self._rng)
            if chosen is not None:
                break
        if leaning.inputs is not None:
            holders = [node for id_ in leaning.inputs.at if (node := self._nodes.get(id_)) is not None]
            chosen, held = by_inputs(needs, chosen, holders, leaning, prefetch=prefetch, now=now)
        if chosen is None:
            possible = len(pool.groups[NEVER]) < len(self._nodes)
            nodes = self._nodes.values()
            why = reasons.why_none(needs, nodes, now, leaning, prefetch=prefetch, held=held) if told else ()
            return Placement(None, possible, why, held)
        return Placement(chosen.id, True, (f"{chosen.name}: {reasons.why_there(chosen, leaning)}",) if told else ())

    def waits_at(self, id_: str, needs: Needs, now: float) -> bool:
        """Whether such a task could only be sent there to wait, ahead of its time."""
        node = self._nodes.get(id_)
        return node is not None and rank(needs, node, now) in (QUEUES, QUEUES_BARE)

    def idle(self, needs: Needs, now: float, apart: Collection[str] = ()) -> list[Candidate]:
        """Those of `WIDE_LIMIT` random nodes with slots for such a task that nobody is known to use."""
        pool = self._pool(needs, now)
        nodes = [node for group in (FREE, FREE_BARE) for node in pool.groups[group].sample(WIDE_LIMIT, self._rng)]
        return [node for node in nodes if node.slots_free >= needs.cpus and node.id not in apart]

    def _note(self, id_: str, changed: bool) -> None:
        self._notes.append((id_, changed))
        if len(self._notes) > NOTES_LIMIT:
            self._first += NOTES_LIMIT // 2
            del self._notes[: NOTES_LIMIT // 2]

    def _pool(self, needs: Needs, now: float) -> _Pool:
        """The pool for these needs, up to date."""
        kind = kind_of(needs)
        pool = self._pools.get(kind)
        last = self._first + len(self._notes)
        if pool is None or pool.seen < self._first:
            pool = self._pools[kind] = _Pool(kind, last)
            for node in self._nodes.values():
                pool.file(node, now, changed=True)
            if len(self._pools) > POOLS_LIMIT:
                self._pools.popitem(last=False)
        self._pools.move_to_end(kind)
        if pool.seen < last:
            self._take_in(pool, now)
            pool.seen = last
        for id_ in pool.back(now):
            self._file(pool, id_, now, changed=False)
        return pool

    def _take_in(self, pool: _Pool, now: float) -> None:
        notes = self._notes[pool.seen - self._first :]
        fresh = dict(notes)
        for id_, changed in notes if len(fresh) < len(notes) else ():
            fresh[id_] = fresh[id_] or changed
        for id_, changed in fresh.items():
            self._file(pool, id_, now, changed=changed)

    def _file(self, pool: _Pool, id_: str, now: float, *, changed: bool) -> None:
        node = self._nodes.get(id_)
        if node is None:
            pool.drop(id_)
        else:
            pool.file(node, now, changed=changed)


def kind_of(needs: Needs) -> Needs:
    """Needs without what only leans to some nodes: those of one kind share a pool."""
    if needs.layout is Layout.ANY and not needs.near and not needs.apart:
        return needs
    return msgspec.structs.replace(needs, layout=Layout.ANY, near=(), apart=())
