"""Clients that use the cluster while it fails, and notice when it lies to them.

Theory of operation. Each client has one request outstanding: it sets or swaps a setting, reads one by read index, or
takes a lock and works on a resource under its fencing token, often past its lease. A request without an answer is
proposed again, at any host, with the same session and serial. So most proposals of a bad time are retries, and some are
in the log several times.

    what                 must hold
    a setting            its whole history is linearizable, as that of a register (see `histories`)
    a retried proposal   its first reply is the only one, whichever of its entries is applied
    a read               is not answered from before what anybody knew to be committed when it was asked
    a lease              does not end long before its time (see `leases`)
    a fenced resource    admits no token after a higher one, and each token from one owner

Some drive a detached job (see `drivers`) or begin transactions (see `transactions`).

Rules: clients live outside of the hosts, so they never crash; they see nothing that a client of the daemon would not
see.
"""

from __future__ import annotations

from collections.abc import Hashable
from random import Random
from typing import TYPE_CHECKING

from kos_cluster.core.fencing import Fence
from kos_cluster.core.raft import events
from kos_cluster.core.raft.values import Entry, Role
from kos_cluster.core.replicated import commands, replies
from kos_cluster.errors import StateError
from kos_cluster.sim import leases, transactions
from kos_cluster.sim.drivers import JOB, Driver, Judge
from kos_cluster.sim.invariants import Violation
from kos_cluster.sim.linearizability import Operation
from kos_cluster.sim.sequential import CompareAndSet, Read, Write

if TYPE_CHECKING:
    from kos_cluster.sim.replica import Replica
    from kos_cluster.sim.world import World

CLIENTS = 4
SETTINGS = ("a", "b", "c")
LOCK = "lock"
PARTICIPANTS = 3  # of a transaction
TRANSACTION_S = 2.0  # after which an undecided one is aborted
LEASE_S = 1.0  # of the lock
ANSWER_S = 1.2  # after which a client asks again
THINK_MOST_S = 0.5  # between two requests of a client
WORK_MOST_S = 2.5  # how long a holder goes on with the resource: past its lease


class Call:
    """One request of a client, over all of its attempts. `command` is None for a read."""

    def __init__(self, client: Client, command: commands.Command | None, serial: int, began_s: float) -> None:
        self.client = client
        self.command = command
        self.serial = serial
        self.began_s = began_s
        self.floor = 0  # of a read: what was known to be committed when it was asked
        self.attempts = 0
        self.done = False


class Client:
    """Who asks, one thing after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = 0
        self.serial = 0
        self.seen: dict[str, str | None] = dict.fromkeys(SETTINGS)
        self.leader: str | None = None
        self.driver = Driver(name)


class Resource:
    """What a lock guards. The fence is the product's; what it admitted is judged here."""

    def __init__(self) -> None:
        self.fence = Fence()
        self.last = 0
        self._owners: dict[int, str] = {}

    def work(self, owner: str, token: int) -> bool:
        """Whether the holder was let in."""
        try:
            self.fence.admit(token)
        except StateError:
            return False
        if token < self.last:
            raise Violation("fencing", f"{owner} was let in with token {token} after a holder with {self.last}")
        if self._owners.setdefault(token, owner) != owner:
            raise Violation("fencing", f"{owner} and {self._owners[token]} both hold token {token}")
        self.last = token
        return True


