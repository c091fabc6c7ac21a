"""The coordinator's duties: who belongs to the group, votes, holds the authority's key, drives detached jobs; and time.

Theory of operation. While this node leads it looks at the cluster each `LOOK_S`, and when something was decided, and
does one step: a node that was admitted and is alive begins to learn; one that is to be removed goes; voters are chosen
by `core.voters`, and get their copy of the authority's key before they get their vote. Leases end by the replicated
clock, which moves with each command; when nothing else is proposed by the time that one ends, a `Tick` is.

Rules: one step at a time, and each is decided anew from what is so. A step that is refused, or whose fate is unknown,
is looked at again at the next look.
"""

from __future__ import annotations

import asyncio
import logging
import time

from kos_cluster.core import raft
from kos_cluster.core.raft.config import CAUGHT_UP_ENTRIES
from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.replicated import commands, formats
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.roles import Role
from kos_cluster.core.voters import Blocked, Candidate, Demote, HandOver, Promote, choose_voters, voters_wanted
from kos_cluster.errors import KosError
from kos_cluster.node.assigning import Assigning
from kos_cluster.node.certifying import Certifier
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.draining import forgotten, is_drained, to_remove
from kos_cluster.node.membership import ALIVE, Membership

log = logging.getLogger(__name__)

LOOK_S = 0.5
FORMING_LOOK_S = 0.05  # while voters are missing: the loss of one more node could then be the loss of agreement
SILENT_S = 3.0  # a node that has not answered the coordinator for so long is not made a voter


