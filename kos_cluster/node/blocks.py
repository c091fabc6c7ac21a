"""The blocks of a node: its arena, the socket of its processes, and the owners that keep blocks here.

Rules. A block is kept for an owner that this node knows, and no longer than that: an owner that says goodbye, or whose
process ends, keeps nothing. How much memory the arena may take is decided at the start: KOS_ARENA, or a share of the
machine's for the slots that this node has of its cores.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from kos_cluster.core.arena import Owner, Usage
from kos_cluster.core.quantities import size_bytes
from kos_cluster.core.records import Member
from kos_cluster.dmem.serving import Serving
from kos_cluster.dmem.store import BlockStore
from kos_cluster.errors import LimitError, StateError, UsageError
from kos_cluster.net import blocks as asks
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.node import machine
from kos_cluster.node.fetching import Fetching
from kos_cluster.node.lending import Lending, Lendings
from kos_cluster.node.membership import Membership
from kos_cluster.node.owners import Owners

ARENA_SHARE = 0.3  # of the machine's memory, for a node with all its cores
SPILL_SHARE = 0.25  # of what is free on the disk at the start
SPILL_TIMES = 4  # the arena's memory, at most
LIMIT_VARIABLE = "KOS_ARENA"
BLOCKS_LIMIT = 16_384  # in memory and on the disk

Asked = asks.KeepBlock | asks.DropBlocks | asks.MemoryAsked
ASKED = (asks.KeepBlock, asks.DropBlocks, asks.MemoryAsked)


class Blocks:
    """One node's. Used in the daemon's loop. `arena`: where nodes of this machine have theirs, by name."""

    def __init__(
        self,
        member: Member,
        arena: Callable[[str], Path],
        owners: Owners,
        membership: Membership,
        credentials: Callable[[], Credentials],
    ) -> None:
        folder = arena(member.name)
        limit_bytes = memory_limit_bytes(member.slots)
        spill_limit_bytes = disk_limit_bytes(folder.parent, limit_bytes)
        self._member = member.id
        self._owners = owners
        self._store = BlockStore(member.name, folder, limit_bytes, spill_limit_bytes, _blocks_limit())
        self._serving: Serving | None = None
        self._fetching = Fetching(member.id, self._store, membership, credentials, self._knows, arena)
        self._lendings = Lendings(self._store, self._fetching)

    def start(self) -> None:
        """Let processes of this machine come."""
        self._serving = Serving(self._member, self._store, self._fetching.obtain)

    def close(self) -> None:
        if self._serving is not None:
            self._serving.close()
        self._fetching.close()
        self._store.close()

    def answer(self, peer: Peer, ask: Asked) -> bool | Usage:
        """Raises what refuses it."""
        match ask:
            case asks.KeepBlock(instance, block, pin):
                self._store.keep(block, self._owner(peer, instance), pin=pin)
                self._store.passed_on(block)
            case asks.DropBlocks(instance, blocks):
                if len(blocks) > asks.DROPPED_LIMIT:
                    raise LimitError(f"{len(blocks)} blocks are dropped at once, over {asks.DROPPED_LIMIT}.")
                self._store.drop(blocks, (peer.id, instance))
                self._fetching.dropped((peer.id, instance), blocks)
            case asks.MemoryAsked():
                return self._store.usage()
        return True

    @property
    def link_rates(self) -> dict[str, float]:
        """What links to this node carry, by the id of the sender."""
        return self._fetching.rates.told()

    async def lend(self, peer: Peer, block: str, insist: bool) -> Lending | list[str]:
        """A block for a peer, or the ids of nodes that it can ask. Raises BlockLostError, ArenaFullError."""
        return await self._lendings.lend(peer, block, insist)

    def returned(self, owner: Owner | None, blocks: Sequence[str]) -> None:
        """Results of this owner's tasks refer to these; those that are here it keeps, and their writers need not.

        An owner that has ended keeps nothing; None: the results are given to nobody.
        """
        known = owner is not None and self._knows(owner)
        for block in blocks:
            if self._store.has(block):
                if owner is not None and known:
                    self._store.keep(block, owner)
                self._store.passed_on(block)

    def owner_ended(self, owner: Owner) -> None:
        self._store.owner_ended(owner)

    def _owner(self, peer: Peer, instance: str) -> Owner:
        owner = (peer.id, instance)
        if not self._knows(owner):
            raise StateError(f"This node does not know the process of {peer.name} that keeps a block.", "Try again.")
        return owner

    def _knows(self, owner: Owner) -> bool:
        return self._owners.get(owner) is not None


def memory_limit_bytes(slots: int) -> int:
    """How much memory the arena may take. Raises UsageError for a KOS_ARENA that is no amount."""
    given = os.environ.get(LIMIT_VARIABLE)
    if given:
        try:
            return size_bytes(given)
        except UsageError as error:
            raise UsageError(
                f"{LIMIT_VARIABLE} in this node's environment is wrong: {error.message}", error.hint
            ) from None
    cores = len(os.sched_getaffinity(0))
    return int(machine.memory_bytes() * ARENA_SHARE * min(1.0, slots / cores))


def disk_limit_bytes(folder: Path, limit_bytes: int) -> int:
    """How much disk the arena may take."""
    return min(int(shutil.disk_usage(folder).free * SPILL_SHARE), SPILL_TIMES * limit_bytes)


def _blocks_limit() -> int:
    """How many blocks this process may have, each of which takes a descriptor; it is let open as many as it can."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * BLOCKS_LIMIT
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed // 2  # the other half is for connections
