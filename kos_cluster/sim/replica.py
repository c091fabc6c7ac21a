"""A host's part in the Raft group: the machine, the order of its effects, its disk, and the state that it applies to.

Theory of operation. This is the simulated counterpart of what the daemon does around `core.raft`: each event goes into
the machine, its effects go through the same `core.ordering` that the daemon uses, and what comes out is carried out. A
write takes a while; then it is kept by the disk, reported to the ordering, and the machine is told. A planned crash
(`doom`) strikes at one write, at one of the four points that `sim.disk` names. A machine that halts ends its host's
life, and a supervisor starts it again after `SUPERVISOR_S`. An old node speaks the wire version before; a restart
upgrades it, so a world may begin in the middle of a rolling upgrade.

Rules: the rules of Raft are told everything here and nowhere else: what a machine was given, what it returned, what
was sent, what became durable, what was applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from kos_cluster.core.ordering import Ordering, Write
from kos_cluster.core.raft import events, messages
from kos_cluster.core.raft.machine import Raft
from kos_cluster.core.raft.values import Restored, Role
from kos_cluster.core.replicated.stamp import Stamp
from kos_cluster.sim.disk import SYNC_LEAST_S, Crash, Disk
from kos_cluster.sim.host import Host

if TYPE_CHECKING:
    from kos_cluster.sim.world import World

GROUP = "sim"
SUPERVISOR_S = 1.0  # after which a node that halted is started again
COMPACT_LEAST, COMPACT_MOST = 20, 120  # applied entries after which a replica makes a snapshot


def as_of_version_1(message: Any) -> Any:
    """A message as a node of the wire version before sends it, or reads it."""
    if isinstance(message, messages.AppendResponse):
        return msgspec.structs.replace(message, version=1, hint_index=0, hint_term=0)
    return msgspec.structs.replace(message, version=1)


class Doom:
    """A crash at a coming write: `skip` writes from now."""

    def __init__(self, crash: Crash, skip: int, down_s: float) -> None:
        self.crash, self.skip, self.down_s = crash, skip, down_s


class Replica:
    """The carrier of one Raft machine. `raft` is None while the host is down."""

    name = "raft"

    def __init__(self, host: Host, world: World, restored: Restored, random: Random, old: bool) -> None:
        self.host = host
        self._old = old  # it speaks and understands the wire version before, until it is started anew
        self.disk = Disk(restored)
        self.raft: Raft | None = None
        self.applied = world.new_state()
        self.doom: Doom | None = None
        self.writes = 0  # of all lives
        self._world = world
        self._random = random
        self._compact_every = random.randint(COMPACT_LEAST, COMPACT_MOST)
        self._ordering = Ordering()
        self._stamp = Stamp()
        self._compacted = 0  # the index of the last snapshot
        self._do: dict[type, Callable[[Any], None]] = {
            Write: self._write,
            events.Send: self._send,
            events.Apply: self._apply,
            events.RestoreSnapshot: self._restore,
            events.Accepted: lambda effect: world.workload.accepted(self, effect),
            events.Refused: lambda effect: world.workload.refused(self, effect),
            events.ReadReady: lambda effect: world.workload.read_ready(self, effect),
            events.RoleChanged: self._role_changed,
            events.MembershipChanged: self._told,
            events.Ignored: self._told,
            events.Halt: self._halt,
        }

    # ---- what the host asks

    @property
    def deadline(self) -> float:
        return self.raft.deadline if self.raft else float("inf")

    def start(self) -> None:
        restored = self.disk.load()
        self._ordering = Ordering()
        self._stamp = Stamp()
        self.applied = self._world.new_state()
        self._compacted = 0
        seed = self._random.getrandbits(64)
        self.raft = Raft(self.host.name, GROUP, restored, Random(seed), self.host.now)
        self._world.rules.booted(self, restored)
        self._carry(self.raft.start())

    def stop(self, crash: Crash) -> None:
        self.raft = None
        self._old = False
        self.doom = None
        self.disk.lose(crash, self._random.random())
        self._world.workload.host_down(self.host.name)

    def take(self, sender: str, message: Any) -> None:
        if self.raft is not None:
            message = as_of_version_1(message) if self._old else message
            self._world.rules.received(self, sender, message)
            self.handle(events.Received(sender, message))

    def tick(self) -> None:
        if self.raft is not None:
            self._carry(self.raft.tick(self.host.now))
            self._world.rules.ticked(self)

    def stamp_s(self) -> float:
        """The time to put on a command that is proposed here."""
        true_s = self._world.agenda.now_s
        stamp_s = self._stamp.now_s(self.host.clock.wall_s(true_s), self.host.now)
        self._world.workload.leases.stamped(stamp_s, true_s)
        return stamp_s

    @property
    def may_stamp(self) -> bool:
        """Whether it knows the replicated clock. Who only follows refuses what it is given anyway."""
        raft = self.raft
        return raft is None or raft.role is not Role.LEADER or self._stamp.knows(raft.term)

    def handle(self, event: events.Event) -> None:
        """Give an event to the machine and carry out what it answers."""
        if self.raft is not None:
            self._carry(self.raft.handle(event, self.host.now))
            if self.raft is not None:
                self.host.watch(self)

    # ---- carrying out

    def _carry(self, effects: Sequence[events.Effect]) -> None:
        self._world.rules.returned(self, effects)
        self._act(self._ordering.take(effects))

    def _act(self, actions: Sequence[Any]) -> None:
        boot = self.host.boots
        for action in actions:
            if boot != self.host.boots:
                return
            self._do[type(action)](action)

    def _send(self, send: events.Send) -> None:
        self._world.rules.sent(self, send)
        message = as_of_version_1(send.message) if self._old else send.message
        self._world.send(self.host, send.to, self.name, message)

    def _write(self, write: Write) -> None:
        """A write begins. The disk keeps it a little later, and a little later still the host hears of it."""
        self.writes += 1
        boot, number = self.host.boots, write.batch.number
        if self.disk.full:
            self._world.note(self.host.name, "full", number)
            self._world.agenda.after(SYNC_LEAST_S, self.host.run, boot, self._failed)
            return
        self.disk.write(write.batch)
        doom = self._struck()
        if doom in (Crash.BEFORE, Crash.TORN):
            self._die(doom)
            return
        delay_s = SYNC_LEAST_S + self._random.random() * (self.disk.sync_most_s - SYNC_LEAST_S)
        self._world.agenda.after(delay_s, self._synced, boot, number, doom)

    def _struck(self) -> Crash | None:
        doom = self.doom
        if doom is None:
            return None
        doom.skip -= 1
        return doom.crash if doom.skip < 0 else None

    def _synced(self, boot: int, number: int, doom: Crash | None) -> None:
        """The disk has done it, be the host busy or not."""
        if boot != self.host.boots:
            return
        self.disk.sync()
        if doom is Crash.AFTER:
            self._die(doom)
            return
        self.host.run(boot, self._written, number, doom)

    def _written(self, number: int, doom: Crash | None) -> None:
        actions = self._ordering.written(number)
        self._world.note(self.host.name, "wrote", number)
        if doom is Crash.RELEASING:
            sends = [action for action in actions if isinstance(action, events.Send)]
            self._act(sends[: self._random.randint(0, len(sends))])
            self._die(doom)
            return
        boot = self.host.boots
        self._act(actions)
        if boot == self.host.boots:
            self.handle(events.Persisted(number))

    def _failed(self) -> None:
        if self.raft is not None:
            self._world.rules.write_failed(self)
            self.handle(events.WriteFailed("no space left on the simulated disk"))

    def _die(self, crash: Crash) -> None:
        down_s = self.doom.down_s if self.doom else SUPERVISOR_S
        self._world.crash(self.host, crash, down_s)

    def _apply(self, effect: events.Apply) -> None:
        for entry in effect.entries:
            reply = self.applied.apply(entry)
            self._world.rules.applied(self, entry, reply)
            self._world.workload.applied(self, entry, reply)
        self._stamp.applied(self.applied.state.clock_s, effect.entries[-1].term, self.host.now)
        index = effect.entries[-1].index
        if index - self._compacted >= self._compact_every:
            # after what is being carried out, as the daemon does it: the machine is not entered twice
            self._world.agenda.after(0.0, self.host.run, self.host.boots, self._compact)

    def _compact(self) -> None:
        index = self.applied.index
        if index - self._compacted >= self._compact_every:
            self._compacted = index
            data = self.applied.snapshot()
            self._world.rules.compacted(self, index, data)
            self.handle(events.Compact(index, data))

    def _restore(self, effect: events.RestoreSnapshot) -> None:
        snapshot = effect.snapshot
        self._world.rules.restored(self, snapshot)
        self.applied.restore(snapshot.index, snapshot.data)
        self._stamp.applied(self.applied.state.clock_s, snapshot.term, self.host.now)
        self._compacted = snapshot.index
        self._world.note(self.host.name, "restored", snapshot.index)

    def _role_changed(self, effect: events.RoleChanged) -> None:
        self._world.note(self.host.name, str(effect.role), effect.term, effect.leader or "-")

    def _told(self, effect: events.Effect) -> None:
        self._world.note(self.host.name, "says", effect)

    def _halt(self, effect: events.Halt) -> None:
        self._world.note(self.host.name, "halts", effect.reason)
        self._world.rules.halted(self, effect)
        self._world.crash(self.host, Crash.BEFORE, SUPERVISOR_S)
