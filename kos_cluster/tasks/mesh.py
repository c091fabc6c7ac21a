"""The client's side of the mesh: one thread that holds the links and the table of this process's own tasks.

Theory of operation. User threads post to an inbox and are woken through futures; everything else happens in the mesh
thread's asyncio loop, which feeds `core.ownership` and carries out its effects. Submits that arrive together are
handled together, which is what makes small ones cheap.

Rules. No user code runs here but a sink's methods. The thread may be starved for minutes by a cell that holds the GIL:
after such a silence it catches up with what has arrived before it judges anybody's silence. Nothing relies on one
message arriving: each second the owner tells a node what it holds to be there, and both mend the difference.
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
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import uvloop

from kos_cluster.core import ownership
from kos_cluster.core.ownership import Ownership
from kos_cluster.core.placement import Placement
from kos_cluster.core.records import JobSummary, Load, Member, MemberState, Needs, Runs, Story, indices_of
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
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.holding import Holding
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.losses import loss_error
from kos_cluster.tasks.outgoing import Outgoing
from kos_cluster.tasks.output import PROGRESS_AFTER_S, PROGRESS_EVERY_S, tell
from kos_cluster.tasks.ownblocks import OwnBlocks
from kos_cluster.tasks.remaking import Remaking
from kos_cluster.tasks.renewal import Renewal
from kos_cluster.tasks.returns import Payloads, Returns
from kos_cluster.tasks.slotlending import SlotLending
from kos_cluster.tasks.stories import earlier
from kos_cluster.tasks.streaming import Streams

BEAT_S = 1.0
NODE_SILENT_S = 5.0  # a node that holds our work and is silent for longer is lost
STALL_S = 1.5  # a turn of the loop that comes later than this was starved: silence means nothing then
ANNOUNCE_AFTER_S = 0.1  # a new job is told to the nodes this soon
ASK_TIMEOUT_S = 300.0  # for the mesh thread to answer this process's own threads
JOBS_KEPT = 256  # finished jobs whose stories can still be told
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
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._active: set[str] = set()  # jobs with tasks that are not final
        self._loads: dict[str, tuple[Load, float]] = {}  # node id -> its load, and when it was so (monotonic)
        self._outgoing = Outgoing(self.credentials)
        self._returns = Returns(self.credentials, self._accept)
        self.streams = Streams(self, self._returns, lambda: self._attachment.by_node, self._feed, self._post)
        self.blocks = OwnBlocks(self)
        self.holding = Holding(self, self._feed, self._resume, self._post)
        self.remaking = Remaking(self, self._core, self._jobs, self._outgoing, self._feed, self._begin, self._close_job)
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False
        self._announcing = False
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
        self._post(self._close_job, job)

    def feed(self, event: ownership.RanksPlaced) -> None:
        self._post(self._feed, event)

    def tell_ranks(self, job: Job, ranks: Collection[int], serial: int, answer: bytes) -> None:
        """Answer what these ranks of a gang have said under this number."""
        self._post(self._tell_ranks, job, ranks, serial, answer)

    def summary(self, job: Job) -> JobSummary | None:
        return self.ask(lambda: self._core.summary(job.id) if job.id in self._jobs else None)

    def summaries(self) -> list[JobSummary]:
        return self.ask(self._summaries)

    def _summaries(self) -> list[JobSummary]:
        held = self.holding.told, self.remaking.told
        jobs = self._core.summaries()
        return [msgspec.structs.replace(job, held=tuple(h for told in held for h in told(job.job))) for job in jobs]

    def story(self, job: Job, index: int) -> Story | None:
        return None if self.closed else next(iter(self.stories(job.id, [index])), None)

    def standing(self, job_id: str) -> tuple[Needs, tuple[str, ...]] | None:
        """What a job of this process needs, and why its waiting tasks wait, or where the next would go."""
        return self.ask(lambda: self._core.standing(job_id, self._now()))

    def check_reachable(self) -> None:
        """Raises UnreachableError when no node answers."""
        if not self._attachment.by_node:  # read without asking the mesh thread: it is one look, and a hint at best
            raise self._attachment.unreachable()

    def states(self, job: str) -> bytes:
        """A byte a task of a job of this process (`core.jobrows.STATES`); empty for any other."""
        return self.ask(lambda: self._core.states(job))

    def stories(self, job: str, indices: Collection[int]) -> list[Story]:
        """The stories of these tasks of a job of this process."""
        return self.ask(lambda: self._jobs[job].told(self._core.stories(job, indices)) if job in self._jobs else [])

    def heard(self) -> wire.SyncData:
        """The members, their loads with ages, coordinator and voters as this process has heard; nobody is asked."""
        return self.ask(self._heard)

    def _heard(self) -> wire.SyncData:
        told, now = self._attachment, time.monotonic()
        loads = {id_: (load, now - at) for id_, (load, at) in self._loads.items() if id_ in told.members}
        return wire.SyncData(0, list(told.members.values()), loads, told.coordinator, voters=list(told.voters))

    def why_never(self, job: Job) -> tuple[str, ...]:
        """Each node's reason why it can never run this job's tasks; empty when one can.

        Raises NoSuchNodeError or UnreachableError when the node that the job names is not there or dead.
        """
        return self.ask(lambda: self._why_never(job))

    def would_go(self, needs: Needs) -> tuple[Placement, dict[str, str]]:
        """Where a task would go now, and what would come of it on each node, by name."""
        return self.ask(lambda: self._core.would_go(needs, self._now()))

    def jobs_elsewhere(self, nodes: Mapping[str, frozenset[str]]) -> None:
        """Take in where the jobs of others are: node ids by the job's id or name."""
        self._post(self._feed, ownership.JobsElsewhere(nodes))

    def unknown_jobs(self, names: Collection[str]) -> list[str]:
        """Those of these ids or names that no job is called by, as far as is known."""
        return self.ask(lambda: self._core.unknown_jobs(names))

    def place(self, needs: Needs) -> tuple[Member | None, tuple[str, ...]]:
        """The node for a task that another owner is to submit there, or why there is none now."""
        placed = self.ask(lambda: self._core.place(needs, self._now()))
        return self._attachment.members.get(placed.node or ""), placed.reasons

    def member(self, id_: str) -> Member | None:
        """What is known of a node by now."""
        return self.ask(lambda: self._attachment.members.get(id_))

    def _why_never(self, job: Job) -> tuple[str, ...]:
        if job.needs.on and not self._attachment.linked(job.needs.on):
            return ()  # it is alive, and will be linked in a moment
        return self._core.impossible(job.needs)

    @property
    def is_current(self) -> bool:
        """Whether this is asked in the mesh thread."""
        return threading.current_thread() is self._thread

    def ask(self, question: Callable[[], T]) -> T:
        """Run something short in the mesh thread and wait for its answer."""
        if self.is_current:
            return question()
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

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
        running = asyncio.run_coroutine_threadsafe(self._asking.one(question, node, timeout_s), self._loop)
        return msgspec.msgpack.decode(running.result(), type=kind)

    def wake(self, call: Callable[[], None]) -> None:
        """Have the mesh thread do something short. May be called anywhere, by the garbage collector too."""
        with suppress(RuntimeError):  # the connection is being closed
            self._loop.call_soon_threadsafe(call)

    def renew(self) -> float:
        """Have this machine's client certificate renewed; when it ends then (Unix seconds). Raises KosError."""
        self._check_open()
        return asyncio.run_coroutine_threadsafe(self._renewal.renew(), self._loop).result()

    def request_all(self, question: wire.Asked, kind: type[T], enough_s: float = REQUEST_TIMEOUT_S) -> dict[str, T]:
        """Ask every node that is up; those that do not answer in time are left out. By node name."""
        self._check_open()
        running = asyncio.run_coroutine_threadsafe(self._asking.all(question, enough_s), self._loop)
        return {name: msgspec.msgpack.decode(raw, type=kind) for name, raw in running.result().items()}

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
        self._lending = SlotLending(self._attachment)
        self._renewal = Renewal(self.credentials, self.home.client, self._asking, self._renewed)
        try:
            await self._attachment.attach()
            self._ready.set_result(None)
            duties = [self._loop.create_task(work) for work in (self._beat(), self._renewal.run())]
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
            case wire.CancelWanted(job, index, _):
                self._feed(ownership.Cancelled(job, index))
            case wire.Reply():
                self._asking.answered(message)

    # ---- the core and its effects

    def _feed(self, event: ownership.Event) -> None:
        self._carry_out(self._core.handle(event, self._now()))

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
                    self._idle(job)
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
            stories = self.stories(job.id, list(indices_of(dispatch.runs))) if dispatch.attempt > 1 else []
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
        self._jobs[job.id] = job
        self.blocks.used(job.spec.fn)
        self._feed(ownership.Opened(job.row()))
        if not self._announcing:
            self._announcing = True
            self._loop.call_later(ANNOUNCE_AFTER_S, self._announce)

    def _announce(self) -> None:
        """Let the nodes list new jobs before the next beat, which alone knows whether silence means something."""
        self._announcing = False
        self._tell_nodes()

    def _add(self, job_id: str, count: int, size_bytes: int) -> None:
        self._resume(ownership.Added(job_id, count, size_bytes))

    def _resume(self, added: ownership.Added) -> None:
        self._begin(added.job)
        self._feed(added)

    def _begin(self, job_id: str) -> None:
        """A job has tasks that are not final."""
        if job_id not in self._active:
            job = self._jobs[job_id]
            job.since_s = time.monotonic()
            self._active.add(job_id)
            self._lending.lend(job.parent, True)

    def _idle(self, job_id: str) -> None:
        """All tasks so far are final."""
        if job_id not in self._active:
            return
        self._active.discard(job_id)
        job = self._jobs[job_id]
        if job.progress_shown:
            job.progress_shown = False
            tell(job.sink.finished, self._core.summary(job_id))
        if job.parent and not any(self._jobs[other].parent == job.parent for other in self._active):
            self._lending.lend(job.parent, False)
        if job.closed:
            self._retire(job)

    def _close_job(self, job: Job) -> None:
        job.closed = True
        if job.id not in self._active:
            self._retire(job)

    def _retire(self, job: Job) -> None:
        """A job that is over for good keeps its story for a while, and nothing that is large."""
        if self.remaking.needs(job.id):
            return
        self._outgoing.forget(job)
        self.blocks.unused(job.spec.fn)
        job.lighten()
        self._jobs.move_to_end(job.id)
        over = [old for old in self._jobs.values() if old.lightened and old.id not in self._active]
        for old in over[: max(0, len(over) - JOBS_KEPT)]:
            del self._jobs[old.id]
            self._core.forget(old.id)

    def _renewed(self, credentials: Credentials) -> None:
        """Show another certificate, of the same keys, from now on."""
        self.credentials = credentials
        for part in (self._attachment, self._outgoing, self._returns):
            part.renewed(credentials)

    # ---- time

    async def _beat(self) -> None:
        """Every `PROGRESS_EVERY_S`: progress, and what could not be placed; every `BEAT_S`: the nodes."""
        expected = next_beat = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            now = time.monotonic()
            if now - expected > STALL_S:
                for link in self._attachment.links():
                    link.heard_s = now
            expected = now + PROGRESS_EVERY_S
            self._show_progress(now)
            self._carry_out(self._core.tick(self._now()))
            if now >= next_beat:
                next_beat = now + BEAT_S
                self._beat_nodes(now)

    def _beat_nodes(self, now: float) -> None:
        """Also without work: a node forgets owners that it does not hear of."""
        self._attachment.greet_lost()
        self._attachment.give_up_dead()
        self.blocks.tell()
        self.streams.beat()
        self.remaking.tidy()
        for id_, link in list(self._attachment.by_node.items()):
            if now - link.heard_s > NODE_SILENT_S and self._core.outstanding(id_):
                self._attachment.down(id_, f"it has been silent for {now - link.heard_s:.0f} s")
        self._tell_nodes()

    def _tell_nodes(self) -> None:
        jobs = self._summaries()
        for id_, link in self._attachment.by_node.items():
            link.send(wire.OwnerBeat(self._attachment.view_of(id_), self._core.outstanding(id_), jobs))

    def _node_beat(self, link: NodeLink, message: wire.NodeBeat) -> None:
        if link.peer is None:
            return
        self._node_load(link.peer.id, message.load, 0.0)
        self._feed(ownership.NodeLinks(link.peer.id, message.links))
        for batch in message.unknown:
            dispatch = self._core.dispatch_of(batch)
            if dispatch is not None and dispatch.node == link.peer.id:
                self._dispatch(dispatch)

    def _node_load(self, id_: str, load: Load, age_s: float) -> None:
        """Take in what is told of a node's load, unless something younger is known."""
        at = time.monotonic() - age_s
        if id_ not in self._loads or at >= self._loads[id_][1]:
            self._loads[id_] = load, at
            self._feed(ownership.NodeLoad(id_, load))

    def _show_progress(self, now: float) -> None:
        for job_id in self._active:
            job = self._jobs[job_id]
            if now - job.since_s >= PROGRESS_AFTER_S:
                job.progress_shown = True
                summary = self._core.summary(job_id)
                tell(job.sink.progress, summary, self._attachment.waits_on(summary))
