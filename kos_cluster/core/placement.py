"""Where a batch goes: a pure function of what the tasks need and what is known of the nodes. It tells its reasons.

Theory of operation. First the nodes are filtered: a node that can never run the task (wrong name or label, too few
slots, too little memory) is told apart from one that cannot now; a drained node takes nothing new and finishes what it
has. Those that can are grouped by `rank`: nodes with a free slot, nodes where it would wait beside others' work, nodes
where it would wait behind this owner's alone; and within these nodes with the needed packages before those without. In
the best group `choose` decides:

    no leaning            the less loaded of two random nodes (M. Mitzenmacher, "The Power of Two Choices in Randomized
                          Load Balancing", IEEE TPDS 12(10), 2001), because the knowledge may be old and owners place
                          independently. The node of the job's last batch is a third choice (M. Mitzenmacher, B.
                          Prabhakar, D. Shah, "Load Balancing with Memory", FOCS 2002), preferred among equals: its
                          worker has the function, and its caches are warm
    near, spread, pack    the best of `WIDE_LIMIT` random nodes, and of those that it is to be near to

Then the bytes that it reads have their say (`by_inputs`): the task goes where moving what is missing and waiting for a
slot take the least time together. If that is a node whose slots are all taken, it waits there, but never longer in all
than moving would take: so it can lose at most as much again as it could have saved (the ski-rental bound, A. Karlin et
al., "Competitive Snoopy Caching", Algorithmica 3, 1988).

Rules. What a task needs, its labels, the nodes to be away from and the jobs to be apart from are never given up;
`near`, `spread`, `pack` and packages only decide between nodes that could all take the task now. A node has at
most as many batches of this owner as it has slots, and one more a slot where others' work waits or tasks are short.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from kos_cluster.core.capacity import excess
from kos_cluster.core.randomset import RandomSet
from kos_cluster.core.records import LabelTerm, Layout, Load, Needs

UNREADABLE = "cannot read the payload"  # how such a node's reason begins
WIDE_LIMIT = 32  # nodes that are compared where two are not enough
LINK_BYTES_S = 100e6  # what a link is taken to carry before it is measured: a gigabit Ethernet's TLS stream
UNMEASURED_S = 1.0  # what a task is taken to last before one is measured

# How well a node could take a batch now, the best first. From CLOSED on it could not.
FREE, FREE_BARE, SHARED, SHARED_BARE, QUEUES, QUEUES_BARE, FULL, CLOSED, NEVER = range(9)
_NOW = (FREE, FREE_BARE, SHARED, SHARED_BARE)
_AHEAD = (*_NOW, QUEUES, QUEUES_BARE)


@dataclass(slots=True)
class Candidate:
    """A node as one owner sees it now. What is in flight are this owner's own batches, what is in use anybody's, as
    last gossiped: `busy` counts slots in use or waited for."""

    id: str
    name: str
    slots: int
    memory_bytes: int
    in_flight: int = 0  # slots
    busy: int = 0
    shared: bool = False  # others' work waits there, as it told last, so its queue decides whose turn it is
    loaded_s: float = 0.0  # when that was heard
    memory_available_bytes: int = 0
    packages: frozenset[str] = frozenset()
    # Packages whose objects it cannot read -> why; the key "" stands for every payload.
    unreadable: Mapping[str, str] = field(default_factory=dict)
    refused_until_s: float = 0.0  # it refused work and takes none before
    drained: bool = False  # it is to be given no more work
    over_memory: bool = False  # it takes no more work now
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    resources: Mapping[str, int] = field(default_factory=dict)
    memory_in_flight_bytes: int = 0
    gpus_in_flight: int = 0
    resources_in_flight: dict[str, int] = field(default_factory=dict)
    memory_declared_bytes: int = 0  # by what is in use
    gpus_in_use: int = 0
    resources_in_use: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, float] = field(default_factory=dict)  # bytes a second from other nodes, by id, as measured

    def hold(self, needs: Needs, sign: int = 1) -> None:
        """Count a batch as held there; with `sign` -1 no longer."""
        self.in_flight += sign * needs.cpus
        self.memory_in_flight_bytes += sign * needs.memory_bytes
        self.gpus_in_flight += sign * needs.gpus
        for name, count in needs.resources:
            self.resources_in_flight[name] = self.resources_in_flight.get(name, 0) + sign * count

    def loaded(self, load: Load, now: float = 0.0) -> None:
        """Take in what was gossiped last."""
        self.loaded_s, self.memory_available_bytes = now, load.memory_available_bytes
        self.busy = load.running + load.queued
        self.memory_declared_bytes, self.gpus_in_use = load.memory_declared_bytes, load.gpus_in_use
        self.resources_in_use = dict(zip(sorted(self.resources), load.resources_in_use, strict=False))
        self.over_memory = load.over_memory

    @property
    def slots_free(self) -> int:
        """Slots that nobody is known to use; below 0 when work waits for some."""
        return self.slots - max(self.in_flight, self.busy)

    @property
    def memory_free_bytes(self) -> int:
        """Memory that is neither used nor declared by anybody, as far as is known."""
        declared_bytes = max(self.memory_in_flight_bytes, self.memory_declared_bytes)
        return max(0, min(self.memory_available_bytes, self.memory_bytes - declared_bytes))

    @property
    def gpus_free(self) -> int:
        return self.gpus - max(self.gpus_in_flight, self.gpus_in_use)

    def resource_free(self, name: str) -> int:
        used = max(self.resources_in_flight.get(name, 0), self.resources_in_use.get(name, 0))
        return self.resources.get(name, 0) - used


class Inputs(msgspec.Struct, frozen=True):
    """The bytes that a task reads: how many in all, and how many of them are on each node (by id) already."""

    size_bytes: int
    at: Mapping[str, int] = {}


class Leaning(msgspec.Struct, frozen=True):
    """What draws a job's next task to nodes, or keeps it from them, beside what it needs. Nodes are named by id."""

    last: str = ""  # where the batch before this one went
    layout: Layout = Layout.ANY
    here: Mapping[str, int] = {}  # batches of this job at each node
    near: Collection[str] = ()  # nodes with tasks of the jobs that it is to be near to
    apart: Collection[str] = ()  # nodes with tasks of the jobs that it is to be apart from
    inputs: Inputs | None = None
    task_s: float = UNMEASURED_S  # how long a task lasts
    waited_s: float = 0.0  # for a node with inputs, so far

    @property
    def plain(self) -> bool:
        """Whether it makes no node impossible, nor one worth waiting for."""
        return not (self.near or self.apart) and self.inputs is None and self.layout is Layout.ANY


