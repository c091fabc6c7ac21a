"""Gangs under a seeded schedule: owners, coordinators, participants and queues as they run, everything else a message.

Any message may be lost, doubled or late; nodes crash and forget what they held; the coordinator changes at any moment,
and a deposed one goes on for a while with an old state. Ordinary tasks come in between. What must hold is asserted
after each step; after `heal` everything must end.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

import msgspec

from kos_cluster.core import queue, twophase
from kos_cluster.core.capacity import Account, Capacity
from kos_cluster.core.gang import epochs, scheduler, slots
from kos_cluster.core.placement import Candidate
from kos_cluster.core.records import Layout, Needs
from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated.replies import Decision, TransactionChanged
from kos_cluster.core.replicated.state import ClusterState

NODES = {"n1": 2, "n2": 3, "n3": 4}  # slots
GPUS = {"n1": 1, "n2": 1, "n3": 2}
MEMORY_GIB = 4  # of each node
GIB = 1 << 30
GANGS = 4
STEPS = 220
HEAL_STEPS = 900
STEP_S = 0.25  # the most that time moves in one step
VITAL = {"g2": 0, "g3": 1}  # of the others all ranks are
LOST = ValueError("lost")


@dataclass
class Node:
    """A daemon: its queue, its side of two-phase commit, and when each reservation was granted."""

    name: str
    queue: queue.NodeQueue
    participant: twophase.Participant
    ready: list[int] = field(default_factory=list)  # workers that are about to report
    running: dict[int, tuple[queue.Key, float]] = field(default_factory=dict)  # worker -> batch, when its task ends
    waits: set[queue.Key] = field(default_factory=set)  # ranks that are in place and wait for their table
    granted_s: dict[int, float] = field(default_factory=dict)


@dataclass
class Host:
    """A node's side of the agreement: the state as it has applied it, and what it does if it leads."""

    state: ClusterState = field(default_factory=ClusterState)
    coordinator: twophase.Coordinator | None = None
    scheduler: scheduler.GangScheduler = field(default_factory=scheduler.GangScheduler)


