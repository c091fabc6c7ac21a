"""Where a batch goes: a pure function of what the tasks need and what is known of the nodes. It tells its reasons.

Rules. A node that can never run the task (wrong name, too few slots, too little memory) is told apart from one that
cannot now; a drained node takes nothing new and finishes what it has. Among those that can, nodes with a free slot
come before nodes that would queue, nodes with the needed packages before those without; the rest is decided by two
random choices (M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001),
because the knowledge may be old and owners place independently.
The node of the job's last batch is a third choice (M. Mitzenmacher, B. Prabhakar, D. Shah, "Load Balancing with
Memory", FOCS 2002), and preferred among equals: its worker has the function, and its caches are warm.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kos_cluster.core.records import Needs

UNREADABLE = "cannot read the payload"  # how such a node's reason begins
DRAINED = "it is drained"


@dataclass(slots=True)
class Candidate:
    """A node as one owner sees it now. `in_flight` counts slots that this owner's own batches hold there."""

    id: str
    name: str
    slots: int
    memory_bytes: int
    in_flight: int = 0
    busy: int = 0  # slots in use or waited for by anyone, as last gossiped
    memory_available_bytes: int = 0
    packages: frozenset[str] = frozenset()
    # Packages whose objects it cannot read -> why; the key "" stands for every payload.
    unreadable: Mapping[str, str] = field(default_factory=dict)
    refused_until_s: float = 0.0  # it refused work and takes none before
    drained: bool = False  # it is to be given no more work


@dataclass(frozen=True, slots=True)
class Placement:
    """`node` is None when no node can take the batch now; `possible` is False when none ever can."""

    node: str | None
    possible: bool
    reasons: tuple[str, ...]


def place(
    needs: Needs, candidates: Iterable[Candidate], rng: random.Random, *, prefetch: bool, now: float, last: str = ""
) -> Placement:
    """Choose a node for one batch. With `prefetch` a node whose slots are all in use may take one more batch a slot.

    `last` is the id of the node that took the job's batch before this one.
    """
    reasons: list[str] = []
    possible = False
    best: list[Candidate] = []
    best_rank: tuple[bool, bool] | None = None
    for node in candidates:
        never = why_never(needs, node)
        if never:
            reasons.append(f"{node.name}: {never}")
            continue
        possible = True
        wait = _why_not_now(needs, node, prefetch, now)
        if wait:
            reasons.append(f"{node.name}: {wait}")
            continue
        rank = (node.in_flight + needs.cpus > node.slots, not node.packages.issuperset(needs.modules))
        if best_rank is None or rank < best_rank:
            best, best_rank = [node], rank
        elif rank == best_rank:
            best.append(node)
    if not best:
        return Placement(None, possible, tuple(reasons) or ("the cluster has no node that is alive",))
    choices = best if len(best) <= 2 else [*rng.sample(best, 2), *(node for node in best if node.id == last)]
    chosen = min(choices, key=lambda node: (max(node.in_flight, node.busy) / node.slots, node.id != last, rng.random()))
    return Placement(chosen.id, True, (f"{chosen.name}: {max(node_free(chosen), 0)} of {chosen.slots} slots free",))


def node_free(node: Candidate) -> int:
    """Slots that nobody is known to use."""
    return node.slots - max(node.in_flight, node.busy)


def standing(needs: Needs, node: Candidate, now: float) -> str:
    """What would come of placing a task on this node now, in words: why not, or how much is free."""
    return (
        why_never(needs, node)
        or _why_not_now(needs, node, False, now)
        or f"{max(node_free(node), 0)} of {node.slots} slots free"
    )


def why_never(needs: Needs, node: Candidate) -> str:
    """Why a node can never run the task, or an empty string."""
    if needs.on and needs.on not in (node.name, node.id):
        return f"the task asks for {needs.on}"
    for module, why in node.unreadable.items():
        if not module or module in needs.modules:
            return f"{UNREADABLE}: {why}"
    if needs.cpus > node.slots:
        return f"needs {needs.cpus} slots, it has {node.slots}"
    if needs.memory_bytes and needs.memory_bytes > node.memory_bytes:
        return f"needs {gib(needs.memory_bytes)}, it has {gib(node.memory_bytes)}"
    return ""


def _why_not_now(needs: Needs, node: Candidate, prefetch: bool, now: float) -> str:
    if node.drained:
        return DRAINED
    if now < node.refused_until_s:
        return "it refused work a moment ago"
    room = node.slots * (2 if prefetch else 1) - node.in_flight
    if needs.cpus > room:
        return f"all {node.slots} slots hold work of this owner"
    if needs.memory_bytes and needs.memory_bytes > node.memory_available_bytes:
        return f"needs {gib(needs.memory_bytes)}, {gib(node.memory_available_bytes)} is free"
    return ""


def gib(size_bytes: int) -> str:
    """A size for people, in GiB with one decimal."""
    return f"{size_bytes / 2**30:.1f} GiB"