PLAIN = Leaning()


class Placement(msgspec.Struct, frozen=True):
    """`node` is None when no node can take the batch now; `possible` is False when none ever can.

    `held`: one could, but it waits for a node that has its inputs.
    """

    node: str | None
    possible: bool
    reasons: tuple[str, ...]
    held: bool = False


# ---- filter


def rank(needs: Needs, node: Candidate, now: float) -> int:
    """The group of a node for tasks of these needs, `FREE` to `NEVER`."""
    return NEVER if why_never(needs, node) else rank_now(needs, node, now)


def rank_now(needs: Needs, node: Candidate, now: float) -> int:
    """As `rank`, of a node that can run such tasks at all."""
    if node.drained or node.over_memory or now < node.refused_until_s or lacks(needs, node):
        return CLOSED
    in_flight = node.in_flight + needs.cpus
    if in_flight > 2 * node.slots:
        return FULL
    bare = bool(needs.modules) and not node.packages.issuperset(needs.modules)
    return (FREE if in_flight <= node.slots else SHARED if node.shared else QUEUES) + bare


def ranks(prefetch: bool) -> tuple[int, ...]:
    """The groups that may take a batch now, the best first. With `prefetch` a node may hold one more a slot.

    Where others' work waits any node may: of an owner that has nothing waiting there when a slot becomes free, the
    node's queue could not choose what its share or priority is due.
    """
    return _AHEAD if prefetch else _NOW


def why_never(needs: Needs, node: Candidate) -> str:
    """Why a node can never run the task, or an empty string."""
    if needs.on and needs.on not in (node.name, node.id):
        return f"the task asks for {needs.on}"
    if node.name in needs.away_from or node.id in needs.away_from:
        return "the task is to be away from it"
    for term in needs.labels:
        if (node.labels.get(term.name) == term.value) is term.away:
            return _of_label(term, node)
    for module, why in node.unreadable.items():
        if not module or module in needs.modules:
            return f"{UNREADABLE}: {why}"
    return excess(needs, node.slots, node.memory_bytes, node.gpus, node.resources)


def _of_label(term: LabelTerm, node: Candidate) -> str:
    if term.away:
        return f"its {term.name} is {term.value}, which the task is to be away from"
    if term.name in node.labels:
        return f"its {term.name} is {node.labels[term.name]}, the task asks for {term.value}"
    return f"it has no label {term.name}, the task asks for {term.name}={term.value}"


def lacks(needs: Needs, node: Candidate) -> str:
    """What else than slots is not free there now; empty when there is enough."""
    if not (needs.memory_bytes or needs.gpus or needs.resources):
        return ""
    resources = {name: node.resource_free(name) for name, _ in needs.resources}
    return excess(needs, needs.cpus, node.memory_free_bytes, node.gpus_free, resources, left=" free")


# ---- choose


