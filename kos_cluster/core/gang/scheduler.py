"""Which gang may try to reserve its slots, where, and when it tries again: the coordinator's side.

Theory of operation. Owners repeat what they want each `WANTED_AGAIN_S`. The gangs stand in line. Whenever something
changes, the first that fits is planned around the slots that open transactions have been promised, and a transaction
is begun for it. By gossip it may seem not to fit, and yet do: loads are old. So a gang that fits an idle cluster tries
too, and its nodes hold their free slots together for it as long as their patience lasts; then all of them let go. The
pause before the next such try is as long as that patience, and both double up to `PATIENCE_MOST_S`: so a large gang
gets its turn on a cluster that is never idle, at a bounded price.

Rules. Slots are planned around what is promised; memory, GPUs and resources by gossip alone, as the nodes' votes are
what counts. The nodes of jobs to be apart from are as if they were not there, and those of jobs to be near to come
first; where these jobs are the owner tells anew each time. Only what the owner must not lose is agreed on (the
transaction); this line is not, because owners ask again. So a successor starts with an empty one, and plans around the
open transactions that it finds in the state. A gang that never fits, whatever jobs there are, is refused at once, by
the nodes that are alive.

    gang        event                             next        effect
    -           wanted, never fits                refused
    -           wanted                            waiting
    waiting     its turn, and a plan              trying      Begin
    trying      committed                         reserved
    trying      aborted, or it could not begin    waiting, pausing
    trying      its owner is silent, or has       -           Abort
                ended, or withdraws it
    any other   the same                          -
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from kos_cluster.core.gang import assignment
from kos_cluster.core.gang.assignment import RANKS_LIMIT, Room
from kos_cluster.core.gang.slots import SlotsWanted, reservation_key
from kos_cluster.core.placement import Candidate, why_never
from kos_cluster.core.reasons import DRAINED, why_apart
from kos_cluster.core.records import Needs

WANTED_AGAIN_S = 1.0  # after which an owner repeats what it wants
SILENT_S = 5.0  # after which a gang that was not repeated is forgotten
PATIENCE_S = 0.5  # of the nodes, at a gang's first try
PATIENCE_MOST_S = 8.0
DECIDE_S = 3.0  # beyond the nodes' patience, for votes and the decision
ARRIVE_S = 15.0  # beyond that, for the owner to hear of it and its ranks to come
GANGS_LIMIT = 256  # that one coordinator knows


class Reserve(msgspec.Struct, frozen=True):
    """What a participant prepares, as the transaction carries it."""

    key: str  # `slots.reservation_key`
    ranks: int
    needs: Needs  # of each rank
    patience_s: float
    lease_s: float
    owner: tuple[str, str] = ("", "")  # identity, and instance of the client; empty: an older version does not say

    @property
    def slots(self) -> int:
        return self.ranks * self.needs.cpus

    def wanted(self, txn: int) -> SlotsWanted:
        needs = self.needs
        return SlotsWanted(
            txn,
            self.key,
            self.ranks,
            self.patience_s,
            self.lease_s,
            needs.cpus,
            needs.memory_bytes,
            needs.gpus,
            needs.resources,
            self.owner,
        )


class Wanted(msgspec.Struct, frozen=True):
    """Event: an owner wants a gang. `gang` is the job of its epoch, so each epoch is a gang of its own here."""

    identity: str  # authenticated
    gang: str
    ranks: int
    needs: Needs
    instance: str = ""  # of the client
    near: frozenset[str] = (
        frozenset()
    )  # the ids of nodes with tasks of jobs that it is to be near to, as its owner knows now
    apart: frozenset[str] = frozenset()  # and apart from
    alone: bool = False  # no two ranks on one node: it is to be apart from itself

    @property
    def key(self) -> str:
        return reservation_key(self.identity, self.gang)


class Withdrawn(msgspec.Struct, frozen=True):
    """Event: the owner does not want it any more."""

    key: str


class OwnerEnded(msgspec.Struct, frozen=True):
    """Event: a client has ended, and wants nothing any more."""

    identity: str
    instance: str


class Began(msgspec.Struct, frozen=True):
    """Event: the transaction of a `Begin` has this number; None: it could not be begun, or nobody knows."""

    key: str
    txn: int | None


class Ended(msgspec.Struct, frozen=True):
    """Event: how a transaction was decided."""

    txn: int
    committed: bool


class Begin(msgspec.Struct, frozen=True):
    """Effect: begin a transaction with these participants (node id -> what it prepares)."""

    key: str
    participants: dict[str, bytes]
    ttl_s: float


class Abort(msgspec.Struct, frozen=True):
    """Effect: decide to abort a transaction, for its gang is not wanted any more."""

    txn: int


class Standing(msgspec.Struct, frozen=True):
    """What an owner is told. `refused`: it never fits. `ranks`: the node's id of each, once they are reserved."""

    ranks: tuple[str, ...] = ()
    refused: str = ""
    waits: str = ""


