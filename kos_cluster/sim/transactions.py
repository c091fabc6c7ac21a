"""A host's part in two-phase commits: a participant, and the coordinator while its node leads.

Theory of operation. Clients begin transactions over some of the hosts. A participant reserves, which takes a disk's
time and may be refused, and is bound from then on; what it reserved and how each transaction ended is kept, everything
else is lost with the host. Whoever believes to lead coordinates, so there may be two of them, and each is new to what
it finds. The judge sees what is applied and what is carried out:

    what                          must hold
    a decision is applied         it is the one that was applied first
    a commit is decided           every participant has reserved, durably
    a participant carries out     what was decided
    a commit reaches one          that has reserved
    the world has healed          nobody stays in doubt about what was open then
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from kos_cluster.core import twophase
from kos_cluster.core.raft.events import Propose
from kos_cluster.core.raft.values import Role
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.replicated.replies import Decision
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.sim.disk import SYNC_LEAST_S, SYNC_MOST_S, Crash
from kos_cluster.sim.host import Host
from kos_cluster.sim.invariants import Violation

if TYPE_CHECKING:
    from kos_cluster.sim.world import World

TICK_S = 0.2  # between two looks at what is due
REFUSED_SHARE = 0.1  # of the reservations
RULE = "atomic commitment"


class Transactor:
    """The carrier of one participant and, at times, one coordinator."""

    name = "txn"

    def __init__(self, host: Host, world: World, random: Random) -> None:
        self.host = host
        self.prepared: dict[int, bytes] = {}  # durable
        self.ended: dict[int, bool] = {}  # durable
        self.participant: twophase.Participant | None = None
        self._coordinator: twophase.Coordinator | None = None
        self._office: tuple[int, ClusterState] | None = None  # the term and the state that the coordinator is of
        self._tick_at_s = 0.0
        self._world = world
        self._random = random

    @property
    def deadline(self) -> float:
        return self._tick_at_s if self.participant else float("inf")

    def start(self) -> None:
        now = self.host.now
        self.participant = twophase.Participant(list(self.prepared), self.ended, 0, now)
        self._tick_at_s = now + TICK_S

    def stop(self, crash: Crash) -> None:
        self.participant = self._coordinator = self._office = None

    def tick(self) -> None:
        if self.participant is None:
            return
        self._tick_at_s = self.host.now + TICK_S
        self._participate(self.participant.tick(self.host.now))
        coordinator = self._coordinating()
        if coordinator is not None:
            self._coordinate(coordinator.tick(self._stamp_s()))

    def take(self, sender: str, message: Any) -> None:
        if self.participant is None:
            return
        if isinstance(message, twophase.ToParticipant):
            self._participate(self.participant.handle(message, self.host.now))
        else:
            coordinator = self._coordinating()
            if coordinator is not None:
                self._coordinate(coordinator.handle(sender, message, self._stamp_s()))

    # ---- the coordinator

    def _coordinating(self) -> twophase.Coordinator | None:
        """The coordinator of this term, anew whenever the term or the state is another one."""
        replica = self._world.replicas[self.host.name]
        raft, state = replica.raft, replica.applied.state
        if raft is None or raft.role is not Role.LEADER:
            self._coordinator = self._office = None
        elif not replica.may_stamp:
            return None
        elif self._office is None or self._office[0] != raft.term or self._office[1] is not state:
            self._coordinator, self._office = twophase.Coordinator(state), (raft.term, state)
        return self._coordinator

    def _coordinate(self, effects: Sequence[twophase.Send | twophase.Propose]) -> None:
        replica = self._world.replicas[self.host.name]
        for effect in effects:
            if isinstance(effect, twophase.Send):
                self._world.send(self.host, effect.to, self.name, effect.message)
            else:
                entry = commands.encode(commands.Proposal(self._stamp_s(), effect.command))
                replica.handle(Propose(self._world.workload.new_id(), entry))

    def _stamp_s(self) -> float:
        return self._world.replicas[self.host.name].stamp_s()

    # ---- the participant

    def _participate(self, effects: Sequence[twophase.ParticipantEffect]) -> None:
        for effect in effects:
            match effect:
                case twophase.Tell(message):
                    self._tell(message)
                case twophase.Reserve(txn, payload):
                    delay_s = self._random.uniform(SYNC_LEAST_S, SYNC_MOST_S)
                    self._world.agenda.after(delay_s, self._synced, self.host.boots, txn, payload)
                case twophase.Carry(txn, commit):
                    self.prepared.pop(txn, None)
                    self.ended[txn] = commit
                    self._world.note(self.host.name, "carries", txn, commit)
                    self._world.workload.transactions.carried(self.host.name, txn, commit)
                case twophase.NeverPrepared(txn):
                    raise Violation(RULE, f"{self.host.name} is told to commit {txn}, which it has not reserved")

    def _tell(self, message: twophase.ToCoordinator) -> None:
        """To the leader; one that knows of none, as a node that was removed, asks everybody."""
        raft = self._world.replicas[self.host.name].raft
        leader = raft.leader if raft is not None else None
        for name in self._world.names if leader is None else (leader,):
            self._world.send(self.host, name, self.name, message)

    def _synced(self, boot: int, txn: int, payload: bytes) -> None:
        """The disk has the reservation, or there was no room for it; the host hears of it when it has time."""
        if boot != self.host.boots:
            return
        yes = self._random.random() >= REFUSED_SHARE
        if yes:
            self.prepared[txn] = payload
        self.host.run(boot, self._reserved, txn, yes)

    def _reserved(self, txn: int, yes: bool) -> None:
        if self.participant is not None:
            self._participate(self.participant.handle(twophase.Reserved(txn, yes), self.host.now))


class Judge:
    """What the log and the participants say of each transaction."""

    def __init__(self, transactors: dict[str, Transactor]) -> None:
        self._transactors = transactors
        self._participants: dict[int, tuple[str, ...]] = {}
        self._decided: dict[int, bool] = {}

    def see(self, command: commands.Command, outcome: replies.Outcome) -> None:
        """An entry was applied. What its time ended is among the changes, be its command new or repeated."""
        reply = outcome.reply
        if isinstance(reply, replies.TransactionState) and not outcome.repeated:
            if isinstance(command, commands.BeginTransaction):
                self._participants[reply.txn] = tuple(command.participants)
            self._decide(reply.txn, reply.decision)
        for change in outcome.changes:
            if isinstance(change, replies.TransactionChanged):
                self._decide(change.txn, change.decision)

    def _decide(self, txn: int, decision: Decision) -> None:
        if decision not in (Decision.COMMITTED, Decision.ABORTED):
            return
        commit = decision is Decision.COMMITTED
        if commit and txn not in self._decided:
            for name in self._participants[txn]:
                if txn not in self._transactors[name].prepared:
                    raise Violation(RULE, f"{txn} was decided to commit, and {name} has not reserved")
        if self._decided.setdefault(txn, commit) is not commit:
            raise Violation(RULE, f"{txn} was decided both ways")

    def carried(self, name: str, txn: int, commit: bool) -> None:
        """A participant carried a decision out."""
        if self._decided.get(txn) is not commit:
            raise Violation(
                RULE, f"{name} carries out {txn} with commit {commit}; the log says {self._decided.get(txn)}"
            )

    def in_doubt(self) -> set[tuple[str, int]]:
        """Who is bound by which transaction."""
        return {(name, txn) for name, transactor in self._transactors.items() for txn in transactor.prepared}