def choose(group: RandomSet[Candidate], leaning: Leaning, rng: random.Random) -> Candidate | None:
    """The best node of one group; None when it is empty, or the task is to be apart from all of them."""
    if not group:
        return None
    if leaning.layout is Layout.ANY and not leaning.near and not leaning.apart:
        return _less_loaded(group, leaning.last, rng)
    found = group.sample(WIDE_LIMIT if leaning.near or leaning.layout is not Layout.ANY else 2, rng)
    for id_ in (leaning.last, *islice(leaning.near, WIDE_LIMIT)):
        node = group.get(id_)
        if node is not None:
            found.append(node)
    if leaning.apart:
        apart = leaning.apart
        found = [n for n in found if n.id not in apart] or [n for n in group if n.id not in apart]
    return min(found, key=lambda node: _score(node, leaning, rng), default=None)


def _less_loaded(group: RandomSet[Candidate], last: str, rng: random.Random) -> Candidate:
    """The less loaded of two random nodes and of the one of this id; that one among equals."""
    again = group.get(last)
    if again is not None and not _used(again):
        return again
    found = group.sample(2, rng)
    if again is not None:
        found.append(again)
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda node: (_used(node), node.id != last, rng.random()))


def _used(node: Candidate) -> float:
    """The share of its slots that are used or waited for, as far as is known."""
    return (node.in_flight if node.in_flight > node.busy else node.busy) / node.slots


def _score(node: Candidate, leaning: Leaning, rng: random.Random) -> tuple[bool, bool, float, float, bool, float]:
    """How much speaks against a node. Where others take all slots no wish leads."""
    used = _used(node)
    lean = 0.0
    if leaning.layout is Layout.SPREAD:
        lean = leaning.here.get(node.id, 0)
    elif leaning.layout is Layout.PACK:
        lean = -used
    far = bool(leaning.near) and node.id not in leaning.near
    return used >= 1, far, lean, used, node.id != leaning.last, rng.random()


def by_inputs(
    needs: Needs,
    chosen: Candidate | None,
    holders: Iterable[Candidate],
    leaning: Leaning,
    *,
    prefetch: bool,
    now: float,
) -> tuple[Candidate | None, bool]:
    """Where the task can begin first: on the node chosen without regard to its inputs, or on one of their `holders`.

    The second says whether it waits for one of these rather than go now.
    """
    able = [chosen] if chosen is not None else []
    waited_for: list[Candidate] = []
    for node in holders:
        group = rank(needs, node, now)
        if node.id in leaning.apart or group in (CLOSED, NEVER):
            continue
        # In the queue of a node that is busy with other work it might stand for ever, so that is waited for here.
        moves = node.slots_free > 0 or leaning.here.get(node.id, 0) > 0
        (able if group in ranks(prefetch) and moves else waited_for).append(node)
    best = min(able, key=lambda node: begins_in_s(needs, node, leaning), default=None)
    if best is None:
        return None, False
    patience_s = begins_in_s(needs, best, leaning) - leaning.waited_s
    held = any(begins_in_s(needs, node, leaning) < patience_s for node in waited_for)
    return (None, True) if held else (best, False)


def begins_in_s(needs: Needs, node: Candidate, leaning: Leaning) -> float:
    """An estimate of when a task could begin there: its inputs moved, and a slot free."""
    inputs = leaning.inputs
    wait_s = max(0, needs.cpus - node.slots_free) * leaning.task_s / node.slots
    if inputs is None:
        return wait_s
    return moving_s(node, inputs) + wait_s


def moving_s(node: Candidate, inputs: Inputs) -> float:
    """How long it takes to bring to the node what it lacks of these, over its best links as much as lies there."""
    lacking_bytes = max(0, inputs.size_bytes - inputs.at.get(node.id, 0))
    links = sorted(
        ((link_bytes_s(node, id_), there) for id_, there in inputs.at.items() if id_ != node.id), reverse=True
    )
    taken_s = 0.0
    for bytes_s, there_bytes in links:
        moved_bytes = min(lacking_bytes, there_bytes)
        taken_s += moved_bytes / bytes_s
        lacking_bytes -= moved_bytes
    return taken_s + lacking_bytes / LINK_BYTES_S


def link_bytes_s(node: Candidate, sender: str) -> float:
    """What the link to a node from the one of this id carries; one that was not measured carries `LINK_BYTES_S`."""
    return node.links.get(sender, LINK_BYTES_S)


def contradiction(needs: Needs) -> str:
    """What no node could ever fulfil, whatever nodes there are, as a sentence's end; empty when there is nothing."""
    if needs.on and needs.on in needs.away_from:
        return f"be on {needs.on} and away from it"
    wanted: dict[str, str] = {}
    for term in needs.labels:
        if not term.away and wanted.setdefault(term.name, term.value) != term.value:
            return f"be where {term.name} is {wanted[term.name]} and where it is {term.value}"
    for term in needs.labels:
        if term.away and wanted.get(term.name) == term.value:
            return f"be where {term.name} is {term.value} and away from there"
    both = sorted(set(needs.near) & set(needs.apart))
    return f"be near job {both[0]} and apart from it" if both else ""