Event = Wanted | Withdrawn | OwnerEnded | Began | Ended
Effect = Begin | Abort


@dataclass(slots=True)
class _Gang:
    wanted: Wanted
    heard_s: float
    patience_s: float  # of its nodes, at its next try
    again_s: float = 0.0  # it does not try before, by what an idle cluster has
    free_again_s: float = 0.0  # nor by what is free
    trying: bool = False
    txn: int | None = None
    plan: tuple[str, ...] = ()
    standing: Standing = field(default_factory=Standing)


class GangScheduler:
    """The machine. Make a new one on taking over; `promised` in `tick` is what the state says of open transactions."""

    def __init__(self) -> None:
        self._gangs: dict[str, _Gang] = {}  # in the order in which they came

    def __bool__(self) -> bool:
        """Whether any gang is known, and so `tick` has something to look at."""
        return bool(self._gangs)

    def handle(self, event: Event, nodes: Sequence[Candidate], promised: Mapping[str, int], now: float) -> list[Effect]:
        """`nodes`: those that are alive. `promised`: slots by node id, of transactions that are not decided."""
        effects: list[Effect] = []
        match event:
            case Wanted():
                self._wanted(event, nodes, now)
            case Withdrawn(key):
                effects += self._forget(key)
            case OwnerEnded():
                effects += self._owner_ended(event)
            case Began(key, txn):
                effects += self._began(key, txn, now)
            case Ended(txn, committed):
                self._ended(txn, committed, now)
        return effects + self.tick(nodes, promised, now)

    def tick(self, nodes: Sequence[Candidate], promised: Mapping[str, int], now: float) -> list[Effect]:
        """Let those try whose turn it is, and forget those that nobody asks for."""
        silent = [key for key, gang in self._gangs.items() if now - gang.heard_s > SILENT_S]
        effects = [effect for key in silent for effect in self._forget(key)]
        return effects + self._try(nodes, dict(promised), now)

    def _try(self, nodes: Sequence[Candidate], taken: dict[str, int], now: float) -> list[Effect]:
        begun: list[Effect] = []
        for gang in self._gangs.values():
            if gang.trying and gang.txn is None:  # on its way into the state
                _promise(taken, gang.plan, gang.wanted.needs.cpus)
        for key, gang in self._gangs.items():
            if gang.trying or gang.standing.ranks or gang.standing.refused:
                continue
            plan = self._plan(gang, nodes, taken, now)
            if plan is not None:
                gang.trying, gang.plan, gang.txn = True, plan, None
                _promise(taken, plan, gang.wanted.needs.cpus)
                begun.append(_begin(key, gang))
        return begun

    def standing(self, key: str) -> Standing | None:
        """Where a gang stands; None for one that is not known here."""
        gang = self._gangs.get(key)
        return gang.standing if gang is not None else None

    def _wanted(self, wanted: Wanted, nodes: Sequence[Candidate], now: float) -> None:
        gang = self._gangs.get(wanted.key)
        if gang is not None:
            gang.heard_s = now
            gang.wanted = msgspec.structs.replace(gang.wanted, near=wanted.near, apart=wanted.apart)
            return
        gang = _Gang(wanted, now, PATIENCE_S)
        if not 0 < wanted.ranks <= RANKS_LIMIT or wanted.needs.cpus < 1:
            gang.standing = Standing(refused=f"a gang has 1 to {RANKS_LIMIT} ranks, each of at least one slot")
        elif len(self._gangs) >= GANGS_LIMIT:
            return  # it is asked again
        else:
            rooms = [room_of(wanted, node, 0) for node in nodes]
            gang.standing = Standing(refused=assignment.never(wanted.ranks, wanted.needs.cpus, rooms))
        self._gangs[wanted.key] = gang

    def _began(self, key: str, txn: int | None, now: float) -> list[Effect]:
        gang = self._gangs.get(key)
        if gang is None or not gang.trying:
            return [Abort(txn)] if txn is not None else []
        gang.txn = txn
        if txn is None:
            self._pause(gang, now)
        return []

    def _ended(self, txn: int, committed: bool, now: float) -> None:
        for gang in self._gangs.values():
            if gang.trying and gang.txn == txn:
                if committed:
                    gang.trying, gang.standing = False, Standing(ranks=gang.plan)
                else:
                    self._pause(gang, now)

    def _owner_ended(self, owner: OwnerEnded) -> list[Effect]:
        theirs = [
            key
            for key, gang in self._gangs.items()
            if (gang.wanted.identity, gang.wanted.instance) == (owner.identity, owner.instance)
        ]
        return [effect for key in theirs for effect in self._forget(key)]

    def _forget(self, key: str) -> list[Effect]:
        gang = self._gangs.pop(key, None)
        return [Abort(gang.txn)] if gang is not None and gang.trying and gang.txn is not None else []

    def _pause(self, gang: _Gang, now: float) -> None:
        gang.trying = False
        gang.free_again_s = now + PATIENCE_S
        gang.again_s = now + gang.patience_s
        gang.patience_s = min(2 * gang.patience_s, PATIENCE_MOST_S)

    def _plan(
        self, gang: _Gang, nodes: Sequence[Candidate], taken: Mapping[str, int], now: float
    ) -> tuple[str, ...] | None:
        """Where its ranks may try, or None with the reason noted; by what is free, else by what an idle cluster has."""
        wanted = gang.wanted
        rooms = [_apart(wanted, room_of(wanted, node, taken.get(node.id, 0))) for node in nodes]
        gang.standing = Standing(waits=assignment.waits(wanted.ranks, rooms, wanted.needs.layout))
        plan = assignment.assign(wanted.ranks, rooms, wanted.needs.layout)
        if plan is not None or now < gang.again_s:
            return plan if now >= gang.free_again_s else None
        idle = [_if_idle(room, wanted.needs, node, taken) for room, node in zip(rooms, nodes, strict=True)]
        return assignment.assign(wanted.ranks, idle, wanted.needs.layout)


