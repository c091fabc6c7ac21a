"""The answers to requests: what each asks for, who may ask it, and who knows the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from kos_cluster.core.records import JobSummary, Load
from kos_cluster.core.roles import Command, Role, may
from kos_cluster.errors import AuthError, KosError
from kos_cluster.net import detached, wire
from kos_cluster.net import kernels as asks
from kos_cluster.net.administration import (
    DrainNode,
    LeaveCluster,
    MintToken,
    RemoveNode,
    Renew,
    RenewalKept,
    RenewNode,
    Status,
    StopNode,
)
from kos_cluster.net.blocks import DropBlocks, KeepBlock, MemoryAsked
from kos_cluster.net.engines import CertifyEngine
from kos_cluster.net.gangs import GangWanted, GangWithdrawn
from kos_cluster.net.identity import Peer
from kos_cluster.net.locks import LockAsked, LockReleased, LockRenewed, LocksAsked, LockWanted
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.net.standing import StandingAsked
from kos_cluster.node import registers
from kos_cluster.node.administering import Administration
from kos_cluster.node.blocks import Blocks
from kos_cluster.node.controlplane import ControlPlane
from kos_cluster.node.detached import ASKED, DetachedJobs
from kos_cluster.node.gangs import Gangs
from kos_cluster.node.history import History
from kos_cluster.node.kernels import Kernels
from kos_cluster.node.owners import Owners, OwnerState

COMMAND_OF: dict[type, Command] = {
    wire.Nodes: Command.READ,
    wire.Jobs: Command.READ,
    wire.RememberedJobs: Command.READ,
    wire.Logs: Command.READ,
    wire.Stories: Command.READ,
    wire.CancelWork: Command.SUBMIT,
    MintToken: Command.MINT_TOKEN,
    StopNode: Command.STOP_NODE,
    LeaveCluster: Command.REMOVE_SELF,
    RemoveNode: Command.REMOVE_NODE,
    DrainNode: Command.DRAIN_NODE,
    Renew: Command.READ,  # of one's own certificate
    RenewalKept: Command.READ,  # likewise
    RenewNode: Command.ROTATE,
    LockWanted: Command.SUBMIT,
    LockAsked: Command.READ,
    LocksAsked: Command.READ,
    LockRenewed: Command.SUBMIT,
    LockReleased: Command.SUBMIT,
    RegistersAsked: Command.READ,
    RegisterWritten: Command.SUBMIT,
    Status: Command.READ,
    detached.Detach: Command.SUBMIT,
    detached.DetachedJobs: Command.READ,
    detached.DetachedJobOf: Command.READ,
    detached.DetachedResults: Command.SUBMIT,
    detached.DetachedOutput: Command.READ,
    detached.CancelDetached: Command.SUBMIT,
    StandingAsked: Command.READ,
    asks.StartKernel: Command.SUBMIT,
    asks.KernelOf: Command.SUBMIT,
    asks.StopKernel: Command.SUBMIT,
    KeepBlock: Command.SUBMIT,
    DropBlocks: Command.SUBMIT,
    MemoryAsked: Command.READ,
    GangWanted: Command.SUBMIT,
    GangWithdrawn: Command.SUBMIT,
    CertifyEngine: Command.SUBMIT,
}
WORDS_OF: dict[type, str] = {
    wire.CancelWork: "cancel work",
    detached.CancelDetached: "cancel work",
    detached.Detach: "run work",
    asks.StartKernel: "run work",
    GangWanted: "run work",
    GangWithdrawn: "cancel work",
    asks.KernelOf: "use kernels",
    asks.StopKernel: "cancel work",
    detached.DetachedResults: "take results",
    MintToken: "make join tokens",
    StopNode: "stop nodes",
    LockWanted: "take locks",
    LockRenewed: "take locks",
    LockReleased: "take locks",
    RegisterWritten: "write registers",
    CertifyEngine: "use engines",
    KeepBlock: "keep blocks",
    DropBlocks: "drop blocks",
}  # the rest is reading, which every role may do


class Answers:
    """Answers requests of authenticated peers; a refusal is an answer too."""

    def __init__(
        self,
        control: ControlPlane,
        detached: DetachedJobs,
        kernels: Kernels,
        blocks: Blocks,
        gangs: Gangs,
        owners: Owners,
        history: History,
        tell_owner: Callable[[OwnerState, wire.Message], None],
        own_load: Callable[[], tuple[str, Load]],
        stop: Callable[[], None],
        rotate: Callable[[], Awaitable[float]],
    ) -> None:
        self._control = control
        self._administration = Administration(control)
        self._detached = detached
        self._kernels = kernels
        self._blocks = blocks
        self._gangs = gangs
        self._rotate = rotate
        self._owners = owners
        self._history = history
        self._tell_owner = tell_owner
        self._own_load = own_load
        self._stop = stop

    async def reply(self, peer: Peer, request: wire.Request) -> wire.Reply:
        try:
            self._authorise(peer, request.ask)
            value = msgspec.Raw(msgspec.msgpack.encode(await self._answer(peer, request.ask)))
            return wire.Reply(request.id, value)
        except KosError as error:
            return wire.Reply(request.id, error=(type(error).__name__, error.message, error.hint))

    def _authorise(self, peer: Peer, ask: wire.Asked) -> None:
        command = COMMAND_OF[type(ask)]
        if not may(peer.role, command):
            wanted = " or ".join(role for role in Role if may(role, command))
            raise AuthError(
                f"The role {peer.role} of {peer.name} may not {WORDS_OF.get(type(ask), command)}.",
                f"It takes a token of the role {wanted}: an admin makes one with 'kos cluster token --role'.",
            )

    async def _answer(self, peer: Peer, ask: wire.Asked) -> Any:
        match ask:
            case wire.Nodes():
                return self._nodes()
            case wire.Jobs():
                return self._jobs()
            case wire.RememberedJobs():
                return self._history.jobs()
            case wire.Logs(id_):
                return self._history.logs(id_)
            case wire.Stories(id_):
                return self._history.stories(id_)
            case wire.CancelWork(id_):
                return self._cancel(peer, id_)
            case StopNode():
                self._stop()
                return True
            case Status():
                return self._control.status()
            case asks.StartKernel() | asks.KernelOf() | asks.StopKernel():
                return await self._kernels.answer(peer, ask)
            case CertifyEngine():
                return self._control.certifier.certify_engine(peer, ask)
            case KeepBlock() | DropBlocks() | MemoryAsked():
                return self._blocks.answer(peer, ask)
            case GangWanted() | GangWithdrawn():
                return await self._gangs.answer(peer, ask)
            case _:
                return await self._agreed(peer, ask)

    async def _agreed(self, peer: Peer, ask: wire.Asked) -> Any:
        """What the cluster has to agree on."""
        if isinstance(ask, ASKED):
            return await self._detached.answer(peer, ask)
        match ask:
            case MintToken(role, ttl_s):
                return await self._control.certifier.mint(role, ttl_s)
            case LeaveCluster():
                return await self._administration.leave(peer, self._own_load()[0])
            case RemoveNode(name):
                return await self._administration.remove(peer, name)
            case DrainNode(name, drain):
                return await self._administration.drain(name, drain)
            case Renew(request_pem):
                return await self._control.certifier.renew(peer, request_pem)
            case RenewalKept(serial):
                return await self._administration.renewal_kept(peer, serial)
            case RenewNode():
                return await self._rotate()
            case LockWanted():
                return await self._administration.lock(peer, ask)
            case LockAsked(name):
                return await self._administration.lock_held(name)
            case LocksAsked():
                return await self._administration.locks_held()
            case LockRenewed():
                return await self._administration.renew_lock(peer, ask)
            case LockReleased():
                return await self._administration.release(peer, ask)
            case RegistersAsked():
                return await registers.read(self._control.consensus, ask)
            case RegisterWritten():
                return await registers.write(self._control.consensus, ask)

    def _nodes(self) -> wire.SyncData:
        """The view, with this node's own load as it is now."""
        data = self._control.sync_data(-1)
        id_, load = self._own_load()
        return msgspec.structs.replace(data, loads={**data.loads, id_: (load, 0.0)})

    def _jobs(self) -> list[JobSummary]:
        return [
            msgspec.structs.replace(job, user=state.peer.name, program=state.program)
            for state in self._owners
            for job in state.jobs
        ]

    def _cancel(self, peer: Peer, id_: str) -> bool:
        """Pass the wish on to the owner of the job, who knows all of its tasks."""
        job, _, index = id_.partition(".")
        having = [state for state in self._owners if state.has(job)]
        mine = [state for state in having if state.peer.id == peer.id or may(peer.role, Command.CANCEL_ANY)]
        if having and not mine:
            raise AuthError(
                f"Job {job} belongs to {having[0].peer.name}; the role {peer.role} may only cancel its own work.",
                "Ask its owner, or use an admin's identity.",
            )
        for state in mine:
            self._tell_owner(state, wire.CancelWanted(job, _number(index), peer.name))
        return bool(mine)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None
