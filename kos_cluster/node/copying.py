"""Copies of what detached jobs need, between the nodes that keep them.

Theory of operation. Each part is kept by `HOLDERS` nodes, which the job's record names. This node gives what it has
made to a second one, fetches what it needs, and, when a holder has been gone for `MEND_AFTER_S`, gives a copy of what
it still holds to another node and has that agreed. Of several that could, the first holder that is alive does it.

Rules: every copy is checked against its hash where it arrives. A node that is not alive is not asked. With no second
node in the cluster there is one copy, and that is what the record says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from kos_cluster.core.driving import holders_of
from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.replicated.commands import MovePart, Part
from kos_cluster.core.replicated.jobs import HOLDERS
from kos_cluster.errors import KosError
from kos_cluster.net.bulk import get_kept, put_part
from kos_cluster.net.identity import Credentials
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.draining import is_drained
from kos_cluster.node.keeping import Kept
from kos_cluster.node.membership import ALIVE, Membership

log = logging.getLogger(__name__)

MEND_EVERY_S = 5.0
MEND_AFTER_S = 30.0  # a machine that is started anew has its copy again
PARTS_WAIT_S = 30.0  # for one of the nodes that keep a part to come back
PAUSE_S = 0.5
SPREAD_TRIES = 3  # nodes that are asked to take a second copy


class Copying:
    """One node's part. Used in the daemon's loop; transfers run in threads."""

    def __init__(
        self,
        node: str,
        credentials: Callable[[], Credentials],
        consensus: Consensus,
        membership: Membership,
        kept: Kept,
    ) -> None:
        self._node = node
        self._credentials = credentials
        self._consensus = consensus
        self._membership = membership
        self._kept = kept
        self._lacking: dict[str, float] = {}  # part -> since when it has too few holders

    async def run(self) -> None:
        """Mend what lacks copies. Does not return."""
        while True:
            await asyncio.sleep(MEND_EVERY_S)
            try:
                await self.mend()
            except (KosError, OSError) as error:
                log.warning("A copy could not be made: %s", error)

    def named(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Every part that some job names: hash -> one such job, and the holders."""
        named: dict[str, tuple[str, tuple[str, ...]]] = {}
        for job in self._consensus.state.jobs.snapshot():
            named |= {hash_: (job.id, holders) for hash_, holders in job.parts.items()}
            named |= {r.sha256: (job.id, r.holders) for r in job.results.values() if r.sha256}
        return named

    def names(self, ids: Iterable[str]) -> list[str]:
        """What people call these nodes."""
        members = [(id_, self._membership.member(id_)) for id_ in ids]
        return [member.name if member is not None else id_ for id_, member in members]

    async def spread(self, hash_: str) -> tuple[str, ...]:
        """Give a part that is kept here to a second node; who keeps it then."""
        members = [m for m in self._membership.members() if m.state is MemberState.ALIVE and not self._drained(m)]
        own = self._membership.member(self._node)
        data = await asyncio.to_thread(self._kept.path(hash_).read_bytes)
        for member in holders_of(hash_, members, own)[1 : 1 + SPREAD_TRIES]:
            try:
                await asyncio.to_thread(put_part, member.host, member.port, self._credentials(), hash_, data, keep=True)
            except KosError as error:
                log.warning("%s could not take a copy of %s: %s", member.name, hash_[:12], error.message)
            else:
                return (self._node, member.id)
        return (self._node,)

    async def fetch(self, id_: str, hash_: str) -> bool:
        """Have a part of a job here. False when nobody who is alive has kept it for `PARTS_WAIT_S`."""
        deadline = time.monotonic() + PARTS_WAIT_S
        while not await asyncio.to_thread(self._kept.intact, hash_):
            holders = self._holders(id_, hash_)
            for member in holders:
                if await self._fetched(member, hash_):
                    return True
            known = [self._membership.member(holder) for holder in self.named().get(hash_, ("", ()))[1]]
            for_good = all(member is None or member.state is MemberState.LEFT for member in known)
            if for_good or time.monotonic() > deadline:
                return False
            await asyncio.sleep(PAUSE_S)
        return True

    async def _fetched(self, member: Member, hash_: str) -> bool:
        path = self._kept.incoming(0)
        try:
            await asyncio.to_thread(self._receive, member, hash_, path)
        except (KosError, OSError) as error:
            with suppress(FileNotFoundError):
                path.unlink()
            log.warning("The part %s could not be fetched from %s: %s", hash_[:12], member.name, error)
            return False
        return True

    def _receive(self, member: Member, hash_: str, path: Path) -> None:
        with open(path, "xb") as file:
            path.chmod(0o600)
            get_kept(member.host, member.port, self._credentials(), hash_, file)
        self._kept.add(hash_, path)

    def _holders(self, id_: str, hash_: str) -> list[Member]:
        """The other nodes that keep a part and are alive."""
        _, holders = self.named().get(hash_, ("", ()))
        members = [self._membership.member(holder) for holder in holders if holder != self._node]
        return [member for member in members if member is not None and member.state in ALIVE]

    def _drained(self, member: Member) -> bool:
        return member.drained or is_drained(self._consensus.state, member.id)

    # ---- mending

    async def mend(self) -> None:
        """Give one more node a copy of what has lacked one for long. Raises KosError."""
        now = time.monotonic()
        named = self.named()
        lacking = {hash_: entry for hash_, entry in named.items() if self._lacks(*entry)}
        self._lacking = {hash_: self._lacking.get(hash_, now) for hash_ in lacking}
        for hash_, (id_, holders) in lacking.items():
            if now - self._lacking[hash_] < MEND_AFTER_S or not self._is_mine(holders):
                continue
            if await asyncio.to_thread(self._kept.intact, hash_):
                fresh = await self.spread(hash_)
                if len(fresh) == HOLDERS:
                    await self._consensus.propose(MovePart(id_, Part(hash_, fresh)))

    def _alive(self, holders: Sequence[str]) -> list[str]:
        members = [self._membership.member(holder) for holder in holders]
        return [member.id for member in members if member is not None and member.state in ALIVE]

    def _lacks(self, id_: str, holders: tuple[str, ...]) -> bool:
        return len(self._alive(holders)) < HOLDERS

    def _is_mine(self, holders: tuple[str, ...]) -> bool:
        """Whether this node is the one to mend it: the first holder that is alive, or, without one, whoever has it."""
        alive = self._alive(holders)
        return not alive or alive[0] == self._node
