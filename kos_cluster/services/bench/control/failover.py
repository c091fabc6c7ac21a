"""The coordinator is killed: how long until the next proposal is committed?

Theory of operation. A client asks a node that stays for a lock in the moment of the kill; that node offers it to the
coordinators of which it knows until one commits it. The nodes that stay are asked in turn, voters and others alike. The
killed node is started again, and the next kill waits until all is as before.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time

from kos_cluster.core.voters import voters_wanted
from kos_cluster.net.locks import LockWanted
from kos_cluster.services.bench.control.figures import Figure, Work, figure
from kos_cluster.services.bench.control.observer import Observer, observing
from kos_cluster.services.bench.fleet import Fleet, fleet

NODES = 5
KILLS = 100
ANSWER_TIMEOUT_S = 30.0
PAUSE_MOST_S = 1.0  # before a kill, at random, so that it meets all phases of the timers
LOCK_TTL_S = 60.0


async def measure(nodes: int = NODES, kills: int = KILLS) -> list[Figure]:
    """Kill so many coordinators, one after the other."""
    with fleet(nodes) as cluster:
        async with observing(cluster.cluster) as observer:
            took = [await _kill(cluster, observer, number) for number in range(kills)]
    return [figure(Work.FAILOVER, took, f"{nodes} nodes, {voters_wanted(nodes)} voters, {kills} kills")]


async def _kill(cluster: Fleet, observer: Observer, number: int) -> float:
    await observer.settled(len(cluster.nodes))
    await asyncio.sleep(random.random() * PAUSE_MOST_S)
    victim = observer.attachment.coordinator
    staying = sorted(set(observer.attachment.by_node) - {victim})
    asked = staying[number % len(staying)]
    name = cluster.name(victim)
    wish = LockWanted(f"failover-{secrets.token_hex(4)}", "bench", LOCK_TTL_S, 0.0)
    began = time.perf_counter()
    cluster.kill(name)
    await observer.ask(wish, asked, ANSWER_TIMEOUT_S)
    took = time.perf_counter() - began
    await asyncio.to_thread(cluster.start, name)
    return took
