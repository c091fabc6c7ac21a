"""The client's side of the mesh: one thread that holds the links and the table of this process's own tasks.

Theory of operation. User threads post to an inbox and are woken through futures; everything else happens in the mesh
thread's asyncio loop, which feeds `core.ownership` and carries out its effects. Submits that arrive together are
handled together, which is what makes small ones cheap.

Each part of that is a module of its own: the jobs (`jobtable`), the links (`attachment`), the beat that mends what
got lost (`beat`), and what is sent and comes back (`outgoing`, `returns`). Here they are put together.

Rules. No user code runs here but a sink's methods, and nothing waits for another thread longer than for a lock
that is held for a moment (`conditions`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import uvloop

from kos_cluster.core import ownership
from kos_cluster.core.ownership import Ownership
from kos_cluster.core.records import Load, Member, MemberState, Runs, indices_of
from kos_cluster.errors import StateError
from kos_cluster.home import ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.gangs import RankReady, RankTable
from kos_cluster.net.identity import Credentials
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.streams import Item
from kos_cluster.net.takingback import Returned, TakeBack
from kos_cluster.node import machine
from kos_cluster.tasks import compat
from kos_cluster.tasks.asking import REQUEST_TIMEOUT_S, Asking
from kos_cluster.tasks.attachment import Attachment, hello
from kos_cluster.tasks.beat import Beat
from kos_cluster.tasks.conditions import Answer
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.holding import Holding
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.jobtable import JobTable
from kos_cluster.tasks.losses import loss_error
from kos_cluster.tasks.outgoing import Outgoing
from kos_cluster.tasks.output import tell
from kos_cluster.tasks.ownblocks import OwnBlocks
from kos_cluster.tasks.placing import Placing
from kos_cluster.tasks.remaking import Remaking
from kos_cluster.tasks.renewal import Renewal
from kos_cluster.tasks.returns import Payloads, Returns
from kos_cluster.tasks.slotlending import SlotLending
from kos_cluster.tasks.stories import earlier
from kos_cluster.tasks.streaming import Streams

ASK_TIMEOUT_S = 300.0  # for the mesh thread to answer this process's own threads
CLOSE_TIMEOUT_S = 3.0

T = TypeVar("T")


class Mesh:
    """One client process in one cluster. `start` returns when work can be submitted."""

    def __init__(self, home: ClusterHome) -> None:
        self.home = home
        self.file = home.read()
        self.credentials = Credentials.load(home.client)
        self.pid = os.getpid()
        self.instance = secrets.token_hex(8)
        self.closed = False
        self._core = Ownership(random.Random(secrets.randbits(64)))
        self._clock_offset_s = time.time() - time.monotonic()
        self._outgoing = Outgoing(self.credentials)
        self._lending = SlotLending(lambda: self._attachment.by_node)
        self.jobs = JobTable(self, self._core, self._outgoing, self._lending)
        self._jobs = self.jobs.by_id  # looked into for each outcome
        self._returns = Returns(self.credentials, self._accept)
        self.streams = Streams(self, self._returns, lambda: self._attachment.by_node, self._feed, self._post)
        self.blocks = OwnBlocks(self)
        self.holding = Holding(self, self._feed, self._resume, self._post)
        self.remaking = Remaking(
            self, self._core, self._jobs, self._outgoing, self._feed, self.jobs.begin, self.jobs.close
        )
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="kos-mesh", daemon=True)

    # ---- for user threads

    def start(self) -> None:
        """Raises UnreachableError when no node answers, AuthError when they refuse our certificate."""
        self._thread.start()
        self._ready.result()

    @property
    def packages(self) -> dict[str, dict[str, str]]:
        """What is installed on each node, by its name."""
        return dict(self._attachment.packages)

    @property
    def members(self) -> list[Member]:
        """The nodes that have not left, as last told, by name."""
        known = list(self._attachment.members.values())
        return sorted((m for m in known if m.state is not MemberState.LEFT), key=lambda m: m.name)

    def open(self, job: Job) -> None:
        """Make a job known, before its first task."""
        self._post(self._open, job)

    def added(self, job: Job, count: int, size_bytes: int) -> None:
        self._post(self._add, job.id, count, size_bytes)

    def resumed(self, job: Job, count: int, size_bytes: int, settled: Runs) -> None:
        """As `added`, of a job that an earlier owner has driven."""
        self._post(self._resume, ownership.Added(job.id, count, size_bytes, settled))

    def cancel(self, job: Job, index: int | None, *, waiting: bool = False) -> None:
        self._post(self._feed, ownership.Cancelled(job.id, index, waiting))

    def close_job(self, job: Job) -> None:
        self._post(self.jobs.close, job)

    def feed(self, event: ownership.RanksPlaced | ownership.JobsElsewhere) -> None:
        self._post(self._feed, event)

    def tell_ranks(self, job: Job, ranks: Collection[int], serial: int, answer: bytes) -> None:
        """Answer what these ranks of a gang have said under this number."""
        self._post(self._tell_ranks, job, ranks, serial, answer)

    def check_reachable(self) -> None:
        """Raises UnreachableError when no node answers."""
        if not self._attachment.by_node:  # read without asking the mesh thread: it is one look, and a hint at best
            raise self._attachment.unreachable()

    def heard(self) -> wire.SyncData:
        """The members, their loads with ages, coordinator and voters as this process has heard; nobody is asked."""
        return self.ask(lambda: self._attachment.heard())

    def member(self, id_: str) -> Member | None:
        """What is known of a node by now."""
        return self.ask(lambda: self._attachment.members.get(id_))

    @property
    def is_current(self) -> bool:
        """Whether this is asked in the mesh thread."""
        return threading.current_thread() is self._thread

    def ask(self, question: Callable[[], T]) -> T:
        """Run something short in the mesh thread and wait for its answer."""
        if self.is_current:
            return question()
        answer: Answer[T] = Answer()

        def put() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        self._post(put)
        return answer.result(ASK_TIMEOUT_S)

    def request(
        self, question: wire.Asked, kind: type[T], *, node: str = "", timeout_s: float = REQUEST_TIMEOUT_S
    ) -> T:
        """Ask one node (any, unless `node` names one). Raises what the node answers, or UnreachableError."""
        self._check_open()
        return msgspec.msgpack.decode(self.run_there(self._asking.one(question, node, timeout_s)), type=kind)

    def wake(self, call: Callable[[], None]) -> None:
        """Have the mesh thread do something short. May be called anywhere, by the garbage collector too."""
        with suppress(RuntimeError):  # the connection is being closed
            self._loop.call_soon_threadsafe(call)

    def announce(self) -> None:
        """Let the nodes list new jobs of this process soon, be they on an engine. Any thread."""
        self.wake(self._beat.announce)

    def renew(self) -> float:
        """Have this machine's client certificate renewed; when it ends then (Unix seconds). Raises KosError."""
        self._check_open()
        return self.run_there(self._renewal.renew())

    def request_all(self, question: wire.Asked, kind: type[T], enough_s: float = REQUEST_TIMEOUT_S) -> dict[str, T]:
        """Ask every node that is up; those that do not answer in time are left out. By node name."""
        self._check_open()
        answers = self.run_there(self._asking.all(question, enough_s))
        return {name: msgspec.msgpack.decode(raw, type=kind) for name, raw in answers.items()}

    def more_linked(self) -> bool:
        """Wait for the links to nodes that are alive and were not linked yet; whether there are more now."""
        return self.run_there(self._attachment.more_linked(REQUEST_TIMEOUT_S))

    def run_there(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this in the mesh thread and wait for it. Raises StateError when the connection is closed meanwhile."""
        answer: Answer[T] = Answer()

        def ended(task: asyncio.Task[T]) -> None:
            error = concurrent.futures.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(task.result())

        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(work).add_done_callback(ended))
        try:
            return answer.result()
        except concurrent.futures.CancelledError:
            raise StateError(
                "The connection to the cluster was closed meanwhile.", "Call kos.connect() again."
            ) from None

    def close(self) -> None:
        """Say goodbye to the nodes and end the thread. Tasks that are not done are cancelled. Safe to call twice."""
        if self.closed:
            return
        self.closed = True
        if self._thread.is_alive() and os.getpid() == self.pid:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(CLOSE_TIMEOUT_S)

    # ---- the thread

    def _run(self) -> None:
        try:
            uvloop.run(self._main())
            failure = StateError("The connection to the cluster was closed.", "Call kos.connect() again.")
        except BaseException as error:
            if not self._ready.done():
                self.closed = True
                self._ready.set_exception(error)
                return
            traceback.print_exc()
            failure = StateError(f"The mesh thread has failed ({error!r}).", "Call kos.connect() again, and report it.")
        self.closed = True
        for job in self._jobs.values():
            job.abandon(failure)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        greeting = hello(self.instance, self.pid)
        self._attachment = Attachment(self.home, self.file, self.credentials, greeting, self)
        self._asking = Asking(self._attachment)
        self.placing = Placing(self, self._core, self._attachment, self._now)
        mended = self.blocks.tell, self.streams.beat, self.remaking.tidy
        self._beat = Beat(self._attachment, self._core, self.jobs, self._tick, mended)
        self._renewal = Renewal(self.credentials, self.home.client, self._asking, self._renewed)
        try:
            await self._attachment.attach()
            self._ready.set_result(None)
            duties = [self._loop.create_task(work) for work in (self._beat.run(), self._renewal.run())]
            stopping = self._loop.create_task(self._stop.wait())
            done, _ = await asyncio.wait([*duties, stopping], return_when=asyncio.FIRST_COMPLETED)
            for duty in duties:
                duty.cancel()
                if duty in done:
                    duty.result()  # raises what ended it
            self._attachment.tell_all(wire.Goodbye())
        finally:
            self._attachment.close()

    def _post(self, call: Callable[..., None], *args: Any) -> None:
        self._check_open()
        self._inbox.append((call, args))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._drain)

    def _check_open(self) -> None:
        if self.closed:
            raise StateError("The connection to the cluster is closed.", "Call kos.connect() again.")

    def _drain(self) -> None:
        """Handle what user threads posted; additions to one job that stand together are one event."""
        self._woken = False
        job, count, size = "", 0, 0
        while self._inbox:
            call, args = self._inbox.popleft()
            if call == self._add and args[0] == job:
                count, size = count + args[1], size + args[2]
                continue
            if count:
                self._add(job, count, size)
                count = 0
            if call == self._add:
                job, count, size = args
            else:
                call(*args)
        if count:
            self._add(job, count, size)

    def _renewed(self, credentials: Credentials) -> None:
        """Show another certificate, of the same keys, from now on."""
        self.credentials = credentials
        for part in (self._attachment, self._outgoing, self._returns):
            part.renewed(credentials)

    def _now(self) -> float:
        """Unix seconds that never go back."""
        return time.monotonic() + self._clock_offset_s

    def linked(self) -> Collection[str]:
        """The ids of the nodes that can be asked."""
        return self._attachment.by_node.keys()

    async def ask_node(self, question: wire.Asked, node: str) -> None:
        """Ask one node for what has no answer but yes. Raises what it answers, UnreachableError."""
        await self._asking.one(question, node)

    # ---- attachment.Listener

    def node_up(self, member: Member, packages: dict[str, str]) -> None:
        unreadable = compat.unreadable(machine.versions(), member.versions)
        self._lending.node_up(member.name)
        self.blocks.node_up(member)
        self._feed(ownership.NodeUp(member, frozenset(packages), unreadable))

    def node_down(self, id_: str, why: str) -> None:
        self._asking.lost(id_, why)
        self._feed(ownership.NodeDown(id_, why))

    def node_said(self, link: NodeLink, message: wire.Message, payload: memoryview) -> None:
        match message:
            case wire.Result():
                if not self.streams.holds_back(link, message, payload):
                    self._returns.result(link, message, payload)
            case Item():
                self.streams.item(link, message, payload)
            case wire.Output(_, job, index, _, stream) if job in self._jobs:
                tell(self._jobs[job].sink.write, f"{job}.{index}", stream, bytes(payload))
            case wire.NodeBeat():
                self._node_beat(link, message)
            case wire.Welcome(_, _, load) if load is not None and link.peer is not None:
                self._node_load(link.peer.id, load, 0.0)
            case wire.Started(batches):
                for batch in batches:
                    self._feed(ownership.StartedRunning(batch))
            case wire.Lost():
                self._lost(link, message)
            case Returned(batch, serial, runs):
                self._feed(ownership.Returned(batch, runs))
                self._returns.release(link, serial)
            case wire.Refused(batch, reason, stopping):
                self._feed(ownership.BatchRefused(batch, reason, stopping))
            case wire.Missing(_, hashes):
                self._outgoing.missing(link, hashes)
            case wire.Displays(_, job, index, _) if job in self._jobs:
                tell(self._jobs[job].sink.display, f"{job}.{index}", msgspec.json.decode(bytes(payload)))
            case wire.SyncData():
                for id_, (load, age_s) in message.loads.items():
                    self._node_load(id_, load, age_s)
                for member in self._attachment.members.values() if message.members else ():
                    self._feed(ownership.NodeDrained(member.id, member.drained))
            case RankReady(_, job, index, serial) if job in self._jobs:
                self._jobs[job].rank_in_place(index, serial, bytes(payload))
            case wire.CancelWanted(job, index, _) if job in self._jobs:
                self._feed(ownership.Cancelled(job, index))
            case wire.CancelWanted(job, index, _):
                self.jobs.cancel_elsewhere(job, index)
            case wire.Reply():
                self._asking.answered(message)

    def _node_beat(self, link: NodeLink, message: wire.NodeBeat) -> None:
        if link.peer is None:
            return
        self._node_load(link.peer.id, message.load, 0.0, message.others_wait)
        self._feed(ownership.NodeLinks(link.peer.id, message.links))
        for batch in message.unknown:
            dispatch = self._core.dispatch_of(batch)
            if dispatch is not None and dispatch.node == link.peer.id:
                self._dispatch(dispatch)

    def _node_load(self, id_: str, load: Load, age_s: float, others_wait: bool | None = None) -> None:
        """Take in what is told of a node's load, unless something younger is known."""
        if self._attachment.takes_load(id_, load, age_s):
            self._feed(ownership.NodeLoad(id_, load, others_wait))

    # ---- the core and its effects

    def _feed(self, event: ownership.Event) -> None:
        self._carry_out(self._core.handle(event, self._now()))

    def _tick(self) -> None:
        self._carry_out(self._core.tick(self._now()))

    def _carry_out(self, effects: Sequence[ownership.Effect]) -> None:
        for effect in effects:
            match effect:
                case ownership.Dispatch():
                    self._dispatch(effect)
                case ownership.GiveUp(job, runs, end, node, attempts, detail):
                    for index in indices_of(runs):
                        error = loss_error(f"{job}.{index}", end, node, attempts, detail)
                        self._jobs[job].settle_all([(index, 1)], error)
                    self._outgoing.settled(self._jobs[job], runs)
                case ownership.Dropped(job, runs):
                    self._jobs[job].settle_all(runs, None)
                    self.holding.dropped(self._jobs[job], runs)
                    self.remaking.dropped(job, runs)
                    self._outgoing.settled(self._jobs[job], runs)
                case ownership.CancelAt(node, batches) | ownership.TakeBackAt(node, batches):
                    wish = wire.Cancel if isinstance(effect, ownership.CancelAt) else TakeBack
                    if node in self._attachment.by_node:
                        self._attachment.by_node[node].send(wish(batches))
                case ownership.AttemptOver(job, runs, attempt):
                    self._attachment.tell_all(wire.AttemptEnded(job, runs, attempt))
                case ownership.JobIdle(job):
                    self.jobs.idle(job)
                case ownership.Commit():
                    raise AssertionError("outcomes are committed where they arrive")

    def _accept(self, node: str, message: wire.Result, payloads: Payloads) -> None:
        """Take outcomes in; those that the core commits settle their tasks."""
        message, payloads = self.remaking.without_lost(message, payloads)
        failed = frozenset(message.failed)
        event = ownership.Outcomes(message.batch, node, message.runs, failed, message.elapsed_s)
        effects = self._core.handle(event, self._now())
        outcomes: dict[int, Outcome] = {}
        for effect in effects:
            if isinstance(effect, ownership.Commit):
                job = self._jobs[effect.job]
                outcomes = self.remaking.outcomes(job, node, message, payloads)
                self.blocks.adopt(node, message.blocks, outcomes.values())
                job.settle(effect.runs, outcomes)
                self._outgoing.settled(job, effect.runs)
        if not outcomes:
            self.blocks.adopt(node, message.blocks, ())
        self._carry_out([effect for effect in effects if not isinstance(effect, ownership.Commit)])

    def _lost(self, link: NodeLink, message: wire.Lost) -> None:
        detail = message.detail or message.cause.value
        if message.log_tail:
            detail += f"; its last output was:\n{message.log_tail}\n"
        self._feed(ownership.BatchLost(message.batch, message.ran, message.untouched, message.cause, detail))
        self._returns.release(link, message.serial)

    def _dispatch(self, dispatch: ownership.Dispatch) -> None:
        """Send a batch. If the link is down it will be asked for in the answer to a later beat."""
        link = self._attachment.by_node.get(dispatch.node)
        if link is not None:
            job = self._jobs[dispatch.job]
            stories = self.jobs.stories(job.id, list(indices_of(dispatch.runs))) if dispatch.attempt > 1 else []
            history = earlier(stories, dispatch.attempt)
            try:
                stream = self.streams.sent(dispatch, job) if job.spec.yields else None
                self._outgoing.send(link, job, dispatch, history, stream)
            except Exception as error:  # what the wire cannot carry fails its tasks, not everybody's
                traceback.print_exc()
                problem = StateError(f"Job {job.id} could not be sent: {error!r}.", "Please report this.")
                job.settle_all(dispatch.runs, problem)
                self._loop.call_soon(self._feed, ownership.Cancelled(job.id))

    def _tell_ranks(self, job: Job, ranks: Collection[int], serial: int, answer: bytes) -> None:
        for batch, node, index in self._core.batches_of(job.id):
            if index in ranks and (link := self._attachment.by_node.get(node)) is not None:
                link.send(RankTable(batch, serial), answer)

    # ---- jobs

    def _open(self, job: Job) -> None:
        self.jobs.open(job)
        self._feed(ownership.Opened(job.row()))
        self._beat.announce()

    def _add(self, job_id: str, count: int, size_bytes: int) -> None:
        self._resume(ownership.Added(job_id, count, size_bytes))

    def _resume(self, added: ownership.Added) -> None:
        self.jobs.begin(added.job)
        self._feed(added)