class World:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.faults = True
        self.log: list[bytes] = []
        self.hosts = [Host() for _ in range(3)]
        self.leader = 0
        self.nodes = {name: self._new_node(name) for name in NODES}
        self.mail: list[tuple[object, ...]] = []  # (function, arguments)
        self.late: list[tuple[float, tuple[object, ...]]] = []  # when it comes, and what
        self.begun: dict[int, dict[str, scheduler.Reserve]] = {}
        self.voted: dict[int, set[str]] = defaultdict(set)
        self.owners: dict[str, Owner] = {f"g{number}": Owner(self, f"g{number}") for number in range(GANGS)}
        self.tasks = 0
        self.started = 0  # epochs of which every rank ran

    def _new_node(self, name: str) -> Node:
        capacity = Capacity(MEMORY_GIB * GIB, tuple(f"{name}-{gpu}" for gpu in range(GPUS[name])))
        node = Node(name, queue.NodeQueue(NODES[name], capacity), twophase.Participant([], {}, 0, self.now))
        node.ready += [effect.worker for effect in node.queue.start() if isinstance(effect, queue.Fork)]
        return node

    # ---- messages

    def post(self, call: object, *args: object) -> None:
        if not self.faults:
            self.mail.append((call, *args))
            return
        for _ in range(self.random.choices((0, 1, 2), (1, 8, 1))[0]):
            if self.random.random() < 0.1:
                self.late.append((self.now + self.random.uniform(1.0, 8.0), (call, *args)))
            else:
                self.mail.append((call, *args))

    def deliver(self) -> None:
        if self.mail:
            call, *args = self.mail.pop(self.random.randrange(len(self.mail)) if self.faults else 0)
            call(*args)  # type: ignore[operator]

    # ---- agreement

    def propose(self, command: c.Command) -> int | None:
        """The log index, or None when the proposal got lost; whoever proposed does not learn which, at times."""
        if self.faults and self.random.random() < 0.1:
            return None
        self.log.append(c.encode(c.Proposal(self.now, command)))
        return len(self.log)

    def apply(self, host: Host) -> None:
        while host.state.applied_index < len(self.log):
            index = host.state.applied_index + 1
            outcome = host.state.apply(index, self.log[index - 1])
            transaction = host.state.transactions.get(index)
            if transaction is not None and index not in self.begun:
                self.begun[index] = {
                    name: msgspec.msgpack.decode(data, type=scheduler.Reserve)
                    for name, data in transaction.participants.items()
                }
            for change in outcome.changes:
                if isinstance(change, TransactionChanged):
                    self._decided(host, change)

    def _decided(self, host: Host, change: TransactionChanged) -> None:
        committed = change.decision is Decision.COMMITTED
        if committed:
            missing = set(self.begun[change.txn]) - self.voted[change.txn]
            assert not missing, f"transaction {change.txn} is committed, but {missing} never held the slots"
        self.carry_out(host, self.schedule(host, scheduler.Ended(change.txn, committed)))

    def schedule(self, host: Host, event: scheduler.Event | None) -> list[scheduler.Effect]:
        nodes = [self.candidate(name, node.queue.account) for name, node in self.nodes.items()]
        promised: dict[str, int] = defaultdict(int)
        for transaction in host.state.transactions.snapshot():
            if not transaction.committed:
                for name, count in scheduler.promised_by(transaction.participants).items():
                    promised[name] += count
        if event is None:
            return host.scheduler.tick(nodes, promised, self.now)
        return host.scheduler.handle(event, nodes, promised, self.now)

    def candidate(self, name: str, account: Account) -> Candidate:
        node = Candidate(name, name, NODES[name], MEMORY_GIB * GIB, busy=account.slots_in_use)
        node.memory_available_bytes, node.memory_declared_bytes = node.memory_bytes, account.memory_bytes
        node.gpus, node.gpus_in_use = GPUS[name], account.gpus_in_use
        return node

    def carry_out(self, host: Host, effects: list[scheduler.Effect]) -> None:
        for effect in effects:
            match effect:
                case scheduler.Begin(key, participants, ttl_s):
                    txn = self.propose(c.BeginTransaction(participants, ttl_s))
                    unknown = self.faults and self.random.random() < 0.1
                    self.mail.append((self.began, host, key, None if unknown else txn))
                case scheduler.Abort(txn):
                    self.propose(c.DecideTransaction(txn, False))

    def began(self, host: Host, key: str, txn: int | None) -> None:
        self.carry_out(host, self.schedule(host, scheduler.Began(key, txn)))

    def lead(self, host: Host) -> None:
        """What a coordinator does in a turn; also one that was deposed and does not know it."""
        if host is self.hosts[self.leader]:
            self.apply(host)
        if host.coordinator is None:
            host.coordinator, host.scheduler = twophase.Coordinator(host.state), scheduler.GangScheduler()
        self.coordinate(host.coordinator.tick(self.now))
        self.carry_out(host, self.schedule(host, None))

    def coordinate(self, effects: list[twophase.Send | twophase.Propose]) -> None:
        for effect in effects:
            if isinstance(effect, twophase.Propose):
                self.propose(effect.command)
            else:
                self.post(self.to_participant, effect.to, effect.message)

    def to_coordinator(self, sender: str, message: twophase.ToCoordinator) -> None:
        host = self.hosts[self.leader]
        if host.coordinator is not None:
            self.coordinate(host.coordinator.handle(sender, message, self.now))

    # ---- nodes

    def to_participant(self, name: str, message: twophase.ToParticipant) -> None:
        node = self.nodes[name]
        self.participate(node, node.participant.handle(message, self.now))

    def participate(self, node: Node, effects: list[twophase.ParticipantEffect]) -> None:
        for effect in effects:
            match effect:
                case twophase.Tell(message):
                    self.post(self.to_coordinator, node.name, message)
                case twophase.Reserve(txn, payload):
                    wanted = msgspec.msgpack.decode(payload, type=scheduler.Reserve).wanted(txn)
                    self.feed(node, wanted)
                case twophase.Carry(txn, commit):
                    if not commit:
                        self.feed(node, slots.SlotsReleased(txn))
                case twophase.NeverPrepared(txn):  # of a former life, which took its reservation along
                    self.post(self.to_coordinator, node.name, twophase.Acked(txn))

    def feed(self, node: Node, event: queue.Event) -> None:
        self.queued(node, node.queue.handle(event, self.now))

    def queued(self, node: Node, effects: list[queue.Effect]) -> None:
        for effect in effects:
            match effect:
                case queue.Fork(worker):
                    node.ready.append(worker)
                case queue.Assign(worker, key):
                    owner, rank = self.rank_of(key)
                    node.running[worker] = key, self.now + self.random.uniform(0.1, 3.0)
                    if owner is not None:
                        node.waits.add(key)
                        self.post(owner.ready, node.name, key, rank)
                case slots.SlotsGranted(txn):
                    self.voted[txn].add(node.name)
                    node.granted_s[txn] = self.now
                    self.participate(node, node.participant.handle(twophase.Reserved(txn, True), self.now))
                case slots.SlotsDenied(txn):
                    if txn in node.participant._reserving:
                        self.participate(node, node.participant.handle(twophase.Reserved(txn, False), self.now))
                case queue.Refuse(key):
                    owner, rank = self.rank_of(key)
                    if owner is not None:
                        self.post(owner.lost, key, rank)
                case queue.Interrupt(worker) | queue.Kill(worker):
                    self.end(node, worker)
                case queue.Retire(worker):  # that was given GPUs: they are free when it has ended
                    self.feed(node, queue.WorkerExited(worker, False, "retired"))

    def rank_of(self, key: queue.Key) -> tuple[Owner | None, int]:
        (name, _), number = key
        return self.owners.get(name), number % 100

    def end(self, node: Node, worker: int) -> None:
        key, _ = node.running.pop(worker, (None, 0.0))
        if key is not None:
            node.waits.discard(key)
            self.feed(node, queue.WorkerExited(worker, False, "stopped"))

    def work(self, node: Node) -> None:
        for worker in node.ready:
            self.feed(node, queue.WorkerReady(worker))
        node.ready.clear()
        for worker, (key, until_s) in list(node.running.items()):
            owner, rank = self.rank_of(key)
            if key in node.waits:
                if owner is not None and owner.machine.state is epochs.State.STARTING:
                    self.post(owner.ready, node.name, key, rank)  # repeated, as the daemon does
            elif self.now >= until_s:
                del node.running[worker]
                if owner is not None:
                    self.mail.append((owner.done, key, rank))
                self.feed(node, queue.BatchDone(worker, retire=False))
        self.queued(node, node.queue.tick(self.now))
        self.participate(node, node.participant.tick(self.now))

    def crash(self, name: str) -> None:
        lost = [key for key, _ in self.nodes[name].running.values()]
        self.nodes[name] = self._new_node(name)
        for key in lost:
            owner, rank = self.rank_of(key)
            if owner is not None:
                self.mail.append((owner.lost, key, rank))

    def submit_task(self) -> None:
        self.tasks += 1
        node = self.nodes[self.random.choice(list(NODES))]
        self.feed(node, queue.Arrived(queue.BatchSpec((("user", "x"), self.tasks), "job", "e"), held=False))

    # ---- time

    def step(self) -> None:
        self.now += self.random.uniform(0.0, STEP_S)
        if self.faults:
            self.fault()
        self.lead(self.hosts[self.leader])
        for node in self.nodes.values():
            self.work(node)
        for owner in self.owners.values():
            owner.turn()
        self.mail += [what for at, what in self.late if at <= self.now]
        self.late = [entry for entry in self.late if entry[0] > self.now]
        for _ in range(self.random.randint(1, 12)):
            self.deliver()
        self.check()

    def fault(self) -> None:
        chance = self.random.random()
        if chance < 0.02:
            self.leader = self.random.randrange(3)
            self.hosts[self.leader].coordinator = None
        elif chance < 0.06:
            deposed = self.random.choice(self.hosts)
            if deposed.coordinator is not None:
                self.lead(deposed)
        elif chance < 0.07:
            self.crash(self.random.choice(list(NODES)))
        elif chance < 0.3:
            self.submit_task()

    def check(self) -> None:
        for name, node in self.nodes.items():
            reserved = node.queue._reserved
            account = node.queue.account
            assert node.queue.running <= NODES[name], f"{name} gives {node.queue.running} of {NODES[name]} slots"
            assert account.memory_bytes <= MEMORY_GIB * GIB, f"{name} gives {account.memory_bytes} bytes"
            holders = [worker.gpus for worker in node.queue._workers.values()]
            holders += [request.gpus for request in reserved._requests.values()]
            given = [gpu for gpus in holders for gpu in gpus]
            assert len(given) == len(set(given)) <= account.gpus_in_use <= GPUS[name], f"{name} gives {given}"
            held = sum(request.left * request.wanted.cpus for request in reserved._requests.values())
            assert held <= node.queue.running
            for txn, request in reserved._requests.items():
                if request.left:
                    held_s = self.now - node.granted_s[txn]
                    assert held_s <= request.wanted.lease_s + STEP_S, f"{name} holds {txn} for {held_s:.1f} s"

    def heal(self) -> None:
        """No more faults: time for everyone, and one coordinator."""
        self.faults = False
        self.leader = 0
        self.hosts[0].coordinator = None
        for _ in range(HEAL_STEPS):
            self.step()
            while self.mail:
                self.deliver()
            self.log.append(c.encode(c.Proposal(self.now, c.Tick())))
            if all(owner.machine.state is epochs.State.OVER for owner in self.owners.values()) and not any(
                node.queue.running or node.queue.reserves or node.queue.account.gpus_in_use
                for node in self.nodes.values()
            ):
                return
        standing = {name: (owner.machine.state, owner.machine.epoch) for name, owner in self.owners.items()}
        in_use = {name: (node.queue.running, node.queue.reserves) for name, node in self.nodes.items()}
        raise AssertionError(f"no end after healing: gangs {standing}, slots {in_use}")


