"""Blocks that go to other nodes and to clients elsewhere.

Theory of operation. A block is given to `FANOUT` peers at once by this node; who comes then is told of nodes that have
got it here or are getting it, and asks those, which do the same: a tree, in which every node sends on what it has while
the rest still comes. A peer that insists is served in any case.

Rules: what is lent is held, so it is neither spilled nor freed meanwhile. `Lending` is read by a thread of the bulk
port.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from kos_cluster.core.arena import Owner
from kos_cluster.core.roles import Role
from kos_cluster.dmem.store import BlockStore
from kos_cluster.net.identity import Peer
from kos_cluster.net.transfers import CHUNK_BYTES
from kos_cluster.node.fetching import Fetching

FANOUT = 2  # peers that are given one block at once
TAKERS_LIMIT = 64  # nodes that are remembered to have got a block here
TAKEN_LIMIT = 4096  # blocks for which they are
NAMED_LIMIT = 4  # nodes that one who asks is told of
BEGIN_TIMEOUT_S = 5.0  # for memory for a block that is still to come, before others are asked for it


class Lending:
    """A block while it is given to one peer. `source` has its chunks, here already or as they come."""

    def __init__(self, size_bytes: int, keepers: list[Owner], source: Iterator[memoryview], end: Callable[[], None]):
        self.size_bytes = size_bytes
        self.keepers = keepers
        self._source = source
        self._end = end

    def chunks(self) -> Iterator[memoryview]:
        return self._source

    def close(self) -> None:
        self._end()


class Lendings:
    """One node's. Used in the daemon's loop."""

    def __init__(self, store: BlockStore, fetching: Fetching) -> None:
        self._store = store
        self._fetching = fetching
        self._active: Counter[str] = Counter()
        self._takers: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()  # block -> ids of nodes
        self._loop = asyncio.get_running_loop()

    async def lend(self, peer: Peer, block: str, insist: bool) -> Lending | list[str]:
        """Give a block to a peer, or name nodes to ask. Raises BlockLostError, ArenaFullError."""
        others = [id_ for id_ in self._takers.get(block, ()) if id_ != peer.id]
        if self._active[block] >= FANOUT and others and not insist:
            named = others[:NAMED_LIMIT]
            for id_ in named:
                self._takers[block].move_to_end(id_)  # others are named first to the next who asks
            return named
        self._active[block] += 1
        try:
            lending = await self._lent(block)
        except BaseException:
            self._over(block)
            raise
        if peer.role is Role.NODE:
            self._taken(block, peer.id)
        return lending

    async def _lent(self, block: str) -> Lending:
        fetch = self._fetching.under_way(block)
        if fetch is None:
            return await self._whole(block)
        self._fetching.join(fetch)
        with suppress(TimeoutError):
            await asyncio.wait_for(fetch.began.wait(), BEGIN_TIMEOUT_S)
        leave = partial(self._fetching.leave, fetch)
        if fetch.receiving is not None:
            coming = fetch.receiving
            return Lending(coming.size_bytes, fetch.keepers, coming.chunks(), partial(self._ended, block, leave))
        try:
            return await self._whole(block)  # another node of this machine may have shared it
        finally:
            leave()

    async def _whole(self, block: str) -> Lending:
        holder = self._store.new_holder()
        segment = await self._store.hold(block, holder)
        end = partial(self._ended, block, partial(self._store.release, block, holder))
        return Lending(segment.size_bytes, self._store.keepers(block), _chunks(segment.map()), end)

    def _ended(self, block: str, release: Callable[[], None]) -> None:
        """A lending is over; told by any thread."""
        with suppress(RuntimeError):  # the daemon's loop has ended meanwhile
            self._loop.call_soon_threadsafe(release)
            self._loop.call_soon_threadsafe(self._over, block)

    def _over(self, block: str) -> None:
        self._active[block] -= 1
        if not self._active[block]:
            del self._active[block]

    def _taken(self, block: str, node: str) -> None:
        takers = self._takers.setdefault(block, OrderedDict())
        takers[node] = None
        takers.move_to_end(node, last=False)  # the freshest is the likeliest to have it
        self._takers.move_to_end(block)
        if len(takers) > TAKERS_LIMIT:
            takers.popitem()
        if len(self._takers) > TAKEN_LIMIT:
            self._takers.popitem(last=False)


def _chunks(mapping: mmap.mmap) -> Iterator[memoryview]:
    content = memoryview(mapping)
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]
