"""A world: hosts, the network between them, their clients, and the rules that are checked all the time.

Theory of operation. Everything that happens is an action on the agenda, and everything that is random comes from
generators that are made from the seed, one for each purpose; so a seed is a whole history. A world is driven from
outside: `run` lets time pass, faults are done to it, `heal` ends them all, and then `progress` must come.

Rules: nothing in a world looks at real time, at the process's own randomness, or at the order of a set of strings.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from kos_cluster.core.raft.config import founding
from kos_cluster.core.raft.values import Restored
from kos_cluster.sim.agenda import Agenda
from kos_cluster.sim.applied import Applied
from kos_cluster.sim.disk import SYNC_MOST_S, Crash
from kos_cluster.sim.host import Host
from kos_cluster.sim.invariants import RaftRules, Violation
from kos_cluster.sim.member import Membership
from kos_cluster.sim.network import Network
from kos_cluster.sim.replica import Replica
from kos_cluster.sim.swimrules import SwimRules
from kos_cluster.sim.trace import Trace
from kos_cluster.sim.transactions import Transactor
from kos_cluster.sim.workload import Workload

NODES_LIMIT = 50  # hosts in a world
HEALED_LIMIT_S = 45.0  # within this time after healing there is progress everywhere, or something is wrong
BUSY_LIMIT = 600  # actions of a host in a virtual second; 50 are usual
LOOK_EVERY_S = 0.5  # whether all have caught up after healing
NAMES = tuple(f"n{number}" for number in range(1, NODES_LIMIT + 1))


class Shape(msgspec.Struct, frozen=True):
    """What a world is made of. `voters` 0: all nodes found the group; else the first so many do; others may join."""

    nodes: int = 5
    voters: int = 0
    old: int = 0  # the first so many speak the wire version before, until they are started anew
    calm: bool = False  # nothing is going to fail in it, so nobody may be held dead
    membership: bool = True  # whether hosts run SWIM beside Raft


class World:
    """One seed's history. Raises Violation from whatever lets time pass."""

    def __init__(self, seed: int, shape: Shape, trace: Trace) -> None:
        self.agenda = Agenda()
        self.trace = trace
        self.network = Network(Random(f"{seed}/network"))
        self.names = NAMES[: shape.nodes]
        self.hosts: dict[str, Host] = {}
        self.replicas: dict[str, Replica] = {}
        self.memberships: dict[str, Membership] = {}
        self.transactors: dict[str, Transactor] = {}
        self.rules = RaftRules(self.replicas)
        self.swim_rules = SwimRules(shape.calm)
        self.healed = False
        self.crashes = self.messages = self.actions = 0
        self.workload = Workload(self, Random(f"{seed}/workload"))
        founders = self.names[: shape.voters or shape.nodes]
        for name in self.names:
            host = self.hosts[name] = Host(name, self.agenda, Random(f"{seed}/{name}"))
            restored = founding(founders) if name in founders else Restored()
            old = name in self.names[: shape.old]
            replica = self.replicas[name] = Replica(host, self, restored, Random(f"{seed}/{name}/raft"), old)
            host.programs[replica.name] = replica
            transactor = self.transactors[name] = Transactor(host, self, Random(f"{seed}/{name}/txn"))
            host.programs[transactor.name] = transactor
            if shape.membership:
                membership = self.memberships[name] = Membership(host, self, Random(f"{seed}/{name}/swim"))
                host.programs[membership.name] = membership

    def new_state(self) -> Applied:
        return Applied()

    def note(self, host: str, what: str, *values: Any) -> None:
        self.trace.note(self.agenda.now_s, host, what, *values)

    def begin(self) -> None:
        """All hosts start, and the clients begin."""
        for host in self.hosts.values():
            self.restart(host)
        self.workload.begin()

    def run(self, until_s: float) -> None:
        """Let time pass. Violation when a machine has so much to do that time hardly passes."""
        step = self.agenda.step
        limit = int((until_s - self.agenda.now_s + 1.0) * len(self.names) * BUSY_LIMIT)
        count = 0
        while step(until_s):
            count += 1
            if count > limit:
                raise Violation("busy", f"{limit} actions by {self.agenda.now_s:.1f} s, and no end")
        self.actions += count

    # ---- what hosts ask of it

    def send(self, source: Host, to: str, program: str, message: Any) -> None:
        """A message leaves; copies arrive later, or not."""
        self.messages += 1
        target = self.hosts.get(to)
        if target is None:
            return
        for delay_s in self.network.send(source.name, to):
            self.agenda.after(delay_s, self._arrive, target, source.name, program, message)

    def _arrive(self, target: Host, source: str, program: str, message: Any) -> None:
        if target.up:
            self.note(target.name, "got", source, message)
            target.run(target.boots, target.programs[program].take, source, message)

    # ---- what faults do to it

    def crash(self, host: Host, crash: Crash, down_s: float) -> None:
        """A host dies now, and starts again later."""
        if host.up:
            self.crashes += 1
            self.note(host.name, "crashed", str(crash))
            host.crash(crash)
            self.agenda.after(down_s, self.restart, host)

    def restart(self, host: Host) -> None:
        if not host.up:
            self.note(host.name, "started")
            host.restart()

    def heal(self) -> None:
        """Every fault ends; hosts that are down start."""
        self.healed = True
        self.note("-", "healed")
        self.network.heal()
        for name, host in self.hosts.items():
            host.resume()
            host.clock.drift(self.agenda.now_s, 1.0)
            disk = self.replicas[name].disk
            disk.full, disk.sync_most_s = False, SYNC_MOST_S
            self.replicas[name].doom = None
            self.restart(host)

    # ---- what must come after healing

    def progress(self) -> float:
        """Let the healed world go on until it has caught up. Returns after how many seconds.

        Then what is proposed now is applied by all members, what was in doubt is decided, the lock has a new holder,
        and all hosts hold all to be alive. Violation when that takes more than `HEALED_LIMIT_S`.
        """
        began_s, reached = self.agenda.now_s, self.rules.frontier + 1
        doubts, leases = self.workload.transactions.in_doubt(), self.workload.leases.given
        missing = ""
        while self.agenda.now_s < began_s + HEALED_LIMIT_S:
            self.run(self.agenda.now_s + LOOK_EVERY_S)
            missing = (
                self._behind(reached)
                or self._bound(doubts)
                or self.swim_rules.apart(self.memberships)
                or ("the lock has not changed hands" if self.workload.leases.given == leases else "")
            )
            if not missing:
                return self.agenda.now_s - began_s
        raise Violation("progress", f"{HEALED_LIMIT_S:g} s after healing, {missing}")

    def _bound(self, doubts: set[tuple[str, int]]) -> str:
        still = sorted(doubts & self.workload.transactions.in_doubt())
        return f"{still[0][0]} is still in doubt about transaction {still[0][1]}" if still else ""

    def _behind(self, index: int) -> str:
        """Which member has not applied an entry yet; empty when all have."""
        if self.rules.frontier < index:
            return f"nothing was committed after entry {self.rules.frontier}"
        membership = self.rules.membership_at(self.rules.frontier)
        assert membership is not None
        for name in membership.members:
            if self.replicas[name].applied.index < index:
                return f"{name} has applied no more than entry {self.replicas[name].applied.index}"
        return ""