def room_of(wanted: Wanted, node: Candidate, promised: int) -> Room:
    """How many ranks a node has room for: when it is idle, and now, beside what it was promised to others."""
    needs = wanted.needs
    why = why_never(needs, node)
    if why:
        return Room(node.id, node.name, 0, 0, why)
    if node.drained:
        return Room(node.id, node.name, 0, 0, DRAINED)
    at_most = [min(1, node.slots // needs.cpus) if wanted.alone else node.slots // needs.cpus]
    now = [(node.slots - node.busy - promised) // needs.cpus]
    if needs.memory_bytes:
        at_most.append(node.memory_bytes // needs.memory_bytes)
        now.append(node.memory_free_bytes // needs.memory_bytes)
    if needs.gpus:
        at_most.append(node.gpus // needs.gpus)
        now.append(node.gpus_free // needs.gpus)
    for name, count in needs.resources:
        at_most.append(node.resources.get(name, 0) // count)
        now.append(node.resource_free(name) // count)
    free = 0 if node.over_memory else max(0, min(now))
    return Room(node.id, node.name, min(at_most), min(*at_most, free), near=node.id in wanted.near)


def _apart(wanted: Wanted, room: Room) -> Room:
    """The room that a gang may use while the jobs are where they are that it is to be apart from."""
    if room.node not in wanted.apart or not room.at_most:
        return room
    return Room(room.node, room.name, 0, 0, why_apart(wanted.needs))


def _if_idle(room: Room, needs: Needs, node: Candidate, taken: Mapping[str, int]) -> Room:
    """The room that there is once the node has ended what it runs."""
    count = min(room.at_most, max(0, node.slots - taken.get(node.id, 0)) // needs.cpus)
    return Room(room.node, room.name, room.at_most, count, room.why, room.near)


def promised_by(participants: Mapping[str, bytes]) -> dict[str, int]:
    """The slots that an open transaction asks for, by node id; empty for one that is not a gang's."""
    try:
        return {node: msgspec.msgpack.decode(data, type=Reserve).slots for node, data in participants.items()}
    except msgspec.DecodeError:
        return {}


def _promise(taken: dict[str, int], plan: Sequence[str], slots: int) -> None:
    for node in plan:
        taken[node] = taken.get(node, 0) + slots


def _begin(key: str, gang: _Gang) -> Begin:
    ranks: dict[str, int] = {}
    _promise(ranks, gang.plan, 1)
    decided_s = gang.patience_s + DECIDE_S
    # What a node has to know of it: not which packages would be welcome, or whom it is to be near to.
    wanted = gang.wanted.needs
    needs = Needs(wanted.cpus, wanted.memory_bytes, gpus=wanted.gpus, resources=wanted.resources)
    owner = (gang.wanted.identity, gang.wanted.instance)
    participants = {
        node: msgspec.msgpack.encode(Reserve(key, count, needs, gang.patience_s, decided_s + ARRIVE_S, owner))
        for node, count in ranks.items()
    }
    return Begin(key, participants, decided_s)
