"""A group of machines in one process: virtual time, messages in a list, disks that forget what was not written.

It runs the same ordering code as the daemon. Each effect is checked against the invariants as it appears. There is no
fault here unless a test makes one; the simulator of the project has the real faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

import msgspec

from kos_cluster.core.ordering import Action, Ordering, Write
from kos_cluster.core.raft import (
    Accepted,
    Apply,
    Compact,
    Entry,
    Event,
    Halt,
    HardState,
    Message,
    Persist,
    Persisted,
    Propose,
    Raft,
    ReadIndex,
    ReadReady,
    Received,
    Refused,
    Restored,
    RestoreSnapshot,
    Role,
    RoleChanged,
    Send,
    Snapshot,
    founding,
)

GROUP = "test"
Applied = list[tuple[int, int, bytes]]  # index, term, data


class Disk:
    """What a node has durably."""

    def __init__(self, restored: Restored) -> None:
        self.hard_state: HardState = restored.hard_state
        self.snapshot: Snapshot | None = restored.snapshot
        self.entries: dict[int, Entry] = {entry.index: entry for entry in restored.entries}

    @classmethod
    def empty(cls) -> Disk:
        return cls(Restored())

    def write(self, batch: Persist) -> None:
        if batch.reset:
            self.entries.clear()
        elif batch.entries:
            self.entries = {i: e for i, e in self.entries.items() if i < batch.entries[0].index}
        self.entries.update((entry.index, entry) for entry in batch.entries)
        self.entries = {index: entry for index, entry in self.entries.items() if index >= batch.first}
        self.hard_state = batch.hard_state
        self.snapshot = batch.snapshot or self.snapshot

    def restored(self) -> Restored:
        return Restored(self.hard_state, self.snapshot, tuple(self.entries[i] for i in sorted(self.entries)))


class Truth:
    """What must hold over all nodes and all time."""

    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}
        self.entries: dict[tuple[int, int], tuple[Entry, int]] = {}  # (index, term) -> entry, term before it
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.committed_by: dict[int, int] = {}  # index -> a term in which it was committed at the latest
        self.commit = 0  # the furthest that any node has known

    def leads(self, host: Host) -> None:
        raft = host.raft
        assert self.leaders.setdefault(raft.term, host.node) == host.node, f"two leaders in term {raft.term}"
        log = host.raft._state.log
        for index, (term, _) in self.applied.items():
            if self.committed_by[index] < raft.term and index > log.base_index:
                assert log.term_at(index) == term, f"leader {host.node} of term {raft.term} lacks entry {index}"

    def wrote(self, host: Host, batch: Persist) -> None:
        for entry in batch.entries:
            before = host.disk.entries.get(entry.index - 1)
            known = self.entries.get((entry.index, entry.term))
            if before is not None and known is not None:
                assert known == (entry, before.term), f"logs differ at entry {entry.index} of term {entry.term}"
            elif before is not None:
                self.entries[entry.index, entry.term] = (entry, before.term)

    def applies(self, host: Host, index: int, term: int, data: bytes) -> None:
        known = self.applied.setdefault(index, (term, data))
        self.committed_by.setdefault(index, host.raft.term)
        assert known == (term, data), f"{host.node} applies {(term, data)} at {index}, another {known}"


class Host:
    """One node: machine, ordering, disk, and the state machine above (the list of what was applied)."""

    def __init__(self, network: Network, node: str, restored: Restored) -> None:
        self.network, self.node, self.disk = network, node, Disk(restored)
        self.effects: list[Action] = []
        self.start()

    def start(self) -> None:
        """From the disk, as after a crash."""
        self.applied: Applied = []
        self.pending_write: Persist | None = None
        self.reads: dict[int, int] = {}  # id -> what had been committed when it was asked
        self.ordering = Ordering()
        random = Random(self.network.random.random())
        self.raft = Raft(self.node, GROUP, self.disk.restored(), random, self.network.now)
        self.up = True
        self.carry_out(self.ordering.take(self.raft.start()))

    def crash(self) -> None:
        self.up, self.pending_write = False, None

    def handle(self, event: Event) -> None:
        if isinstance(event, ReadIndex):
            self.reads[event.id] = self.network.truth.commit
        before = (self.raft.term, self.raft.commit)
        self.carry_out(self.ordering.take(self.raft.handle(event, self.network.now)))
        assert (self.raft.term, self.raft.commit) >= before

    def tick(self) -> None:
        self.carry_out(self.ordering.take(self.raft.tick(self.network.now)))

    def finish_write(self) -> None:
        batch = self.pending_write
        if batch is None:
            return
        self.pending_write = None
        self.disk.write(batch)
        self.network.truth.wrote(self, batch)
        self.carry_out(self.ordering.written(batch.number))
        self.handle(Persisted(batch.number))

    def compact(self) -> None:
        self.handle(Compact(self.raft.applied, msgspec.msgpack.encode(self.applied)))

    def carry_out(self, actions: Iterable[Action]) -> None:
        truth = self.network.truth
        truth.commit = max(truth.commit, self.raft.commit)
        for action in actions:
            self.effects.append(action)
            match action:
                case Write(batch):
                    assert self.pending_write is None
                    self.pending_write = batch
                case Send(to, message, after):
                    assert after <= self.ordering.durable
                    assert message.term <= self.disk.hard_state.term or getattr(message, "pre", False)
                    self.network.messages.append((self.node, to, message))
                case Apply(entries):
                    for entry in entries:
                        assert entry.index == self.raft.applied - len(entries) + 1 + entries.index(entry)
                        assert self.disk.entries[entry.index] == entry, "applied before it was durable"
                        self.applied.append((entry.index, entry.term, entry.data))
                        truth.applies(self, *self.applied[-1])
                case RestoreSnapshot(snapshot):
                    assert self.disk.snapshot == snapshot
                    self.applied = msgspec.msgpack.decode(snapshot.data or b"\x90", type=Applied)
                    for index, term, data in self.applied:
                        truth.applies(self, index, term, data)
                case RoleChanged(Role.LEADER):
                    truth.leads(self)
                case ReadReady(id, index):
                    assert index >= self.reads.pop(id), "a read would miss what was committed before it"

    # ---- what tests ask

    def seen(self, kind: type) -> list[Action]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def outcome(self, id: int) -> Accepted | Refused | ReadReady | None:
        """The last answer to a request."""
        answers = (Accepted, Refused, ReadReady)
        return next((e for e in reversed(self.effects) if isinstance(e, answers) and e.id == id), None)

    @property
    def commands(self) -> list[bytes]:
        """The commands that were applied."""
        return [data for _, _, data in self.applied if data.startswith(b"cmd")]


class Network:
    """The hosts, the messages under way, and the time."""

    def __init__(self, voters: Iterable[str], seed: int = 1) -> None:
        self.random, self.now, self.truth = Random(seed), 0.0, Truth()
        self.messages: list[tuple[str, str, Message]] = []
        self.cuts: set[tuple[str, str]] = set()  # (from, to) pairs that lose everything
        self.lose: Callable[[str, str, Message], bool] = lambda sender, to, message: False
        self.ids = 0
        names = tuple(voters)
        self.hosts = {node: Host(self, node, founding(names)) for node in names}

    def __getitem__(self, node: str) -> Host:
        return self.hosts[node]

    def join(self, node: str) -> Host:
        """A new node with an empty disk."""
        self.hosts[node] = Host(self, node, Restored())
        return self.hosts[node]

    # ---- time and messages

    def settle(self) -> None:
        """Carry out writes and deliver messages, in order, until nothing is left; time stands still."""
        for _ in range(100_000):
            writing = [host for host in self.hosts.values() if host.pending_write is not None and host.up]
            if not writing and not self.messages:
                return
            for host in writing:
                host.finish_write()
            messages, self.messages = self.messages, []
            for message in messages:
                self.deliver(*message)
        raise AssertionError("the group does not come to rest")

    def deliver(self, sender: str, to: str, message: Message) -> None:
        host = self.hosts.get(to)
        if host is None or not host.up or (sender, to) in self.cuts or self.lose(sender, to, message):
            return
        host.handle(Received(sender, message))

    def run(self, seconds: float) -> None:
        """Let time pass, ticking each node when it is due."""
        end = self.now + seconds
        while True:
            self.settle()
            due = min((host.raft.deadline for host in self.hosts.values() if host.up), default=end)
            self.now = max(self.now, min(due, end))
            for host in self.hosts.values():
                if host.up and host.raft.deadline <= self.now:
                    host.tick()
            if self.now >= end:
                self.settle()
                return

    def cut(self, *nodes: str) -> None:
        """Nothing passes between these and the others."""
        self.cuts |= {(a, b) for a in self.hosts for b in self.hosts if (a in nodes) != (b in nodes)}

    def heal(self) -> None:
        self.cuts.clear()

    # ---- requests

    def elect(self) -> Host:
        """Run until there is a leader that all reachable nodes follow."""
        self.run(5.0)
        return self.leader()

    def leader(self) -> Host:
        leaders = [host for host in self.hosts.values() if host.up and host.raft.role is Role.LEADER]
        return max(leaders, key=lambda host: host.raft.term)

    def request(self, host: Host, make: Callable[[int], Event]) -> Accepted | Refused | ReadReady | None:
        """Make a request with a new id, settle, and return its answer."""
        self.ids += 1
        host.handle(make(self.ids))
        self.settle()
        return host.outcome(self.ids)

    def propose(self, host: Host, command: bytes) -> Accepted | Refused | ReadReady | None:
        return self.request(host, lambda id: Propose(id, b"cmd" + command))

    def halted(self) -> list[str]:
        return [host.node for host in self.hosts.values() if host.seen(Halt)]