class Workload:
    """All clients of one world."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._next_id = 0
        self._asked: dict[int, Call] = {}  # id of an attempt -> its call
        self._awaited: dict[
            tuple[str, int], tuple[Call, int]
        ] = {}  # (host, index) -> call, and the term it was taken in
        self._reading: dict[str, list[tuple[int, Call]]] = {}
        self._judged = 0  # the last entry whose outcome was looked at; that others have the same is a rule of Raft's
        self._first: dict[tuple[int, int], tuple[int, replies.Reply]] = {}
        self.resource = Resource()
        self._job = Judge()
        self.transactions = transactions.Judge(world.transactors)
        self.clients = [Client(f"c{number}") for number in range(CLIENTS)]
        self.leases = leases.Judge(LEASE_S)
        self.answered = self.retried = self.reads = self.let_in = self.kept_out = 0
        self._under_way: dict[str, Call] = {}
        self._history: dict[str, list[Operation]] = {name: [] for name in SETTINGS}

    def begin(self) -> None:
        for client in self.clients:
            self._world.agenda.after(self._random.random(), self._next, client)

    def new_id(self) -> int:
        """Of a request to any node."""
        self._next_id += 1
        return self._next_id

    # ---- what clients do

    def _next(self, client: Client) -> None:
        call = self._under_way[client.name] = self._choose(client)
        self._start(call)

    def _choose(self, client: Client) -> Call:
        draw, now_s = self._random.random(), self._world.agenda.now_s
        if not client.session:
            return Call(client, commands.OpenSession(client.name), 0, now_s)
        if draw < 0.35:
            return Call(client, None, 0, now_s)
        client.serial += 1
        name = self._random.choice(SETTINGS)
        value = f"{client.name}.{client.serial}"
        command: commands.Command
        if draw < 0.5:
            command = commands.SetSetting(name, value)
        elif draw < 0.7:
            command = commands.SwapSetting(name, client.seen[name], value)
        elif draw < 0.8:
            command = commands.AcquireLock(LOCK, value, client.name, LEASE_S)
        elif draw < 0.88:
            names = self._random.sample(self._world.names, min(PARTICIPANTS, len(self._world.names)))
            command = commands.BeginTransaction(dict.fromkeys(names, value.encode()), TRANSACTION_S)
        else:
            command = client.driver.next(self._random, value)
        return Call(client, command, client.serial, now_s)

    def _start(self, call: Call) -> None:
        """Ask some host, the supposed leader more often than others; ask again when no answer comes."""
        if call.done:
            return
        call.attempts += 1
        self.retried += call.attempts > 1
        names = self._world.names
        client = call.client
        name = client.leader if client.leader in self._world.replicas and self._random.random() < 0.8 else None
        host = self._world.hosts[name or self._random.choice(names)]
        id_ = self.new_id()
        self._asked[id_] = call
        event: events.Event
        if call.command is None:
            call.floor = self._world.rules.frontier
            event = events.ReadIndex(id_)
        else:
            if not self._world.replicas[host.name].may_stamp:
                del self._asked[id_]
                self._soon(call)
                return
            event = events.Propose(id_, self._entry(self._world.replicas[host.name].stamp_s(), call))
        host.run(host.boots, self._world.replicas[host.name].handle, event)
        self._world.agenda.after(ANSWER_S, self._overdue, id_, call, call.attempts)

    def _entry(self, stamp_s: float, call: Call) -> bytes:
        assert call.command is not None
        session = call.client.session if call.serial else 0
        return commands.encode(commands.Proposal(stamp_s, call.command, session, call.serial, call.serial))

    def _overdue(self, id_: int, call: Call, attempt: int) -> None:
        self._asked.pop(id_, None)
        if not call.done and call.attempts == attempt:
            call.client.leader = None
            self._start(call)

    def _finish(self, call: Call) -> None:
        call.done = True
        self.answered += 1
        self._world.agenda.after(self._random.random() * THINK_MOST_S, self._next, call.client)

    # ---- what hosts answer

    def accepted(self, replica: Replica, effect: events.Accepted) -> None:
        call = self._asked.pop(effect.id, None)
        if call is not None and not call.done:
            call.client.leader = replica.host.name
            self._awaited[replica.host.name, effect.index] = (call, effect.term)

    def refused(self, replica: Replica, effect: events.Refused) -> None:
        call = self._asked.pop(effect.id, None)
        if call is not None and not call.done:
            call.client.leader = effect.leader
            self._soon(call)

    def _soon(self, call: Call) -> None:
        self._world.agenda.after(0.05 + self._random.random() * 0.2, self._again, call, call.attempts)

    def _again(self, call: Call, attempt: int) -> None:
        if call.attempts == attempt:
            self._start(call)

    def read_ready(self, replica: Replica, effect: events.ReadReady) -> None:
        call = self._asked.pop(effect.id, None)
        if call is None or call.done:
            return
        if effect.index < call.floor:
            raise Violation(
                "linearizable reads",
                f"{replica.host.name} answers a read at {effect.index}; when it was asked, {call.floor} was committed",
            )
        if replica.applied.index >= effect.index:
            self._read(replica, call)
        else:
            self._reading.setdefault(replica.host.name, []).append((effect.index, call))

    def _read(self, replica: Replica, call: Call) -> None:
        if not call.done:
            self.reads += 1
            for name in SETTINGS:
                value = call.client.seen[name] = replica.applied.state.settings.get(name)
                self._record(call, name, Read(), value)
            job = replica.applied.state.jobs.get(JOB)
            if job is not None:
                call.client.driver.seen = max(call.client.driver.seen, job.epoch)
            self._finish(call)

    def applied(self, replica: Replica, entry: Entry, outcome: replies.Outcome | None) -> None:
        """A host has applied an entry: somebody may wait for just that."""
        name = replica.host.name
        if outcome is not None and entry.index > self._judged:
            self._judged = entry.index
            self._judge(entry, outcome)
        awaited = self._awaited.pop((name, entry.index), None)
        if awaited is not None:
            call, term = awaited
            if term == entry.term and outcome is not None and not call.done:
                self._replied(call, outcome.reply)
            elif not call.done:
                self._again(call, call.attempts)
        reading = self._reading.get(name)
        if reading:
            self._reading[name] = [(index, call) for index, call in reading if index > entry.index]
            for index, call in reading:
                if index <= entry.index:
                    self._read(replica, call)

    def host_down(self, name: str) -> None:
        """Whoever waited for its answer asks elsewhere when the time is up."""
        self._reading.pop(name, None)
        for key in [key for key in self._awaited if key[0] == name]:
            del self._awaited[key]

    def _judge(self, entry: Entry, outcome: replies.Outcome) -> None:
        """A proposal that is in the log twice has one effect: its later entries give the first reply, repeated."""
        proposal = commands.decode(entry.data)
        self.transactions.see(proposal.command, outcome)
        self.leases.see(proposal.now_s, outcome, self._world.agenda.now_s)
        if not outcome.repeated:
            self._job.see(proposal.command, outcome.reply)
        if not proposal.session:
            return
        key = (proposal.session, proposal.serial)
        index, first = self._first.setdefault(key, (entry.index, outcome.reply))
        if index == entry.index or isinstance(outcome.reply, replies.Refusal):
            return
        if not outcome.repeated or first != outcome.reply:
            raise Violation(
                "session dedup",
                f"serial {proposal.serial} of session {proposal.session} was applied at {index} ({first}) and again at "
                f"{entry.index} ({outcome.reply})",
            )

    def _replied(self, call: Call, reply: replies.Reply) -> None:
        client = call.client
        assert call.command is not None
        client.driver.replied(call.command, reply)
        if isinstance(call.command, commands.SetSetting | commands.SwapSetting):
            self._record(call, call.command.name, _input(call.command), isinstance(reply, replies.Done))
        match reply:
            case replies.SessionOpened(session):
                client.session, client.serial = session, 0
            case replies.LockGranted(_, token, _):
                for _ in range(self._random.randint(1, 3)):
                    self._world.agenda.after(self._random.random() * WORK_MOST_S, self._work, call, token)
            case replies.Refusal() if isinstance(call.command, commands.SwapSetting):
                client.seen[call.command.name] = None
        self._finish(call)

    def _work(self, call: Call, token: int) -> None:
        assert isinstance(call.command, commands.AcquireLock)
        if self.resource.work(call.command.owner, token):
            self.let_in += 1
        else:
            self.kept_out += 1

    # ---- what happened, as a checker takes it

    def _record(self, call: Call, name: str, input: Hashable, output: Hashable) -> None:
        """The interval is that of all attempts, since each of them may have done it."""
        now_s = self._world.agenda.now_s
        self._history[name].append(Operation(call.client.name, call.began_s, now_s, input, output))

    def histories(self) -> dict[str, list[Operation]]:
        """What was asked and answered of each setting, which is a register; what is under way, as unknown."""
        histories = {name: list(operations) for name, operations in self._history.items()}
        for call in self._under_way.values():
            if not call.done and isinstance(call.command, commands.SetSetting | commands.SwapSetting):
                unknown = Operation(call.client.name, call.began_s, None, _input(call.command))
                histories[call.command.name].append(unknown)
        return histories

    # ---- what operators do

    def change_voters(self, twice: bool) -> None:
        """Ask every node that takes itself for the leader to change the membership by one."""
        for replica in self._leaders():
            for _ in range(1 + twice):
                change = self._some_change(replica)
                if change is not None:
                    host = replica.host
                    self._world.note(host.name, "change", change)
                    host.run(host.boots, replica.handle, events.ChangeConfig(self.new_id(), change))

    def transfer(self) -> None:
        """Ask every leader to hand over its office."""
        for replica in self._leaders():
            if replica.raft is not None:
                to = self._random.choice(replica.raft.membership.voters)
                self._world.note(replica.host.name, "transfer", to)
                replica.host.run(replica.host.boots, replica.handle, events.Transfer(self.new_id(), to))

    def _leaders(self) -> list[Replica]:
        return [r for r in self._world.replicas.values() if r.raft is not None and r.raft.role is Role.LEADER]

    def _some_change(self, replica: Replica) -> events.Change | None:
        raft = replica.raft
        if raft is None:
            return None
        voters, learners = raft.membership.voters, raft.membership.learners
        outside = [name for name in self._world.names if name not in voters and name not in learners]
        choices: list[events.Change] = [events.AddLearner(name) for name in outside]
        choices += [events.Promote(name) for name in learners]
        if len(voters) > min(3, len(self._world.names)):
            choices += [events.Demote(name) for name in voters] + [events.Remove(name) for name in voters]
        if len(learners) > 1:
            choices += [events.Remove(name) for name in learners]
        return self._random.choice(choices) if choices else None


def _input(command: commands.SetSetting | commands.SwapSetting) -> Hashable:
    if isinstance(command, commands.SetSetting):
        return Write(command.value)
    return CompareAndSet(command.expected, command.value)
