"""A node is killed: how long until all others hold it dead?

The killed node is started again, and the next kill waits until all is as before.
"""

from __future__ import annotations

import asyncio
import random
import time

from kos_cluster.core.records import MemberState
from kos_cluster.services.bench.control.figures import Figure, Work, figure
from kos_cluster.services.bench.control.observer import Observer, observing
from kos_cluster.services.bench.fleet import Fleet, fleet

NODES = 8
KILLS = 20
DEAD_TIMEOUT_S = 60.0
WORKS = {"lan": Work.DETECTION_LAN, "fast": Work.DETECTION_FAST}


async def measure(profile: str, nodes: int = NODES, kills: int = KILLS) -> list[Figure]:
    """Kill so many nodes, one after the other."""
    with fleet(nodes, profile) as cluster:
        async with observing(cluster.cluster) as observer:
            took = [await _kill(cluster, observer) for _ in range(kills)]
    return [figure(WORKS[profile], took, f"{nodes} nodes, {kills} kills of any of them")]


async def _kill(cluster: Fleet, observer: Observer) -> float:
    await observer.settled(len(cluster.nodes))
    await asyncio.sleep(random.random())  # so that the kill meets all phases of the probes
    victim = random.choice(sorted(observer.attachment.by_node))
    others = set(observer.attachment.by_node) - {victim}
    name = cluster.name(victim)
    began = time.perf_counter()
    cluster.kill(name)
    await observer.until(
        lambda: all(observer.states.get(id_, {}).get(victim) is MemberState.DEAD for id_ in others),
        DEAD_TIMEOUT_S,
        f"all others hold {name} dead",
    )
    took = time.perf_counter() - began
    await asyncio.to_thread(cluster.start, name)
    return took
