"""Replicated writes and linearizable reads a second.

Theory of operation. `CLIENTS` clients each ask for one thing after the other, over `LINKS` attachments of one process,
to the coordinator first, as every client does. A write is a lock that its client takes again, which is an entry of the
log: answered when a majority of the voters has it on disk and it is applied. A read asks who holds a lock: answered
when a majority has confirmed the coordinator since.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from kos_cluster.core.voters import voters_wanted
from kos_cluster.net import wire
from kos_cluster.net.locks import LockAsked, LockWanted
from kos_cluster.services.bench.control.figures import Figure, Work, figure
from kos_cluster.services.bench.control.observer import Observer, observing
from kos_cluster.services.bench.fleet import fleet

NODES = 3
CLIENTS = 64
LINKS = 4
ROUND_S = 3.0
REPEATS = 5
LOCK_TTL_S = 600.0

Question = Callable[[int], wire.Asked]  # of a client, by its number


async def measure(round_s: float = ROUND_S, repeats: int = REPEATS, clients: int = CLIENTS) -> list[Figure]:
    """Write in `repeats` rounds, then read in as many."""
    with fleet(NODES) as cluster:
        async with contextlib.AsyncExitStack() as stack:
            observers = [await stack.enter_async_context(observing(cluster.cluster)) for _ in range(LINKS)]
            for observer in observers:
                await observer.settled(NODES)
            setup = f"{clients} clients in one process, {NODES} nodes, {voters_wanted(NODES)} voters, fsync on"
            writes = [await _rate(observers, clients, round_s, _write) for _ in range(repeats)]
            reads = [await _rate(observers, clients, round_s, _read) for _ in range(repeats)]
    return [figure(Work.WRITES, writes, setup), figure(Work.READS, reads, setup)]


def _write(client: int) -> wire.Asked:
    return LockWanted(f"rate-{client}", f"client-{client}", LOCK_TTL_S, 0.0)


def _read(client: int) -> wire.Asked:
    return LockAsked(f"rate-{client}")


async def _rate(observers: list[Observer], clients: int, round_s: float, question: Question) -> float:
    """Answers a second, from all clients."""
    began = time.perf_counter()
    ends = began + round_s

    async def client(number: int) -> int:
        observer, asked, count = observers[number % len(observers)], question(number), 0
        while time.perf_counter() < ends:
            await observer.ask(asked)
            count += 1
        return count

    counts = await asyncio.gather(*(client(number) for number in range(clients)))
    return sum(counts) / (time.perf_counter() - began)
