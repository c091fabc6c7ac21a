"""What administrators and holders of locks ask of the cluster, as any node carries it out by agreement.

Rules. Who may ask is decided before (`answers`). A name that two members share is not guessed at. A lock's owner is
told apart by the authenticated identity that asks, so nobody renews or releases another's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from kos_cluster.core import raft
from kos_cluster.core.names import checked
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.replicated.identities import Identity
from kos_cluster.core.roles import Role
from kos_cluster.core.voters import change_refused
from kos_cluster.errors import NoSuchNodeError, RevokedError, StateError, UnreachableError
from kos_cluster.net.administration import LeaveCluster
from kos_cluster.net.identity import Peer
from kos_cluster.net.locks import HeldLock, LockReleased, LockRenewed, LockState, LockWanted
from kos_cluster.net.outcome import from_wire
from kos_cluster.node.controlplane import ControlPlane
from kos_cluster.node.coordinating import is_caught_up
from kos_cluster.node.draining import drained, removing

LOCK_POLL_LIMIT_S = 10.0  # for one answer to a waiter; it asks again
PATIENCE_S = 15.0  # for which a waiter that does not ask again keeps its place
LEAVE_TIMEOUT_S = 10.0


class Administration:
    """Used in the daemon's loop."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._consensus = control.consensus

    # ---- members

    async def leave(self, peer: Peer, own_id: str) -> bool:
        """A node leaves for good: this one, or one that has been stopped and speaks in its own name.

        Whether the cluster goes on without it. Raises StateError when the cluster cannot do without it,
        UnreachableError when nobody can decide.
        """
        identities = self._consensus.state.identities.identities()
        staying = [i for i in identities if peer.id not in (i.id, i.came_with)]
        others = [i for i in staying if i.role is Role.NODE]
        if not others:
            return False
        _check_admin_stays(staying, "on this machine")
        if peer.id == own_id:
            alive = self._control.membership.alive()
            if not any(other.id in alive for other in others):
                raise StateError(
                    f"{', '.join(other.name for other in others)} of the cluster's nodes cannot be reached, and need "
                    "this one.",
                    "Type 'kos cluster leave' on those machines first, and here last; or start them again.",
                )
            await self._make_dispensable(own_id)
            await self._ask_to_be_removed()
            await self._control.membership.leave(True, LEAVE_TIMEOUT_S / 5)
        else:
            await self._removed(peer.id, "left")
        return True

    async def remove(self, peer: Peer, name: str) -> list[str]:
        """Deny a node or client; its sessions end everywhere. Raises NoSuchNodeError, StateError."""
        identity = self._identity(name)
        identities = self._consensus.state.identities.identities()
        _check_admin_stays([i for i in identities if identity.id not in (i.id, i.came_with)], _where(identity))
        voters = self._consensus.membership.voters
        if identity.id in voters:
            # A node that is suspected may be one that others hold dead already.
            alive = {self._control.member.id, *self._control.membership.unsuspected()}
            refusal = change_refused(voters, alive, remove=identity.id)
            if refusal:
                raise StateError(
                    f"{identity.name} cannot be removed. {refusal}",
                    "Start other nodes first, so that enough voters can be reached; or type 'kos cluster leave' there, "
                    "which lets another node vote in its place.",
                )
        gone = [i.name for i in identities if identity.id in (i.id, i.came_with)]
        await self._removed(identity.id, f"removed by {peer.name}")
        return gone

    async def _removed(self, id_: str, reason: str) -> None:
        """Have it removed by the coordinator, and wait for that. Raises UnreachableError."""
        await self._consensus.propose(removing(id_, reason))
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while self._consensus.state.identities.get(id_) is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise UnreachableError(
                    "The cluster has agreed on the removal, and has not carried it out in time.",
                    "It goes on with it; see 'kos nodes'.",
                )
            await self._consensus.moved(left_s)

    async def _ask_to_be_removed(self) -> None:
        """The coordinator removes this node; it says when that is done, as it is not told here any more.

        What this node says meanwhile may be answered by that it is expelled, and the link be over before that word.
        """
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while (leader := self._consensus.leader) is None or self._consensus.leads:
            if time.monotonic() > deadline:
                raise UnreachableError("The cluster has no coordinator at the moment.", "Try again in a few seconds.")
            await self._consensus.moved(deadline - time.monotonic())
        try:
            reply = await self._control.peers.ask(leader, LeaveCluster(), LEAVE_TIMEOUT_S)
        except RevokedError:
            return
        except TimeoutError:
            raise UnreachableError("The coordinator does not answer.", "Try again in a few seconds.") from None
        if reply.error is not None:
            raise from_wire(reply.error)

    async def drain(self, name: str, drain: bool) -> bool:
        member = self._control.named(name)
        if member is None:
            raise self._no_such(name)
        await self._consensus.propose(drained(member.id, drain))
        return True

    async def renewal_kept(self, peer: Peer, serial: int) -> bool:
        """The holder of a renewed certificate has it on its disk. Raises AuthError when it is not its own."""
        await self._consensus.propose(commands.ConfirmCertificate(peer.id, serial))
        return True

    async def _make_dispensable(self, own_id: str) -> None:
        """Let another node vote and coordinate, if this one is alone in that."""
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while self._consensus.leads:
            voters = [id_ for id_ in self._consensus.membership.voters if id_ in self._control.membership.alive()]
            if voters:
                self._consensus.transfer(voters[0])
                await self._consensus.moved(0.2)
            else:
                await self._promote_somebody(own_id)
            if time.monotonic() > deadline:
                raise UnreachableError(
                    "No other node could take over what this one does for the cluster.",
                    "See that the others are alive ('kos nodes'), then leave again.",
                )

    async def _promote_somebody(self, own_id: str) -> None:
        learners = [f.node for f in self._consensus.followers() if is_caught_up(f)]
        alive = [id_ for id_ in learners if id_ in self._control.membership.alive()]
        if not alive:
            await asyncio.sleep(0.1)
            return
        await self._control.certifier.seal_to({own_id, alive[0]})
        await self._consensus.change(raft.Promote(alive[0]))

    def _identity(self, name: str) -> Identity:
        identities = self._consensus.state.identities.identities()
        found = [i for i in identities if name in (i.id, i.name)]
        if not found:
            raise self._no_such(name)
        if len(found) > 1:
            raise NoSuchNodeError(
                f"{len(found)} nodes or clients are named {name}.",
                f"Say which by its id: {', '.join(f'{i.id} ({i.role})' for i in found)}.",
            )
        return found[0]

    def _no_such(self, name: str) -> NoSuchNodeError:
        identities = self._consensus.state.identities.identities()
        names = sorted(i.name for i in identities)
        return NoSuchNodeError(f"No node or client is named {name!r}.", f"The cluster has {', '.join(names)}.")

    # ---- locks

    async def lock(self, peer: Peer, wanted: LockWanted) -> LockState:
        """Granted, or still waiting after a while; then ask again. Raises UsageError; with `wait_s` 0 LockHeldError."""
        checked(wanted.name, "lock")
        owner = _owner(peer, wanted.owner)
        patience_s = PATIENCE_S if wanted.wait_s > 0 else 0.0
        reply = await self._consensus.propose(
            commands.AcquireLock(wanted.name, owner, peer.name, wanted.ttl_s, patience_s)
        )
        deadline = time.monotonic() + min(wanted.wait_s, LOCK_POLL_LIMIT_S)
        while isinstance(reply, replies.LockQueued):
            lock = self._consensus.state.locks.get(wanted.name)
            if lock is not None and lock.owner == owner:
                return LockState(lock.token, lock.until_s)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return LockState(0, held=reply.held)
            await self._consensus.moved(left_s)
        if not isinstance(reply, replies.LockGranted):
            raise StateError(f"A lock was answered by {type(reply).__name__}.", "Try again.")
        return LockState(reply.token, reply.until_s)

    async def lock_held(self, name: str) -> LockState:
        """Who holds a lock, when all that was decided before has been applied here. Raises UnreachableError."""
        lock = (await self._consensus.read()).locks.get(name)
        return LockState(0) if lock is None else LockState(lock.token, lock.until_s, lock.holder)

    async def locks_held(self) -> list[HeldLock]:
        """As `lock_held`, of all."""
        held = (await self._consensus.read()).locks.snapshot()
        return [
            HeldLock(lock.name, lock.holder, lock.token, lock.since_s, lock.until_s, len(lock.queue))
            for lock in sorted(held, key=lambda lock: lock.name)
        ]

    async def renew_lock(self, peer: Peer, wanted: LockRenewed) -> LockState:
        """Raises LockHeldError when the lease has ended."""
        reply = await self._consensus.propose(commands.RenewLock(wanted.name, _owner(peer, wanted.owner), wanted.token))
        return LockState(wanted.token, reply.until_s if isinstance(reply, replies.LockGranted) else 0.0)

    async def release(self, peer: Peer, wanted: LockReleased) -> bool:
        await self._consensus.propose(commands.ReleaseLock(wanted.name, _owner(peer, wanted.owner)))
        return True


def _check_admin_stays(staying: Sequence[Identity], where: str) -> None:
    """Raises StateError when nobody could let others in any more."""
    if not any(identity.role is Role.ADMIN for identity in staying):
        raise StateError(
            f"The cluster's only admin is {where}; without one nobody could be let in any more.",
            "Make another first: 'kos cluster token --role admin', for a user on a machine that stays.",
        )


def _where(identity: Identity) -> str:
    return identity.name if identity.role is Role.ADMIN else f"on {identity.name}"


def _owner(peer: Peer, owner: str) -> str:
    return f"{peer.id}/{owner}"
