"""The node daemon: wires sockets, cores and processes together on one asyncio loop, and authorises every message.

Rules. Who sent a message is the authenticated peer that the transport names; what it may do is decided by
`core.roles`, here and nowhere else. No user code runs in this process.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from kos_cluster.core import swim
from kos_cluster.core.batching import TASKS_LIMIT
from kos_cluster.core.capacity import Capacity
from kos_cluster.core.queue import GRACE_S
from kos_cluster.core.records import Load, Member, are_runs
from kos_cluster.core.roles import Command, Role, may
from kos_cluster.errors import RevokedError, StateError
from kos_cluster.home import ClusterHome, Ready, private_folder, write_private
from kos_cluster.net import wire
from kos_cluster.net.admission import Admitted
from kos_cluster.net.beacon import Beacon
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.controlplane import Consensus, Finding, Heartbeat, LoadNews, Propose, Proposed
from kos_cluster.net.gangs import RankTable, TwoPhase
from kos_cluster.net.identity import Credentials, Peer
from kos_cluster.net.listeners import Listeners
from kos_cluster.net.local import HOST_VARIABLE
from kos_cluster.net.streams import ItemsWanted
from kos_cluster.net.takingback import TakeBack
from kos_cluster.net.transport import Origin, Payload
from kos_cluster.node import machine
from kos_cluster.node.answers import Answers
from kos_cluster.node.batches import Batches
from kos_cluster.node.blocks import Blocks
from kos_cluster.node.controlplane import ControlPlane, Ground
from kos_cluster.node.copying import Copying
from kos_cluster.node.detached import DetachedJobs
from kos_cluster.node.driving import Driving, Place
from kos_cluster.node.founding import Founding
from kos_cluster.node.gangs import Gangs
from kos_cluster.node.highwater import HighWater
from kos_cluster.node.history import History
from kos_cluster.node.intake import Intake
from kos_cluster.node.keeping import Kept
from kos_cluster.node.kernels import Kernels
from kos_cluster.node.owners import Owners, OwnerState
from kos_cluster.node.parts import Parts
from kos_cluster.node.peers import Peers
from kos_cluster.node.rotating import Rotation
from kos_cluster.node.store import Store
from kos_cluster.node.superseding import Superseding
from kos_cluster.node.workers import Workers

log = logging.getLogger(__name__)

TICK_S = 0.1  # with work on the node
SAMPLE_S = 1.0  # between two looks at the machine's load
WARM_TIMEOUT_S = 20.0
FAREWELL_LIMIT_S = 1.5  # for owners to say that they have what was given back
FAREWELL_POLL_S = 0.02
PROFILES = {"lan": swim.LAN, "fast": swim.FAST}
# What only nodes say, and only to nodes.
NODES_SAY = (
    Heartbeat,
    LoadNews,
    Finding,
    Consensus,
    Propose,
    Proposed,
    TwoPhase,
    wire.OwnerEnded,
    wire.Reply,
)
# Imported in the fork server when it is idle, where installed; what gangs need once one has asked for slots here.
PRELOADED = ("numpy", "kos_kernel.magics.warm", "kos_cluster.tasks.coroutines")
PRELOADED_FOR_GANGS = ("kos_cluster.tasks.comm.ranks", "kos_cluster.tasks.comm.communicator")  # 10 MB
PRELOAD_AFTER_S = 1.0  # after the start


@dataclass(frozen=True)
class Start:
    """How a node is started. `host` is what it binds; `advertised` what others connect to."""

    cluster: ClusterHome
    node: str
    host: str
    port: int
    advertised: str
    bootstrap: tuple[str, ...]  # HOST:PORT of control ports of others; empty: this node founds the cluster
    profile: str  # how fast failures are detected: a name of `PROFILES`
    slots: int
    share: tuple[int, int]  # which it is of the nodes that divide the machine's memory and GPUs, and how many these are
    beacon: bool
    labels: Mapping[str, str]
    resources: Mapping[str, int]


class Daemon:
    """One node. `run` returns when it was asked to stop."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._run = private_folder(start.cluster.run(start.node))
        self._credentials = Credentials.load(start.cluster.node(start.node))
        self._stop = asyncio.Event()
        self._instance = os.urandom(8).hex()
        self._packages: dict[str, str] = {}
        self._meter = machine.LoadMeter(loopback=start.advertised in machine.LOOPBACK)
        self._load = Load()
        self._admitted = Admitted()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._listeners = Listeners(self._context, self._credentials, self._admitted, self._received)
        self._store = Store(start.cluster.node(start.node) / "state.sqlite")
        self._history = History(start.node)
        self._parts = Parts(self._run / "spool" / "parts")
        self._kept = Kept(start.cluster.node(start.node) / "kept")
        self._owners = Owners(self._owner_ended)
        self._high_water = HighWater()
        place, sharers = start.share
        gpus = machine.gpus(visible=os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._capacity = Capacity(machine.memory_bytes() // sharers, gpus[place - 1 :: sharers], start.resources)
        self._member = self._make_member()
        self._gangs = Gangs(self._member.id, self._own_load, lambda event: self._batches.reserve(event))
        self._batches = Batches(
            start.node,
            start.slots,
            self._capacity,
            self._parts,
            self._owners,
            self._history,
            self._send,
            self._gangs.answered,
            lambda owner, blocks: self._blocks.returned(owner, blocks),
        )
        self._control = self._make_control()
        self._rotation = Rotation(self._credentials, start.cluster.node(start.node), self._control, self._renewed)
        self._copying = Copying(
            self._member.id,
            lambda: self._credentials,
            self._control.consensus,
            self._control.membership,
            self._kept,
        )
        self._driving = self._make_driving()
        self._blocks = Blocks(
            self._member,
            start.cluster.arena,
            self._owners,
            self._control.membership,
            lambda: self._credentials,
        )
        self._kernels = Kernels(self._member.id, start.node, start.cluster.name, self._run / "kernels")
        self._superseding = Superseding(self._control.consensus, self._owners)
        self._answers = Answers(
            self._control,
            DetachedJobs(self._control, self._driving),
            self._kernels,
            self._blocks,
            self._gangs,
            self._owners,
            self._history,
            self._tell,
            self._own_load,
            self._stop.set,
            self._rotation.renew,
        )
        self._handlers = self._make_handlers()
        self._bulk: BulkServer | None = None

    async def run(self) -> None:
        """Serve until SIGTERM or `StopNode`. Raises PortTakenError, StateError, RevokedError when it was removed."""
        start = self._start
        self._listeners.bind(start.host, start.port)
        for left in ("spool", "workspaces"):  # by an earlier run, which has ended: its port is free
            shutil.rmtree(self._run / left, ignore_errors=True)
        self._parts.open()
        self._listeners.bind_local(start.cluster.new_socket(start.node, self._member.address))
        bulk = self._bulk = BulkServer(start.host, start.port + 1, self._credentials, self._make_intake())
        workers = Workers(self._run, {**os.environ, HOST_VARIABLE: start.host}, self._batches)
        beacon = await self._start_beacon()
        try:
            bulk.start()
            self._blocks.start()
            workers.start()
            self._batches.start(workers)
            await self._join()
            await asyncio.wait_for(workers.warm.wait(), WARM_TIMEOUT_S)
            await self._control.answered()
            self._say_ready()
            duties = (
                self._beat(),
                self._learn_packages(),
                self._preload(workers),
                self._control.run(),
                self._rotation.run(),
                self._driving.run(),
                self._superseding.run(),
                self._copying.run(),
                self._gangs.run(self._control),
            )
            try:
                await self._until_stopped([self._loop.create_task(work) for work in duties])
            except RevokedError:
                await self._end_work()  # its owners have it done elsewhere; the other nodes do not listen
                raise
            await self._farewell()
        finally:
            (self._run / "ready.json").unlink(missing_ok=True)
            if beacon is not None:
                beacon.close()
            await self._driving.close()
            await self._kernels.close()
            await self._control.close()
            workers.close()
            bulk.close()
            self._blocks.close()
            self._owners.close()
            self._listeners.close()
            self._context.term()
            self._store.close()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stop.set()

    # ---- parts of the start

    def _make_control(self) -> ControlPlane:
        start, folder = self._start, self._start.cluster.node(self._start.node)
        ground = Ground(
            credentials=self._credentials,
            group=start.cluster.read().ca_sha256,
            store=self._store,
            log=folder / "raft.sqlite",
            admitted=self._admitted,
            profile=PROFILES[start.profile],
            bootstrap=start.bootstrap,
            founding=None if start.bootstrap else Founding(start.cluster, start.node, start.profile),
        )
        return ControlPlane(
            ground,
            self._member,
            self._make_peers,
            self._view_changed,
            self._owner_gone,
            self._node_asked,
            self._expelled,
            self._gangs,
        )

    def _make_peers(self, control: ControlPlane) -> Peers:
        hello = wire.Hello(self._instance, machine.versions(), os.getpid(), "", 0)
        return Peers(self._context, self._credentials, hello, self._listeners, self._admitted.revoked, control)

    def _make_member(self) -> Member:
        start = self._start
        return Member(
            id=self._credentials.peer.id,
            name=start.node,
            host=start.advertised,
            port=start.port,
            slots=start.slots,
            versions=machine.versions(),
            incarnation=time.time_ns(),
            started_ns=time.time_ns(),
            pid=os.getpid(),
            boot_id=machine.boot_id(),
            memory_bytes=self._capacity.memory_bytes,
            labels=dict(start.labels),
            resources=dict(start.resources),
            gpus=len(self._capacity.gpus),
        )

    def _make_intake(self) -> Intake:
        return Intake(
            self._admitted, self._parts, self._kept, self._batches, self._control, self._kernels, self._blocks
        )

    def _make_driving(self) -> Driving:
        place = Place(self._member.id, self._start.cluster.name, self._run / "spool" / "driving")
        control = self._control
        return Driving(place, control.consensus, self._kept, self._copying, control.assigning, self._store)

    async def _start_beacon(self) -> Beacon | None:
        if not self._start.beacon:
            return None
        file = self._start.cluster.read()
        interface = self._start.host if self._start.host != "::" else "0.0.0.0"
        return await Beacon.start(file.name, file.ca_sha256, self._member.host, self._member.port, interface=interface)

    async def _join(self) -> None:
        """Be known to others before anybody is told that we are ready."""
        self._sample()
        self._control.start()
        if not await self._control.joined():
            log.warning("No other node of the cluster answers yet; tried %s.", ", ".join(self._start.bootstrap))

    def _renewed(self, credentials: Credentials) -> None:
        """Show another certificate from now on."""
        self._credentials = credentials
        self._control.renewed(credentials)
        self._listeners.renewed(credentials)
        if self._bulk is not None:
            self._bulk.renewed(credentials)

    def _say_ready(self) -> None:
        member = self._member
        ready = Ready(member.name, member.id, os.getpid(), member.host, member.port)
        write_private(self._run / "ready.json", msgspec.json.encode(ready))
        log.info("%s is ready at %s with %d slots.", member.name, member.address, member.slots)

    async def _learn_packages(self) -> None:
        """What is installed here, for placement; found in a thread because it reads much of the disk."""
        self._packages = await asyncio.to_thread(machine.packages)
        for owner in self._owners:
            self._send(owner, self._welcome())
        await self._stop.wait()

    async def _preload(self, workers: Workers) -> None:
        """Import what many tasks need; not at once, as the first task would have to wait for it."""
        await asyncio.sleep(PRELOAD_AFTER_S)
        workers.preload([name for name in PRELOADED if importlib.util.find_spec(name.partition(".")[0])])
        await self._gangs.asked.wait()
        await asyncio.sleep(PRELOAD_AFTER_S)
        workers.preload(list(PRELOADED_FOR_GANGS))
        await self._stop.wait()

    async def _until_stopped(self, background: list[asyncio.Task[None]]) -> None:
        """Wait for the order to stop; a background task that dies ends the daemon, saying why."""
        stopping = self._loop.create_task(self._stop.wait())
        done, pending = await asyncio.wait([stopping, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            if task is not stopping:
                task.result()
        if stopping not in done:
            raise StateError("The daemon's background work ended.", "See the log above.")

    async def _farewell(self) -> None:
        """Give work back, tell the other nodes, and let that go out."""
        await self._end_work()
        await self._control.farewell()

    async def _end_work(self) -> None:
        (self._run / "ready.json").unlink(missing_ok=True)  # from now on this node does not run
        await self._driving.close()
        await self._kernels.close()
        self._batches.stop()
        await self._given_back()

    async def _given_back(self) -> None:
        """Wait until all work was stopped and its owners were told: who hears first that this node is gone counts what
        it had here as lost."""
        deadline = time.monotonic() + GRACE_S + FAREWELL_LIMIT_S
        while (self._batches.busy or any(owner.outbox for owner in self._owners)) and time.monotonic() < deadline:
            self._batches.tick(time.monotonic())
            await asyncio.sleep(FAREWELL_POLL_S)

    # ---- time

    async def _beat(self) -> None:
        next_sample = 0.0
        while True:
            now = time.monotonic()
            if self._batches.busy:
                self._batches.tick(now)
                self._batches.watch_memory()
                self._batches.retry_output()
            if now >= next_sample:
                next_sample = now + SAMPLE_S
                self._owners.expire(now)
                self._control.peers.tick(now)
                self._control.lookups.tick()
                self._control.check_belongs()
                self._sample()
                self._control.measured(self._load)
            await asyncio.sleep(TICK_S if self._batches.busy else SAMPLE_S)

    def _own_load(self) -> tuple[str, Load]:
        """This node's id, and its load as it is now."""
        return self._member.id, self._batches.loaded(self._load)

    def _sample(self) -> None:
        dropped = self._listeners.dropped + (self._bulk.dropped if self._bulk else 0)
        measured = self._meter.sample(dropped_frames=dropped)
        if self._high_water.measured(measured.memory_percent):
            self._batches.pressed(self._high_water.why)
            log.warning("Work is not taken: %s.", self._high_water.why or "no longer so, there is memory again")
        self._load = self._batches.loaded(measured)

    # ---- messages

    def _make_handlers(self) -> dict[type, tuple[Command, Callable[[Origin, Any, memoryview], None]]]:
        return {
            wire.Exec: (Command.SUBMIT, self._on_exec),
            wire.Release: (Command.SUBMIT, self._on_release),
            wire.OwnerBeat: (Command.READ, self._on_owner_beat),
            wire.PutPart: (Command.SUBMIT, self._on_part),
            wire.Cancel: (Command.SUBMIT, self._on_cancel),
            TakeBack: (Command.SUBMIT, self._on_take_back),
            RankTable: (Command.SUBMIT, self._on_rank_table),
            wire.Waits: (Command.SUBMIT, self._on_waits),
            ItemsWanted: (Command.SUBMIT, self._on_items_wanted),
            wire.AttemptEnded: (Command.SUBMIT, self._on_attempt_ended),
            wire.Goodbye: (Command.READ, self._on_goodbye),
            wire.Hello: (Command.READ, self._on_hello),
            wire.SyncRequest: (Command.READ, self._on_sync_request),
            wire.Request: (Command.READ, self._on_request),
            **dict.fromkeys(NODES_SAY, (Command.BE_MEMBER, self._on_node)),
        }

    def _received(self, origin: Origin, message: wire.Message, payload: memoryview) -> None:
        entry = self._handlers.get(type(message))
        if entry is None:
            log.warning("%s sent a %s, which is not for a node.", origin.peer, type(message).__name__)
            return
        command, handle = entry
        if not may(origin.peer.role, command):
            log.warning("%s may not %s: its %s was dropped.", origin.peer, command, type(message).__name__)
            if isinstance(message, wire.Exec):
                reason = f"the role {origin.peer.role} may not run work"
                self._listeners.send(origin.route, wire.Refused(message.batch, reason))
            return
        if not are_runs(getattr(message, "runs", []), TASKS_LIMIT):
            log.warning("%s sent a %s of impossible tasks.", origin.peer, type(message).__name__)
            return
        handle(origin, message, payload)

    def _welcome(self) -> wire.Welcome:
        return wire.Welcome(self._control.member, self._packages, self._own_load()[1])

    def _on_hello(self, origin: Origin, message: wire.Hello, _: memoryview) -> None:
        welcome = self._welcome()
        if origin.peer.role is not Role.NODE and not self._owners.hello(
            origin.peer, origin.route, message, time.monotonic(), on_this_machine=machine.is_own_address(origin.host)
        ):
            log.warning("%s was not welcomed: too many clients.", origin.peer)
            return
        self._listeners.send(origin.route, welcome)
        if origin.peer.role is Role.NODE:
            self._control.node_greeted(origin)
        else:
            self._listeners.send(origin.route, self._control.sync_data(-1))

    def _owner(self, origin: Origin) -> OwnerState | None:
        """The owner that speaks; one that is not known (any more) is asked to say hello."""
        owner = self._owners.of_route(origin.route, origin.peer)
        if owner is None:
            self._listeners.send(origin.route, wire.HelloWanted())
        return owner

    def _on_exec(self, origin: Origin, message: wire.Exec, payload: memoryview) -> None:
        owner = self._owner(origin)
        if owner is None or not payload:
            return
        if self._superseding.is_former(origin.peer.id, message.job):
            self._send(owner, wire.Refused(message.batch, "another node drives this job now"))
            return
        self._batches.execute(owner, message, bytes(payload))

    def _on_part(self, origin: Origin, message: wire.PutPart, payload: memoryview) -> None:
        if not self._parts.add(message.hash, bytes(payload)):
            log.warning("%s sent a part that does not match its name.", origin.peer)
            return
        self._batches.part_arrived(message.hash)

    def _on_release(self, origin: Origin, message: wire.Release, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None:
            self._batches.release(owner, message.serials)

    def _on_cancel(self, origin: Origin, message: wire.Cancel, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None:
            self._batches.cancel(owner, message.batches)

    def _on_take_back(self, origin: Origin, message: TakeBack, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None:
            self._batches.take_back(owner, message.batches)

    def _on_rank_table(self, origin: Origin, message: RankTable, payload: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None:
            self._batches.table(owner, message.batch, message.serial, bytes(payload))

    def _on_waits(self, origin: Origin, message: wire.Waits, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None and owner.is_local:
            self._batches.waits(message.task, message.attempt, message.waiting)

    def _on_items_wanted(self, origin: Origin, message: ItemsWanted, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None:
            self._batches.items_wanted(owner, message)

    def _on_attempt_ended(self, origin: Origin, message: wire.AttemptEnded, _: memoryview) -> None:
        self._batches.attempts_ended(origin.peer.id, message.job, message.runs, message.attempt)

    def _on_goodbye(self, origin: Origin, message: wire.Goodbye, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is not None:
            self._owners.end(owner)

    def _on_owner_beat(self, origin: Origin, message: wire.OwnerBeat, _: memoryview) -> None:
        owner = self._owner(origin)
        if owner is None:
            return
        now = time.monotonic()
        if may(origin.peer.role, Command.SUBMIT):
            owner.jobs = message.jobs
            self._batches.claimed(owner, message.outstanding)
        unknown = self._batches.unknown(owner, message.outstanding)
        others_wait = self._batches.others_wait(owner)
        beat = wire.NodeBeat(self._own_load()[1], unknown, self._blocks.link_rates, others_wait)
        self._listeners.send(origin.route, beat)
        self._batches.ask_again(owner)
        for kept, outcomes in owner.overdue(now):
            self._listeners.send(origin.route, kept, outcomes)
        if message.view != self._control.view:
            self._listeners.send(origin.route, self._control.sync_data(message.view))

    def _on_sync_request(self, origin: Origin, message: wire.SyncRequest, _: memoryview) -> None:
        self._listeners.send(origin.route, self._control.sync_data(message.view))

    def _on_request(self, origin: Origin, message: wire.Request, _: memoryview) -> None:
        self._loop.create_task(self._answer(origin, message), name="answer")

    async def _answer(self, origin: Origin, request: wire.Request) -> None:
        self._listeners.send(origin.route, await self._answers.reply(origin.peer, request))

    def _node_asked(self, peer: Peer, request: wire.Request) -> None:
        """A node asks over a link that we have opened to it."""
        self._loop.create_task(self._answer_node(peer, request), name="answer")

    async def _answer_node(self, peer: Peer, request: wire.Request) -> None:
        self._control.peers.send(peer.id, await self._answers.reply(peer, request))

    def _on_node(self, origin: Origin, message: wire.Message, payload: memoryview) -> None:
        self._control.peers.came(origin)
        self._control.node_said(origin.peer, message, payload)

    def _owner_gone(self, message: wire.OwnerEnded) -> None:
        owner = self._owners.get((message.identity, message.instance))
        if owner is not None:
            self._owners.end(owner)
        else:  # of a client that this node has no link to, it may coordinate a gang all the same
            self._gangs.owner_ended((message.identity, message.instance))

    # ---- owners

    def _send(self, owner: OwnerState, message: wire.Message, payload: Payload = b"") -> bool:
        return self._listeners.send(owner.route, message, payload)

    def _tell(self, owner: OwnerState, message: wire.Message) -> None:
        self._listeners.send(owner.route, message)

    def _owner_ended(self, owner: OwnerState) -> None:
        """Free its work here, and, when its process was on this machine, everywhere."""
        self._batches.owner_ended(owner)
        self._blocks.owner_ended(owner.owner)
        self._gangs.owner_ended(owner.owner)
        if owner.was_local:
            self._control.owner_has_ended(wire.OwnerEnded(*owner.owner))

    def _expelled(self, serial: int, id_: str) -> None:
        """A certificate is denied: its holder is told nothing more, and what it had running ends."""
        for owner in self._owners:
            if owner.peer.id == id_:
                self._listeners.send(owner.route, wire.Expelled())
                self._owners.end(owner)
        self._listeners.cut_denied()
        if self._bulk is not None:
            self._bulk.cut(serial)

    def _view_changed(self) -> None:
        for owner in self._owners:
            self._listeners.send(owner.route, self._control.sync_data(-1))
