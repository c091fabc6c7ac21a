"""A node's part in starting gangs: it plans and decides while it coordinates, and holds slots as a participant.

Theory of operation. Runs `core.gang.scheduler` and the coordinator of `core.twophase` while this node leads, and the
participant always; the queue grants and denies the slots. The scheduler sees the members with their gossiped loads. An
owner's question waits here until its gang moves on, so that a start costs no polling.

Rules. A reservation is not written down: it is of use only to this life of the daemon. So a vote needs no disk, and
`Decided(commit)` for what this life never prepared is acked: the reservation went with the life that made it, and the
owner finds out when its rank is refused. For a node that is dead the coordinator acks. Messages come from authenticated
nodes; whoever leads answers questions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from kos_cluster.core import twophase
from kos_cluster.core.gang import scheduler
from kos_cluster.core.gang.slots import (
    Answer,
    SlotsGranted,
    SlotsReleased,
    SlotsWanted,
    SlotsWithdrawn,
    reservation_key,
)
from kos_cluster.core.placement import Candidate
from kos_cluster.core.queueevents import Owner
from kos_cluster.core.records import Load, MemberState
from kos_cluster.core.replicated import commands, replies
from kos_cluster.errors import KosError
from kos_cluster.net.gangs import GangStanding, GangWanted, GangWithdrawn, TwoPhase
from kos_cluster.net.identity import Peer
from kos_cluster.node.draining import is_drained

if TYPE_CHECKING:
    from kos_cluster.node.controlplane import ControlPlane

log = logging.getLogger(__name__)

TICK_S = 0.1  # while gangs wait or transactions are open
WAIT_LIMIT_S = 2.0  # for which a question is kept without an answer
DECIDE_TIMEOUT_S = 10.0  # for a decision to be agreed on


class Gangs:
    """Used in the daemon's loop. `reserve` gives the queue its orders; its answers come to `answered`."""

    def __init__(
        self,
        node: str,
        own_load: Callable[[], tuple[str, Load]],
        reserve: Callable[[SlotsWanted | SlotsReleased | SlotsWithdrawn], None],
    ) -> None:
        self.asked = asyncio.Event()  # a gang has wanted slots of this node
        self._node = node
        self._own_load = own_load
        self._reserve = reserve
        self._loop = asyncio.get_running_loop()
        self._control: ControlPlane | None = None
        self._participant = twophase.Participant([], {}, 0, self._loop.time())
        self._scheduler = scheduler.GangScheduler()
        self._coordinator: twophase.Coordinator | None = None
        self._leads_since: tuple[int, int] = (0, 0)  # the term, and the state that the coordinator reads
        self._proposing: set[commands.Command] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._work = asyncio.Event()  # there is something for `run` to look at
        self._moved = asyncio.Event()  # set and made anew when a gang moves on

    async def run(self, control: ControlPlane) -> None:
        """Let time pass for both machines. Does not return."""
        self._control = control
        while True:
            self._participate(self._participant.tick(self._loop.time()))
            self._lead()
            if not self._busy:
                self._work.clear()
                await self._work.wait()
            await asyncio.sleep(TICK_S)

    async def answer(self, peer: Peer, ask: GangWanted | GangWithdrawn) -> Any:
        """What an owner asks."""
        if isinstance(ask, GangWithdrawn):
            key = reservation_key(peer.id, ask.gang)
            self._schedule(scheduler.Withdrawn(key))
            self._reserve(SlotsWithdrawn(key))
            return True
        near, apart = frozenset(ask.near), frozenset(ask.apart)
        wanted = scheduler.Wanted(peer.id, ask.gang, ask.ranks, ask.needs, ask.instance, near, apart, ask.alone)
        deadline = self._loop.time() + min(ask.wait_s, WAIT_LIMIT_S)
        self._schedule(wanted)
        while self._leads():
            standing = self._scheduler.standing(wanted.key)
            left_s = deadline - self._loop.time()
            if standing is not None and (standing.ranks or standing.refused):
                return GangStanding(standing.ranks, standing.refused)
            if left_s <= 0:
                return GangStanding(waits=standing.waits if standing is not None else "too many gangs wait")
            try:
                await asyncio.wait_for(self._moved.wait(), left_s)
            except TimeoutError:
                continue
        return GangStanding(coordinates=False)

    def owner_ended(self, owner: Owner) -> None:
        """A client has ended. What this node holds for its gangs the queue frees."""
        self._schedule(scheduler.OwnerEnded(*owner))

    def said(self, sender: str, message: twophase.ToParticipant | twophase.ToCoordinator) -> None:
        """Another node, or this one, as coordinator or participant."""
        if isinstance(message, twophase.ToParticipant):
            self._participate(self._participant.handle(message, self._loop.time()))
        elif self._leads() and self._coordinator is not None and self._control is not None:
            clock_s = self._control.consensus.clock_s
            self._coordinate(self._coordinator.handle(sender, message, clock_s))
        self._work.set()

    def answered(self, answer: Answer) -> None:
        """What became of a request for slots."""
        yes = isinstance(answer, SlotsGranted)
        self._loop.call_soon(self._reserved, twophase.Reserved(answer.txn, yes))

    def look(self) -> None:
        """Who coordinates, or who is alive, has changed."""
        self._work.set()

    def decided(self, changes: Sequence[replies.Change]) -> None:
        """What the cluster has just agreed on."""
        for change in changes:
            if isinstance(change, replies.TransactionChanged):
                committed = change.decision is replies.Decision.COMMITTED
                self._schedule(scheduler.Ended(change.txn, committed))
                self._lead()

    # ---- coordinator

    @property
    def _busy(self) -> bool:
        transactions = self._control.consensus.state.transactions if self._control is not None else None
        open_ = bool(transactions and transactions.snapshot()) and self._leads()
        return open_ or bool(self._participant.in_doubt) or (self._leads() and bool(self._scheduler))

    def _leads(self) -> bool:
        return self._control is not None and self._control.consensus.leads

    def _lead(self) -> None:
        """Carry on what is open, while this node leads; with new machines in each term, and on a restored state."""
        if not self._leads() or self._control is None:
            return
        consensus = self._control.consensus
        leading = (consensus.term, id(consensus.state))
        if self._coordinator is None or leading != self._leads_since:
            self._leads_since = leading
            self._coordinator, self._scheduler = twophase.Coordinator(consensus.state), scheduler.GangScheduler()
        self._coordinate(self._coordinator.tick(consensus.clock_s))
        self._ack_for_the_dead()
        self._act(self._scheduler.tick(self._nodes(), self._promised(), self._loop.time()))

    def _ack_for_the_dead(self) -> None:
        """What a node held is gone with it, so that nothing is left to be carried out there."""
        assert self._control is not None
        alive = {self._node, *self._control.membership.alive()}
        for transaction in self._control.consensus.state.transactions.snapshot():
            dead = tuple(name for name in transaction.unacked if name not in alive)
            if dead and transaction.committed and scheduler.promised_by(transaction.participants):
                self._propose(commands.AckTransaction(transaction.txn, dead))

    def _schedule(self, event: scheduler.Event) -> None:
        if self._leads():
            self._lead()
            self._act(self._scheduler.handle(event, self._nodes(), self._promised(), self._loop.time()))
            self._moved.set()
            self._moved = asyncio.Event()
            self._work.set()

    def _act(self, effects: Sequence[scheduler.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, scheduler.Begin):
                self._start(self._begin(effect))
            else:
                self._propose(commands.DecideTransaction(effect.txn, False))

    def _coordinate(self, effects: Sequence[twophase.Send | twophase.Propose]) -> None:
        for effect in effects:
            if isinstance(effect, twophase.Propose):
                self._propose(effect.command)
            else:
                self._send(effect.to, effect.message)

    async def _begin(self, begin: scheduler.Begin) -> None:
        assert self._control is not None
        txn = None
        try:
            command = commands.BeginTransaction(begin.participants, begin.ttl_s)
            reply = await self._control.consensus.propose(command, begin.ttl_s)
            txn = reply.txn if isinstance(reply, replies.TransactionState) else None
        except KosError as error:
            log.warning("A gang could not begin to reserve its slots: %s", error)
        self._schedule(scheduler.Began(begin.key, txn))
        self._lead()

    def _propose(self, command: commands.DecideTransaction | commands.AckTransaction) -> None:
        if command not in self._proposing:
            self._proposing.add(command)
            self._start(self._agree(command))

    async def _agree(self, command: commands.DecideTransaction | commands.AckTransaction) -> None:
        assert self._control is not None
        try:
            await self._control.consensus.propose(command, DECIDE_TIMEOUT_S)
        except KosError as error:  # whoever coordinates then proposes it again
            log.warning("A decision about a gang was not agreed on: %s", error)
        finally:
            self._proposing.discard(command)

    def _nodes(self) -> list[Candidate]:
        """The members as scheduling sees them: those that are alive, and those in doubt, as if all was in use there."""
        assert self._control is not None
        state, loads = self._control.consensus.state, self._control.membership.loads()
        own_id, own_load = self._own_load()
        nodes = []
        for member in self._control.membership.members():
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT):
                load = own_load if member.id == own_id else loads.get(member.id, (Load(), 0.0))[0]
                node = Candidate(member.id, member.name, member.slots, member.memory_bytes)
                node.labels, node.gpus, node.resources = member.labels, member.gpus, member.resources
                running = load.running if member.state is MemberState.ALIVE else member.slots
                node.loaded(msgspec.structs.replace(load, running=running, queued=0))  # what is queued holds no slot
                node.drained = member.drained or is_drained(state, member.id)
                nodes.append(node)
        return nodes

    def _promised(self) -> dict[str, int]:
        """Slots of open transactions, by node."""
        assert self._control is not None
        promised: dict[str, int] = defaultdict(int)
        for transaction in self._control.consensus.state.transactions.snapshot():
            if not transaction.committed:
                for node, count in scheduler.promised_by(transaction.participants).items():
                    promised[node] += count
        return promised

    # ---- participant

    def _reserved(self, event: twophase.Reserved) -> None:
        if event.txn in self._participant.reserving:
            self._participate(self._participant.handle(event, self._loop.time()))

    def _participate(self, effects: Sequence[twophase.ParticipantEffect]) -> None:
        for effect in effects:
            match effect:
                case twophase.Tell(message):
                    self._tell(message)
                case twophase.Reserve(txn, payload):
                    self._hold(txn, payload)
                case twophase.Carry(txn, commit):
                    if not commit:
                        self._reserve(SlotsReleased(txn))
                case twophase.NeverPrepared(txn):
                    log.info("The slots of transaction %d were reserved by an earlier life of this daemon.", txn)
                    self._tell(twophase.Acked(txn))

    def _hold(self, txn: int, payload: bytes) -> None:
        try:
            wanted = msgspec.msgpack.decode(payload, type=scheduler.Reserve).wanted(txn)
        except msgspec.DecodeError as error:
            log.warning("Transaction %d asks for what this version does not know: %s", txn, error)
            self._loop.call_soon(self._reserved, twophase.Reserved(txn, False))
        else:
            self.asked.set()
            self._reserve(wanted)

    def _tell(self, message: twophase.ToCoordinator) -> None:
        """To whoever coordinates now, if that is known; it asks again."""
        leader = self._control.consensus.leader if self._control is not None else None
        if leader is not None:
            self._send(leader, message)

    def _send(self, to: str, message: twophase.ToParticipant | twophase.ToCoordinator) -> None:
        if to == self._node:
            self._loop.call_soon(self.said, self._node, message)
        elif self._control is not None:
            self._control.peers.send(to, TwoPhase(message))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name="gang")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
