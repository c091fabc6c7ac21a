"""The words of placement: why a task went to a node, why it waits, and what it lacks.

Rules: the arithmetic stands in the sentence ("needs 16.0 GiB, the largest free is 11.0 GiB on n3"). Of many nodes the
best `NODES_TOLD` speak for all. Only told when somebody asks, since each answer looks at every node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kos_cluster.core.capacity import gib, gpus_told, slots_told
from kos_cluster.core.placement import PLAIN, Candidate, Leaning, begins_in_s, lacks, link_bytes_s, why_never
from kos_cluster.core.records import Layout, Needs

NODES_TOLD = 16  # nodes whose reasons are told one by one
DRAINED = "it is drained"
OVER_MEMORY = "its memory is past its high-water mark, so it takes no more work now"
NOBODY = "the cluster has no node that is alive"


def standing(needs: Needs, node: Candidate, now: float, leaning: Leaning = PLAIN, *, prefetch: bool = False) -> str:
    """What would come of placing a task on this node now: why not, or how much is free."""
    return why_never(needs, node) or why_not_now(needs, node, now, leaning, prefetch=prefetch) or why_there(node)


def why_not_now(needs: Needs, node: Candidate, now: float, leaning: Leaning, *, prefetch: bool) -> str:
    """Why a node that can run the task does not take it now, or an empty string."""
    if node.drained:
        return DRAINED
    if node.over_memory:
        return OVER_MEMORY
    if now < node.refused_until_s:
        return "it refused work a moment ago"
    if node.id in leaning.apart:
        return why_apart(needs)
    if needs.cpus > node.slots * (2 if prefetch or node.shared else 1) - node.in_flight:
        return f"all {node.slots} slots hold work of this owner" + _inputs_there(node, leaning)
    return lacks(needs, node)


def why_apart(needs: Needs) -> str:
    """Why a node does not take the task that has tasks of a job to be apart from."""
    return f"it has tasks of {' or '.join(needs.apart) or 'a job'}, and the two are to be apart"


def why_there(node: Candidate, leaning: Leaning = PLAIN) -> str:
    """Why a task goes to this node."""
    parts = [f"{max(node.slots_free, 0)} of {node.slots} slots free" + _inputs_there(node, leaning)]
    if leaning.layout is Layout.SPREAD:
        parts.append(f"{leaning.here.get(node.id, 0)} batches of its job are there, as few as anywhere")
    if leaning.layout is Layout.PACK:
        parts.append("the fullest that has room")
    if node.id in leaning.near:
        parts.append("a job is there that it is to be near to")
    return ", ".join(parts)


def why_none(
    needs: Needs, nodes: Iterable[Candidate], now: float, leaning: Leaning, *, prefetch: bool, held: bool
) -> tuple[str, ...]:
    """Why no node takes the task now: what is short everywhere, or what it waits for (`held`), then each node's."""
    known = _by_name(nodes)
    if not known:
        return (NOBODY,)
    why = {node.name: standing(needs, node, now, leaning, prefetch=prefetch) for node in known}
    first = why_held(needs, known, leaning) if held else shortfall(needs, known)
    return folded([f"{name}: {reason}" for name, reason in why.items()], first)


def why_none_ever(needs: Needs, nodes: Iterable[Candidate]) -> tuple[str, ...]:
    """Why no node can ever run such a task; empty when one can, or when there is none."""
    known = _by_name(nodes)
    why = {node.name: why_never(needs, node) for node in known}
    if not all(why.values()):
        return ()
    return folded([f"{name}: {reason}" for name, reason in why.items()], shortfall(needs, known, ever=True))


def folded(told: Sequence[str], first: str) -> tuple[str, ...]:
    """A summary, if there is one, and as many of the nodes' own reasons as one can read."""
    more = len(told) - NODES_TOLD
    shown = [*told[:NODES_TOLD], f"{more} more nodes"] if more > 0 else told
    return (first, *shown) if first else tuple(shown)


def shortfall(needs: Needs, nodes: Sequence[Candidate], *, ever: bool = False) -> str:
    """What the task needs more of than any node has free (`ever`: has at all); empty when it is nothing of that kind.

    Only nodes count that its labels and names leave.
    """
    plain = Needs(on=needs.on, labels=needs.labels, away_from=needs.away_from)
    left = [node for node in nodes if not why_never(plain, node)]
    if len(left) < 2:
        return ""
    free = "" if ever else " free"

    def most(amount: Callable[[Candidate], int]) -> Candidate:
        return max(left, key=amount)

    def slots(node: Candidate) -> int:
        return node.slots if ever else node.slots - node.in_flight

    def memory(node: Candidate) -> int:
        return node.memory_bytes if ever else node.memory_free_bytes

    def gpus(node: Candidate) -> int:
        return node.gpus if ever else node.gpus_free

    if needs.cpus > max(1, slots(best := most(slots))):  # of a single slot each node's own reason tells more
        return f"needs {slots_told(needs.cpus)}, the most{free} are {max(0, slots(best))} on {best.name}"
    if needs.memory_bytes > memory(best := most(memory)):
        return f"needs {gib(needs.memory_bytes)}, the largest{free} is {gib(memory(best))} on {best.name}"
    if needs.gpus > gpus(best := most(gpus)):
        return f"needs {gpus_told(needs.gpus)}, the most{free} are {max(0, gpus(best))} on {best.name}"
    for name, count in needs.resources:
        amounts = {n.name: n.resources.get(name, 0) if ever else n.resource_free(name) for n in left}
        if count > max(amounts.values()):
            where = max(amounts, key=amounts.__getitem__)
            return f"needs {count} of {name}, the most{free} are {max(0, amounts[where])} on {where}"
    return ""


def why_held(needs: Needs, nodes: Iterable[Candidate], leaning: Leaning) -> str:
    """The estimate by which a task waits for the node of its inputs."""
    inputs = leaning.inputs
    assert inputs is not None
    known = list(nodes)
    there = max((node for node in known if node.id in inputs.at), key=lambda node: inputs.at[node.id])
    others = [node for node in known if node is not there]
    wait_s = begins_in_s(needs, there, leaning)
    move_s = inputs.at[there.id] / max(link_bytes_s(node, there.id) for node in others or [there])
    return (
        f"{gib(inputs.at[there.id])} of its inputs are on {there.name}: moving them takes {move_s:.1f} s, "
        f"waiting there about {wait_s:.1f} s"
    )


def _by_name(nodes: Iterable[Candidate]) -> list[Candidate]:
    return sorted(nodes, key=lambda node: node.name)


def _inputs_there(node: Candidate, leaning: Leaning) -> str:
    inputs = leaning.inputs
    if inputs is None or not inputs.at.get(node.id):
        return ""
    return f", {gib(inputs.at[node.id])} of {gib(inputs.size_bytes)} of its inputs are there"