class Owner:
    """One gang's owner: runs `Epochs`, and repeats what may have got lost."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        rng = world.random
        self.ranks = rng.randint(2, 5)
        cpus = 1 if self.ranks > 2 else rng.randint(1, 2)
        gpus = rng.randint(0, 1) if self.ranks <= sum(GPUS.values()) else 0
        self.needs = Needs(cpus, rng.randint(0, 2) * GIB, gpus=gpus, layout=rng.choice(list(Layout)))
        self.vital = VITAL.get(name, self.ranks)
        self.machine = epochs.Epochs(self.ranks, restarts=100, vital=self.vital)
        self.returned: dict[int, set[int]] = defaultdict(set)  # epoch -> ranks
        self.nodes: dict[int, tuple[str, ...]] = {}  # epoch -> by rank
        self.result: object = None
        self.carry_out(self.machine.begin())

    def key(self, epoch: int) -> str:
        return slots.reservation_key(self.name, f"{self.name}-{epoch}")

    def handle(self, event: epochs.Event) -> None:
        self.carry_out(self.machine.handle(event, self.world.now))

    def carry_out(self, effects: list[epochs.Effect]) -> None:
        for effect in effects:
            match effect:
                case epochs.Launch(epoch, nodes):
                    self.nodes[epoch] = nodes
                    self.send(epoch)
                case epochs.Tell(epoch, ranks, addresses):
                    assert len(addresses) == self.ranks
                    for rank in ranks:
                        self.world.post(self.table, epoch, rank, addresses)
                case epochs.End(epoch):
                    for rank, name in enumerate(self.nodes.get(epoch, ())):
                        self.world.mail.append((self.cancel, name, epoch, rank))
                case epochs.Succeed(epoch):
                    gone = set(range(self.ranks)) - self.returned[epoch]
                    assert set(self.machine.gone) == gone and all(rank >= self.vital for rank in gone)
                    self.result = effect
                case epochs.Fail():
                    self.result = effect

    def batch(self, epoch: int, rank: int) -> queue.Key:
        return ((self.name, "i"), 100 * epoch + rank)

    def send(self, epoch: int) -> None:
        for rank, name in enumerate(self.nodes[epoch]):
            self.world.post(self.arrive, name, epoch, rank)

    def arrive(self, name: str, epoch: int, rank: int) -> None:
        if epoch == self.machine.epoch:  # a rank is sent over a link that keeps the order: never after its cancel
            key = self.batch(epoch, rank)
            node = self.world.nodes[name]
            if not any(known == key for known, _ in node.running.values()) and rank not in self.machine._done:
                cpus, memory_bytes, gpus = self.needs.cpus, self.needs.memory_bytes, self.needs.gpus
                job, key_ = f"{self.name}-{epoch}", self.key(epoch)
                spec = queue.BatchSpec(key, job, "e", cpus, memory_bytes=memory_bytes, gpus=gpus, gang=key_)
                self.world.feed(node, queue.Arrived(spec, held=False))

    def cancel(self, name: str, epoch: int, rank: int) -> None:
        self.world.feed(self.world.nodes[name], queue.CancelBatches((self.batch(epoch, rank),)))

    def ready(self, name: str, key: queue.Key, rank: int) -> None:
        epoch = key[1] // 100
        self.handle(epochs.Ready(epoch, rank, self.address(epoch, name)))

    def address(self, epoch: int, node: str) -> bytes:
        """Each epoch's worker listens elsewhere."""
        return f"{node}, epoch {epoch}".encode()

    def table(self, epoch: int, rank: int, addresses: tuple[bytes, ...]) -> None:
        """A rank is told of all: it runs user code from now on."""
        nodes = self.nodes[epoch]
        assert addresses == tuple(self.address(epoch, name) for name in nodes), f"epoch {epoch} was told {addresses}"
        self.world.nodes[nodes[rank]].waits.discard(self.batch(epoch, rank))
        self.world.started += 1

    def lost(self, key: queue.Key, rank: int) -> None:
        self.handle(epochs.RankLost(key[1] // 100, rank, LOST))

    def done(self, key: queue.Key, rank: int) -> None:
        if rank not in self.machine._done:
            self.returned[key[1] // 100].add(rank)
        self.handle(epochs.RankDone(key[1] // 100, rank))

    def turn(self) -> None:
        self.carry_out(self.machine.tick(self.world.now))
        machine = self.machine
        if machine.state is epochs.State.ASKING and self.world.random.random() < 0.4:
            self.world.post(self.want, machine.epoch)
        elif machine.state is epochs.State.STARTING and self.world.random.random() < 0.2:
            self.send(machine.epoch)
        elif machine.state is epochs.State.RUNNING and self.world.random.random() < 0.2:
            for rank, name in enumerate(self.nodes[machine.epoch]):
                key = self.batch(machine.epoch, rank)
                if key in self.world.nodes[name].waits:
                    self.world.post(self.ready, name, key, rank)
                elif rank not in machine._done:
                    self.world.post(self.gone, name, key, rank)

    def gone(self, name: str, key: queue.Key, rank: int) -> None:
        """The node may have forgotten a rank, which its answer to a beat tells."""
        known = any(known == key for known, _ in self.world.nodes[name].running.values())
        if not known and not any(call == self.done and args == [key, rank] for call, *args in self.world.mail):
            self.lost(key, rank)

    def want(self, epoch: int) -> None:
        world = self.world
        host = world.hosts[world.leader]
        if host.coordinator is None:
            return
        wanted = scheduler.Wanted(self.name, f"{self.name}-{epoch}", self.ranks, self.needs)
        world.carry_out(host, world.schedule(host, wanted))
        standing = host.scheduler.standing(wanted.key)
        if standing is not None and standing.ranks:
            world.post(self.reserved, epoch, standing.ranks)
        elif standing is not None and standing.refused:
            raise AssertionError(f"{self.name} is refused: {standing.refused}")

    def reserved(self, epoch: int, nodes: tuple[str, ...]) -> None:
        self.handle(epochs.Reserved(epoch, nodes))


def run(seed: int) -> World:
    """One seed to its end; raises AssertionError that names it."""
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.heal()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    return world
