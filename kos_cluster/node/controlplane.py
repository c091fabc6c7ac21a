"""A node's part in running the cluster: links to the other nodes, who is alive, what is agreed, and who coordinates.

Theory of operation. `Peers` carries messages between nodes, `Membership` runs SWIM over it, `Consensus` runs Raft, and
`Lookups` finds nodes that are not where they are looked for. What the cluster agrees on is carried out here: denied
certificates are shut out at the door, removed members are gone from the view, drained ones say so of themselves. While
this node leads, `Coordinating` does the coordinator's duties.

Rules: every message that comes in here is of an authenticated node. The view's number grows with every change of a
member, of the voters, or of the coordinator; it means something only together with the node that tells it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kos_cluster.core import raft, swim
from kos_cluster.core.records import Load, Member, MemberState
from kos_cluster.core.replicated import commands, replies
from kos_cluster.errors import RevokedError
from kos_cluster.net import controlplane, wire
from kos_cluster.net.administration import ClusterStatus
from kos_cluster.net.admission import Admitted
from kos_cluster.net.gangs import TwoPhase
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.transport import Origin
from kos_cluster.node.assigning import Assigning
from kos_cluster.node.certifying import Certifier
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.coordinating import Coordinating
from kos_cluster.node.draining import is_drained
from kos_cluster.node.founding import Founding
from kos_cluster.node.gangs import Gangs
from kos_cluster.node.lookups import Lookups
from kos_cluster.node.membership import Membership
from kos_cluster.node.peers import Peers
from kos_cluster.node.raftlog import RaftLog
from kos_cluster.node.store import Store
from kos_cluster.node.turning import removed
from kos_cluster.node.vouching import Vouching

log = logging.getLogger(__name__)

JOINED_TIMEOUT_S = 10.0  # for the first answer of another node
FIRST_WORD_S = 2.0  # for any word of a node that was known before, at a start
REFUSED_TIMEOUT_S = 5.0  # for what the others say, when one refuses this node
FAREWELL_S = 0.5  # for the news that this node stops
HANDOVER_S = 1.0  # for another node to coordinate, when this one stops and did


@dataclass(frozen=True)
class Ground:
    """What a node stands on when it starts: its identity, its disk, its door, and where others may be."""

    credentials: Credentials
    group: str  # hex SHA-256 of the authority's key, which names the cluster for good
    store: Store
    log: Path  # where Raft's log is
    admitted: Admitted
    profile: swim.Profile
    bootstrap: Sequence[str]  # HOST:PORT of control ports
    founding: Founding | None  # what this node founds the cluster with, if it does


class ControlPlane:
    """One node's. Used in the daemon's loop. `changed` is called after each new view, `expelled` with the serial and
    the holder's id for each certificate that is denied with nothing in its place."""

    def __init__(
        self,
        ground: Ground,
        member: Member,
        make_peers: Callable[[ControlPlane], Peers],
        changed: Callable[[], None],
        owner_ended: Callable[[wire.OwnerEnded], None],
        asked: Callable[[Peer, wire.Request], None],
        expelled: Callable[[int, str], None],
        gangs: Gangs,
    ) -> None:
        self._ground = ground
        self._member = member
        self._changed = changed
        self._owner_ended = owner_ended
        self._asked = asked
        self._expelled = expelled
        self._gangs = gangs
        self._view = time.time_ns()
        peers = self.peers = make_peers(self)
        self._vouching = Vouching(ground.credentials, ground.admitted.revoked)
        self.membership = Membership(
            member,
            ground.profile,
            ground.store,
            peers,
            self._vouching.sign,
            self._vouching.verify,
            self._moved,
        )
        self.consensus = Consensus(
            member.id,
            ground.group,
            self._open_log,
            lambda id_, message: peers.send(id_, message),  # lost ones are sent again by whoever needs an answer
            self._decided,
            self._moved,
            self.membership.unsuspected,
        )
        self.lookups = Lookups(
            member, peers, ground.credentials, ground.admitted.revoked, self.membership.member, self._belongs
        )
        self.certifier = Certifier(ground.credentials, self.consensus, self.membership)
        self.assigning = Assigning(self.consensus, self.membership)
        self._coordinating = Coordinating(member.id, self.consensus, self.membership, self.certifier, self.assigning)

    # ---- life

    def start(self) -> None:
        """Raises StateError when this node's log is damaged."""
        self.consensus.start()
        self.membership.start(self._ground.bootstrap)
        self.peers.reach()

    async def joined(self) -> bool:
        """Wait until another node has answered, or, at the founder, until the cluster is founded; False if too late.

        Raises RevokedError when this node was removed.
        """
        deadline = time.monotonic() + JOINED_TIMEOUT_S
        if self._ground.founding is not None and not self.consensus.state.cluster:
            await self._ground.founding.carry_out(self.consensus)
        while self._ground.bootstrap and not self.membership.alive():
            self.check_belongs()
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def answered(self) -> None:
        """Wait a little for the first word of another node; when it is a refusal, for what the others say.

        Raises RevokedError when this node was removed; also when the others say nothing, as it has no work to lose yet.
        """
        first_word_s = time.monotonic() + FIRST_WORD_S
        known = any(member.state is not MemberState.LEFT for member in self.membership.members()[1:])
        while known and not self.peers.met and time.monotonic() < first_word_s:
            await asyncio.sleep(0.01)
        deadline = time.monotonic() + REFUSED_TIMEOUT_S
        while self.peers.doubted:
            if time.monotonic() > deadline:
                raise self._removed()
            self.check_belongs()
            await asyncio.sleep(0.01)

    async def run(self) -> None:
        """The coordinator's duties, while this node leads. Does not return."""
        await self._coordinating.run()

    def check_belongs(self) -> None:
        """Raises RevokedError when the other nodes do not take this one to be of the cluster any more."""
        if self.peers.turned_away(time.monotonic()):
            raise self._removed()

    def _removed(self) -> RevokedError:
        return removed(self._member.name, self._ground.credentials.peer.cluster)

    async def farewell(self) -> None:
        """This node stops: let another coordinate, and tell the others."""
        if self.consensus.leads:
            await self._hand_over()
        await self.membership.leave(False, FAREWELL_S)

    async def close(self) -> None:
        self.membership.close()
        await self.consensus.close()
        self.lookups.close()
        self.peers.close()

    def _open_log(self) -> RaftLog:
        """Raft's log; a new one for a node that has never run. One that has lost its log must not begin anew."""
        ground = self._ground
        if ground.log.exists() or ground.store.get("members") is not None:
            return RaftLog(ground.log, ground.group)
        begin = raft.founding((self._member.id,)) if ground.founding is not None else raft.Restored()
        return RaftLog.create(ground.log, ground.group, begin)

    async def _hand_over(self) -> None:
        others = [id_ for id_ in self.consensus.membership.voters if id_ in self.membership.alive()]
        if others:
            self.consensus.transfer(others[0])
            deadline = time.monotonic() + HANDOVER_S
            while self.consensus.leads and time.monotonic() < deadline:
                await self.consensus.moved(deadline - time.monotonic())

    def renewed(self, credentials: Credentials) -> None:
        """This node has another certificate, and vouches by it from now on."""
        self._vouching.renewed(credentials)
        self.peers.renewed(credentials)
        self.lookups.renewed(credentials)
        self.membership.update(self._member)

    # ---- what is known

    @property
    def view(self) -> int:
        return self._view

    def sync_data(self, view: int) -> wire.SyncData:
        """The view, with the members only for whoever has another."""
        return wire.SyncData(
            view=self._view,
            members=self.membership.members() if view != self._view else None,
            loads=self.membership.loads(),
            coordinator=self.consensus.leader or "",
            term=self.consensus.term,
            voters=list(self.consensus.membership.voters),
            trouble=self.consensus.trouble,
        )

    @property
    def member(self) -> Member:
        """This node's own record, as it is now."""
        return self.membership.members()[0]

    def coordinator(self) -> Member | None:
        """The member that coordinates, when it is known."""
        return self.membership.member(self.consensus.leader or "")

    def status(self) -> ClusterStatus:
        membership = self.consensus.membership
        return ClusterStatus(
            coordinator=self.consensus.leader or "",
            term=self.consensus.term,
            voters=list(membership.voters),
            learners=list(membership.learners),
            trouble=self.consensus.trouble,
            sealed_to=sorted(self.certifier.sealed_to()),
            now_s=time.time(),
            contacts=self.lookups.contacts,
        )

    def named(self, name: str) -> Member | None:
        """The member of this name or id that has not left."""
        found = [m for m in self.membership.members() if name in (m.name, m.id)]
        return next((m for m in found if m.state is not MemberState.LEFT), None)

    # ---- peers.Listener

    def node_said(self, peer: Peer, message: wire.Message, payload: memoryview) -> None:
        self.membership.heard(peer.id)
        match message:
            case controlplane.Heartbeat() | controlplane.LoadNews():
                self.membership.said(peer.id, message)
            case controlplane.Finding(inner):
                self.lookups.said(peer.id, inner)
            case controlplane.Consensus() | controlplane.Propose() | controlplane.Proposed():
                self.consensus.said(peer.id, message)
            case TwoPhase(inner):
                self._gangs.said(peer.id, inner)
            case wire.OwnerEnded():
                self._owner_ended(message)
            case wire.Request():
                self._asked(peer, message)
            case wire.Reply():
                self.peers.answered(message)

    def node_reached(self, member: Member, address: str) -> None:
        self.lookups.reached(member, address)

    def node_unreachable(self, id_: str, address: str) -> None:
        self.membership.unreachable(id_)
        self.lookups.unreachable(id_, address)

    def node_mistaken(self, id_: str, address: str) -> None:
        self.lookups.mistaken(id_, address)

    def node_sought(self, id_: str) -> None:
        self.lookups.seek(id_)

    def node_greeted(self, origin: Origin) -> None:
        """A node has said hello over its own link."""
        self.peers.greeted(origin)
        self.lookups.greeted(origin.peer.id)

    def owner_has_ended(self, message: wire.OwnerEnded) -> None:
        """A client's process has ended on this machine: every node should know."""
        self.peers.tell_all(self.membership.alive(), message)

    def measured(self, load: Load) -> None:
        self.membership.measured(load)

    def _belongs(self, id_: str) -> bool:
        """Whether a node is of the cluster; all may be until the state is here."""
        state = self.consensus.state
        return not state.cluster or state.identities.get(id_) is not None

    # ---- changes

    def _moved(self) -> None:
        self._view += 1
        self.membership.voting(self.consensus.membership.voters)
        self._coordinating.look()
        self._gangs.look()
        self._changed()

    def _decided(self, changes: tuple[replies.Change, ...]) -> None:
        """Carry out what was agreed. Without changes, anything may be different: the state came as a whole."""
        state = self.consensus.state
        denied = [s for change in changes if isinstance(change, replies.CertificatesDenied) for s in change.serials]
        if not changes:
            denied = [entry.serial for entry in state.identities.revoked()]
        for serial in denied:
            self._deny(serial)
        self._drain()
        self.certifier.changed()
        self._gangs.decided(changes)
        self._coordinating.look()

    def _deny(self, serial: int) -> None:
        """Shut a certificate out; a holder that has a newer one for the same keys goes on under that."""
        identities = self.consensus.state.identities
        entry = identities.denied(serial)
        if entry is None:
            return
        identity = identities.get(entry.id)
        newest = list(identity.certificates.values())[-1:] if identity is not None else []
        cluster = self._ground.credentials.peer.cluster
        successor = next((_peer_of(certificate, cluster) for certificate in newest), None)
        self._ground.admitted.revoke(serial, successor)
        if successor is not None:
            self.peers.succeeded(successor)
        else:
            self._expelled(serial, entry.id)
        member = self.membership.member(entry.id)
        if identity is None and member is not None:
            self.membership.removed(entry.id)
            self._moved()

    def _drain(self) -> None:
        """Say of oneself what the cluster has decided."""
        drained = is_drained(self.consensus.state, self._member.id)
        if drained != self._member.drained:
            self._member = msgspec.structs.replace(self._member, drained=drained)
            self.membership.update(self._member)


def _peer_of(c: commands.Certificate, cluster: str) -> Peer:
    return Peer(cluster, c.id, c.name, c.role, c.serial, c.curve_public, c.not_after_s)