class Coordinating:
    """Used in the daemon's loop. `run` never returns; it acts only while this node leads."""

    def __init__(
        self, node: str, consensus: Consensus, membership: Membership, certifier: Certifier, assigning: Assigning
    ) -> None:
        self._assigning = assigning
        self._node = node
        self._consensus = consensus
        self._membership = membership
        self._certifier = certifier
        self._since: dict[str, tuple[MemberState, float]] = {}  # since when each is in its state, as seen here
        self._look = asyncio.Event()
        self._blocked = ""

    def look(self) -> None:
        """Something was decided, or a node came or went: do not wait for the next look."""
        self._look.set()

    async def run(self) -> None:
        while True:
            self._look.clear()
            if self._consensus.leads:
                try:
                    if await self._step():
                        continue
                except KosError as error:
                    log.warning("A step of the coordinator was refused: %s", error)
            try:
                await asyncio.wait_for(self._look.wait(), FORMING_LOOK_S if self._forming else LOOK_S)
            except TimeoutError:
                continue

    @property
    def _forming(self) -> bool:
        """Whether a node that learns could be the voter that is missing, as soon as it has caught up."""
        group = self._consensus.membership
        return self._consensus.leads and bool(group.learners) and len(group.voters) < voters_wanted(len(group.members))

    async def _step(self) -> bool:
        """One step, if any is due; whether it was made."""
        await self._keep_time()
        if await self._remove() or await self._raise_format() or await self._assigning.step():
            return True
        change = self._next_member() or await self._next_voter()
        if change is None:
            return False
        log.info("Change of the group: %s.", change)
        return await self._consensus.change(change)

    async def _remove(self) -> bool:
        """Deny the certificates of those that are to be removed and are no longer of the group.

        The detached jobs of a client that is removed end; those of clients that came with a removed node go on, since
        they outlive the machine that they were submitted from.
        """
        state, removed = self._consensus.state, False
        for id_, reason in to_remove(state).items():
            if id_ not in self._consensus.membership.members:
                if state.identities.get(id_) is not None:
                    await self._consensus.propose(commands.RemoveIdentity(id_, reason))
                for job in _submitted_by(state, id_):
                    await self._consensus.propose(commands.CancelJob(job, reason))
                for command in forgotten(state, id_):
                    await self._consensus.propose(command)
                removed = True
        return removed

    async def _raise_format(self) -> bool:
        """Have the log written in a newer format, once all nodes read it."""
        state = self._consensus.state
        nodes = {i.id for i in state.identities.identities() if i.role is Role.NODE}
        readable = formats.readable(nodes, self._membership.members())
        if readable <= state.format:
            return False
        log.info("All nodes read format %d of the log: it is written in that from now on.", readable)
        await self._consensus.propose(formats.raised(state.settings, readable))
        return True

    # ---- who belongs to the group

    def _next_member(self) -> raft.Change | None:
        group = self._consensus.membership
        state = self._consensus.state
        nodes = {i.id for i in state.identities.identities() if i.role is Role.NODE} - to_remove(state).keys()
        if not state.cluster:  # not founded yet
            return None
        for id_ in group.members:
            if id_ in nodes or self._unsafe_to_drop(id_):
                continue
            if id_ != self._node:
                return raft.Remove(id_)
            self._hand_over()
        for member in self._membership.members():
            if member.id in nodes and member.id not in group.members and member.state is MemberState.ALIVE:
                return raft.AddLearner(member.id)
        return None

    def _hand_over(self) -> None:
        """This node is to be removed: let another voter coordinate, who does it."""
        others = [id_ for id_ in self._consensus.membership.voters if id_ in self._membership.alive()]
        if others:
            self._consensus.transfer(others[0])

    def _unsafe_to_drop(self, id_: str) -> bool:
        """Whether Raft would refuse, for the voters that would be left cannot agree."""
        voters = set(self._consensus.membership.voters)
        if id_ not in voters:
            return False
        left = voters - {id_}
        alive = left & {self._node, *self._membership.alive()}
        return len(alive) < len(left) // 2 + 1

    # ---- who votes

    async def _next_voter(self) -> raft.Change | None:
        group = self._consensus.membership
        if not self._certifier.can_open:
            return None
        step = choose_voters(self._candidates(), group.voters, self._node, time.monotonic())
        match step:
            case Promote(id_, why):
                if id_ not in self._certifier.sealed_to():
                    await self._certifier.seal_to({*group.voters, id_})
                log.info("%s becomes a voter: %s.", id_, why)
                return raft.Promote(id_)
            case Demote(id_, why):
                log.info("%s is no longer a voter: %s.", id_, why)
                return raft.Demote(id_)
            case HandOver(id_, why):
                log.info("%s is to coordinate: %s.", id_, why)
                self._consensus.transfer(id_)
            case Blocked(reason) if reason != self._blocked:
                log.warning("%s", reason)
        self._blocked = step.reason if isinstance(step, Blocked) else ""
        if step is None and set(self._certifier.sealed_to()) != set(group.voters):
            await self._certifier.seal_to(group.voters)
        return None

    def _candidates(self) -> list[Candidate]:
        caught_up = {f.node for f in self._consensus.followers() if is_caught_up(f)}
        nodes = {i.id for i in self._consensus.state.identities.identities() if i.role is Role.NODE}
        return [self._candidate(m, m.id in caught_up) for m in self._membership.members() if m.id in nodes]

    def _candidate(self, member: Member, ready: bool) -> Candidate:
        state, since_s = self._since.get(member.id, (None, 0.0))
        if state is not member.state:
            since_s = time.monotonic()
            self._since[member.id] = (member.state, since_s)
        return Candidate(
            id=member.id,
            name=member.name,
            machine=member.boot_id,
            state=member.state,
            since_s=since_s,
            ready=ready and member.state in ALIVE,
            drained=is_drained(self._consensus.state, member.id),
        )

    # ---- time

    async def _keep_time(self) -> None:
        """Let the replicated clock go on when something ends by it."""
        if self._consensus.clock_s >= self._consensus.state.due_s:
            await self._consensus.propose(commands.Tick())


def _submitted_by(state: ClusterState, id_: str) -> list[str]:
    """The detached jobs of a client that have not ended."""
    return [job.id for job in state.jobs.snapshot() if job.submitter == id_ and job.ended_s is None]


def is_caught_up(follower: raft.Follower) -> bool:
    """Whether it could vote: it has nearly all of the log, and answers."""
    return follower.behind <= CAUGHT_UP_ENTRIES and follower.silent_s < SILENT_S
