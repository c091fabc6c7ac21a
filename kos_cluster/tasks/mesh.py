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
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import zmq

from kos_cluster import errors
from kos_cluster.core import ownership
from kos_cluster.core.ownership import Ownership
from kos_cluster.core.records import JobSummary, Member, MemberState, Story, indices_of
from kos_cluster.errors import KosError, StateError, UnreachableError
from kos_cluster.home import ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.bulk import get_result
from kos_cluster.net.identity import Credentials
from kos_cluster.node import machine
from kos_cluster.tasks import compat
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.job import Job
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.tasks.losses import loss_error
from kos_cluster.tasks.output import PROGRESS_AFTER_S, PROGRESS_EVERY_S
from kos_cluster.tasks.outgoing import Outgoing

BEAT_S = 1.0
NODE_SILENT_S = 5.0  # a node that holds our work and is silent for longer is lost
STALL_S = 1.5  # a turn of the loop that comes later than this was starved: silence means nothing then
RELEASE_AFTER_S = 0.05  # releases travel together
RELEASES_LIMIT = 64
CONNECT_TIMEOUT_S = 5.0
ALL_NODES_TIMEOUT_S = 2.0  # for the links to the members beyond the first
REQUEST_TIMEOUT_S = 5.0
JOBS_KEPT = 256  # finished jobs whose stories can still be told
CLOSE_TIMEOUT_S = 3.0

T = TypeVar("T")
_payload_list = msgspec.msgpack.Decoder(list[bytes])


class Mesh:
    """One client process in one cluster. `start` returns when work can be submitted."""

    def __init__(self, home: ClusterHome) -> None:
        self.home = home
        self.credentials = Credentials.load(home.client)
        self.instance = secrets.token_hex(8)
        self.pid = os.getpid()
        self.members: dict[str, Member] = {}
        self.packages: dict[str, dict[str, str]] = {}  # by node name
        self._view = -1
        self.file = home.read()
        self._core = Ownership(random.Random(secrets.randbits(64)))
        self._clock_offset = time.time() - time.monotonic()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._active: set[str] = set()  # jobs with tasks that are not final
        self._lending: set[str] = set()  # parents that are told to wait
        self._links: dict[str, NodeLink] = {}  # by address
        self._by_node: dict[str, NodeLink] = {}  # by node id, once welcomed
        self._incarnations: dict[str, int] = {}
        self._outgoing = Outgoing(self.credentials)
        self._releases: dict[str, list[int]] = {}
        self._fetching: set[tuple[str, int]] = set()
        self._requests: dict[int, asyncio.Future[wire.Reply]] = {}
        self._next_request = 1
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._woken = False
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="kos-mesh", daemon=True)

    # ---- for user threads

    def start(self) -> None:
        """Raises UnreachableError when no node answers, AuthError when they refuse our certificate."""
        self._thread.start()
        self._ready.result()

    def open(self, job: Job) -> None:
        """Make a job known, before its first task."""
        self._post(self._open, job)

    def added(self, job: Job, count: int, size_bytes: int) -> None:
        self._post(self._add, job.id, count, size_bytes)

    def cancel(self, job: Job, index: int | None) -> None:
        self._post(self._feed, ownership.Cancelled(job.id, index))

    def close_job(self, job: Job) -> None:
        self._post(self._close_job, job)

    def summary(self, job: Job) -> JobSummary | None:
        return self.ask(lambda: self._core.summary(job.id) if job.id in self._jobs else None)

    def story(self, job: Job, index: int) -> Story | None:
        return None if self.closed else self.ask(lambda: self._core.story(job.id, index))

    def summaries(self) -> list[JobSummary]:
        return self.ask(self._core.summaries)

    def why_never(self, job: Job) -> tuple[str, ...]:
        """Each node's reason why it can never run this job's tasks; empty when one can."""
        needs = job.spec.options.needs(job.spec.modules)
        return self.ask(lambda: self._core.impossible(needs))

    def ask(self, question: Callable[[], T]) -> T:
        """Run something short in the mesh thread and wait for its answer."""
        if threading.current_thread() is self._thread:
            return question()
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def put() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        self._post(put)
        return answer.result(REQUEST_TIMEOUT_S * 60)

    def request(self, question: wire.Asked, kind: type[T], *, node: str = "", timeout_s: float = REQUEST_TIMEOUT_S) -> T:
        """Ask one node (any, unless `node` names one). Raises what the node answers, or UnreachableError."""
        self._check_open()
        running = asyncio.run_coroutine_threadsafe(self._request(question, node, timeout_s), self._loop)
        return msgspec.msgpack.decode(running.result(), type=kind)

    def request_all(self, question: wire.Asked, kind: type[T]) -> dict[str, T]:
        """Ask every node that is up; those that do not answer in time are left out. By node name."""
        self._check_open()
        running = asyncio.run_coroutine_threadsafe(self._request_all(question), self._loop)
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
            asyncio.run(self._main())
            failure: BaseException = StateError("The connection to the cluster was closed.", "Call kos.connect() again.")
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
                return
            traceback.print_exc()
            failure = StateError(f"The mesh thread has failed ({error!r}).", "Call kos.connect() again and report this.")
        self.closed = True
        for job in self._jobs.values():
            job.abandon(failure)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        try:
            await self._attach()
            self._ready.set_result(None)
            self._spawn(self._beat(), "beat")
            await self._stop.wait()
            for link in self._links.values():
                link.send(wire.Goodbye())
        finally:
            for task in self._tasks:
                task.cancel()
            for link in self._links.values():
                link.close()
            self._context.term()

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
        adding: tuple[str, int, int] | None = None
        while self._inbox:
            call, args = self._inbox.popleft()
            if call == self._add:
                job, count, size = args
                if adding is not None and adding[0] == job:
                    adding = (job, adding[1] + count, adding[2] + size)
                    continue
                if adding is not None:
                    self._add(*adding)
                adding = (job, count, size)
                continue
            if adding is not None:
                self._add(*adding)
                adding = None
            call(*args)
        if adding is not None:
            self._add(*adding)

    def _now(self) -> float:
        """Unix seconds that never go back."""
        return time.monotonic() + self._clock_offset

    # ---- attaching

    async def _attach(self) -> None:
        """Link to the nodes we know of, learn the members, link to them all."""
        addresses = [f"{r.host}:{r.port}" for name in self.file.nodes if (r := self.home.ready(name)) is not None]
        for address in dict.fromkeys([*addresses, *self.file.bootstrap]):
            host, _, port = address.rpartition(":")
            self._link_to(host, int(port))
        if not self._links:
            raise UnreachableError(
                f"No node of cluster {self.home.name!r} is known to run.", "Type 'kos up' to start this machine's."
            )
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not self.members:
            failures = [link.failure for link in self._links.values()]
            if all(isinstance(failure, errors.AuthError) for failure in failures) and failures[0] is not None:
                raise failures[0]
            if time.monotonic() > deadline or (all(failures) and self._all_on_this_machine()):
                raise self._unreachable()
            await asyncio.sleep(0.005)
        deadline = time.monotonic() + ALL_NODES_TIMEOUT_S
        while time.monotonic() < deadline and not self._all_linked():
            await asyncio.sleep(0.005)

    def _all_on_this_machine(self) -> bool:
        return self.file.embedded

    def _all_linked(self) -> bool:
        wanted = {m.id for m in self.members.values() if m.state is MemberState.ALIVE}
        failed = {link.address for link in self._links.values() if link.failure}
        return all(id_ in self._by_node or self.members[id_].address in failed for id_ in wanted)

    def _unreachable(self) -> UnreachableError:
        tried = "; ".join(
            f"{link.address}: {link.failure.message if link.failure else 'no answer'}" for link in self._links.values()
        )
        return UnreachableError(
            f"No node of cluster {self.home.name!r} answers ({tried}).",
            "Type 'kos up' to start this machine's nodes, or see that one is running.",
        )

    def _link_to(self, host: str, port: int) -> None:
        if f"{host}:{port}" not in self._links:
            hello = wire.Hello(
                self.instance, machine.versions(), self.pid, machine.boot_id(), machine.pid_namespace()
            )
            self._links[f"{host}:{port}"] = NodeLink(self._context, self.credentials, host, port, hello, self)

    # ---- links.Listener

    def link_gone(self, link: NodeLink, why: str) -> None:
        """A node cannot be reached: what it held is lost."""
        if link.peer is not None and self._by_node.get(link.peer.id) is link:
            self._node_down(link.peer.id, why)

    def link_said(self, link: NodeLink, message: wire.Message, frames: list[zmq.Frame]) -> None:
        match message:
            case wire.Result():
                self._result(link, message, frames)
            case wire.Output():
                self._output(message, frames)
            case wire.NodeBeat():
                self._node_beat(link, message)
            case wire.Started(batches):
                for batch in batches:
                    self._feed(ownership.StartedRunning(batch))
            case wire.Lost():
                self._lost(link, message)
            case wire.Refused(batch, reason):
                self._feed(ownership.BatchRefused(batch, reason))
            case wire.Missing(_, hashes):
                self._outgoing.missing(link, hashes)
            case wire.Displays():
                self._display(message, frames)
            case wire.SyncData():
                self._sync(message)
            case wire.Welcome():
                self._welcome(link, message)
            case wire.CancelWanted(job, index, _):
                self._feed(ownership.Cancelled(job, index))
            case wire.Reply():
                waiting = self._requests.pop(message.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)

    def _welcome(self, link: NodeLink, message: wire.Welcome) -> None:
        member = message.member
        if link.peer is None or member.id != link.peer.id:
            return
        before = self._incarnations.get(member.id)
        if before is not None and before != member.incarnation:
            self._feed(ownership.NodeDown(member.id, "its daemon was started anew"))
            link.given.clear()
        self._incarnations[member.id] = member.incarnation
        self._by_node[member.id] = link
        self.packages[member.name] = message.packages
        self.members.setdefault(member.id, member)
        unreadable = compat.unreadable(machine.versions(), member.versions)
        self._feed(ownership.NodeUp(member, frozenset(message.packages), unreadable))

    def _sync(self, message: wire.SyncData) -> None:
        for id_, (load, _) in message.loads.items():
            self._feed(ownership.NodeLoad(id_, load))
        if message.members is None or message.view <= self._view:
            return
        self._view = message.view
        self.members = {member.id: member for member in message.members}
        for member in message.members:
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT):
                self._link_to(member.host, member.port)
            elif member.id in self._by_node and self._incarnations.get(member.id) == member.incarnation:
                self._node_down(member.id, f"the cluster holds it to be {member.state}")

    def _node_down(self, id_: str, why: str) -> None:
        link = self._by_node.pop(id_, None)
        if link is not None:
            link.given.clear()
        self._incarnations.pop(id_, None)
        self._feed(ownership.NodeDown(id_, why))

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
                case ownership.Dropped(job, runs):
                    self._jobs[job].settle_all(runs, None)
                case ownership.CancelAt(node, batches):
                    if node in self._by_node:
                        self._by_node[node].send(wire.Cancel(batches))
                case ownership.AttemptOver(job, runs, attempt):
                    self._tell_all(wire.AttemptEnded(job, runs, attempt))
                case ownership.JobIdle(job):
                    self._idle(job)
                case ownership.Commit():
                    raise AssertionError("outcomes are committed where they arrive")

    def _tell_all(self, message: wire.Message) -> None:
        for link in self._by_node.values():
            link.send(message)

    def _open(self, job: Job) -> None:
        options = job.spec.options
        spec = ownership.JobSpec(
            job=job.id,
            name=job.spec.name,
            needs=options.needs(job.spec.modules),
            retries=options.retries,
            single=options.fresh or options.timeout is not None,
            max_parallel=options.max_parallel,
            parent=job.parent,
        )
        self._jobs[job.id] = job
        self._feed(ownership.Opened(spec))

    def _add(self, job_id: str, count: int, size_bytes: int) -> None:
        if job_id not in self._active:
            job = self._jobs[job_id]
            job.since_s = time.monotonic()
            self._active.add(job_id)
            self._lend(job.parent, True)
        self._feed(ownership.Added(job_id, count, size_bytes))

    def _idle(self, job_id: str) -> None:
        if job_id not in self._active:
            return
        self._active.discard(job_id)
        job = self._jobs[job_id]
        if job.progress_shown:
            job.progress_shown = False
            self._call_sink(job.sink.finished, self._core.summary(job_id))
        if job.parent and not any(self._jobs[other].parent == job.parent for other in self._active):
            self._lend(job.parent, False)

    def _lend(self, parent: str, waiting: bool) -> None:
        """Tell the node under us that the task we are in has tasks out, so that its slot can serve them."""
        if not parent or (parent in self._lending) == waiting:
            return
        (self._lending.add if waiting else self._lending.discard)(parent)
        here = os.environ.get("KOS_NODE", "")
        task, _, attempt = parent.rpartition("#")
        for link in self._by_node.values():
            if link.peer is not None and link.peer.name == here:
                link.send(wire.Waits(task, int(attempt), waiting))

    def _close_job(self, job: Job) -> None:
        self._feed(ownership.Closed(job.id))
        self._jobs.move_to_end(job.id)
        for old in [id_ for id_ in self._jobs if id_ not in self._active][: max(0, len(self._jobs) - JOBS_KEPT)]:
            del self._jobs[old]
            self._core.forget(old)

    def _dispatch(self, dispatch: ownership.Dispatch) -> None:
        """Send a batch. If the link is down it will be asked for in the answer to a later beat."""
        link = self._by_node.get(dispatch.node)
        if link is not None:
            history = self._history(dispatch) if dispatch.attempt > 1 else {}
            self._outgoing.send(link, self._jobs[dispatch.job], dispatch, history)

    def _history(self, dispatch: ownership.Dispatch) -> dict[int, list[Any]]:
        told = {}
        for index in indices_of(dispatch.runs):
            story = self._core.story(dispatch.job, index)
            if story is not None:
                told[index] = [a for a in story.attempts if a.number < dispatch.attempt]
        return told

    # ---- results

    def _result(self, link: NodeLink, message: wire.Result, frames: list[zmq.Frame]) -> None:
        if link.peer is None or not frames and message.runs:
            return
        payloads: list[Any] = _payload_list.decode(frames[0].buffer) if frames else []
        if not message.large:
            self._accept(link, message, payloads)
        elif (link.peer.id, message.serial) not in self._fetching:
            self._fetching.add((link.peer.id, message.serial))
            self._spawn(self._fetch(link, message, payloads), f"fetch-{message.serial}")

    async def _fetch(self, link: NodeLink, message: wire.Result, payloads: list[Any]) -> None:
        """Get outcomes that were too large for a message, then take the result as a whole."""
        assert link.peer is not None
        try:
            for position, index in enumerate(indices_of(message.runs)):
                if index in message.large:
                    name, size = message.large[index]
                    payloads[position] = await asyncio.to_thread(
                        get_result, link.host, link.port, self.credentials, name, size
                    )
            self._accept(link, message, payloads)
        except KosError as error:  # the node sends the result again while it lives
            sys.stderr.write(f"kos: a result could not be fetched from {link.address}: {error.message}\n")
        finally:
            self._fetching.discard((link.peer.id, message.serial))

    def _accept(self, link: NodeLink, message: wire.Result, payloads: list[Any]) -> None:
        assert link.peer is not None
        failed = frozenset(message.failed)
        event = ownership.Outcomes(
            message.batch, link.peer.id, message.runs, failed, message.elapsed_s, message.last
        )
        effects = self._core.handle(event, self._now())
        for effect in effects:
            if isinstance(effect, ownership.Commit):
                outcomes = {
                    index: Outcome(payload, index in failed)
                    for index, payload in zip(indices_of(message.runs), payloads, strict=True)
                }
                self._jobs[effect.job].settle(effect.runs, outcomes)
        self._carry_out([e for e in effects if not isinstance(e, ownership.Commit)])
        self._release(link, message.serial)

    def _lost(self, link: NodeLink, message: wire.Lost) -> None:
        detail = message.detail or message.cause.value
        if message.log_tail:
            detail += f"; its last output was:\n{message.log_tail}\n"
        self._feed(ownership.BatchLost(message.batch, message.ran, message.untouched, message.cause, detail))
        self._release(link, message.serial)

    def _release(self, link: NodeLink, serial: int) -> None:
        """Tell the node that it may forget; not at once, since nothing waits for it."""
        serials = self._releases.setdefault(link.address, [])
        serials.append(serial)
        if len(serials) == 1:
            self._loop.call_later(RELEASE_AFTER_S, self._send_releases, link)
        elif len(serials) >= RELEASES_LIMIT:
            self._send_releases(link)

    def _send_releases(self, link: NodeLink) -> None:
        serials = self._releases.pop(link.address, None)
        if serials:
            link.send(wire.Release(serials))

    # ---- output

    def _output(self, message: wire.Output, frames: list[zmq.Frame]) -> None:
        job = self._jobs.get(message.job)
        if job is not None and frames:
            self._call_sink(job.sink.write, f"{message.job}.{message.index}", message.stream, frames[0].bytes)

    def _display(self, message: wire.Displays, frames: list[zmq.Frame]) -> None:
        job = self._jobs.get(message.job)
        if job is not None and frames:
            content = msgspec.json.decode(frames[0].bytes)
            self._call_sink(job.sink.display, f"{message.job}.{message.index}", content)

    def _call_sink(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except Exception:
            sys.stderr.write("kos: showing a task's output failed:\n")
            traceback.print_exc()

    # ---- time

    async def _beat(self) -> None:
        """Every `PROGRESS_EVERY_S`: progress, and what could not be placed; every `BEAT_S`: the nodes."""
        expected = time.monotonic()
        next_beat = expected
        while True:
            await asyncio.sleep(PROGRESS_EVERY_S)
            now = time.monotonic()
            if now - expected > STALL_S:
                for link in self._links.values():
                    link.heard_s = now
            expected = now + PROGRESS_EVERY_S
            self._show_progress(now)
            self._carry_out(self._core.tick(self._now()))
            if now >= next_beat:
                next_beat = now + BEAT_S
                self._beat_nodes(now)

    def _beat_nodes(self, now: float) -> None:
        if not self._jobs:
            return
        jobs = self._core.summaries()
        for id_, link in list(self._by_node.items()):
            outstanding = self._core.outstanding(id_)
            if outstanding and now - link.heard_s > NODE_SILENT_S:
                self._node_down(id_, f"it has been silent for {now - link.heard_s:.0f} s")
            else:
                link.send(wire.OwnerBeat(self._view, outstanding, jobs))

    def _node_beat(self, link: NodeLink, message: wire.NodeBeat) -> None:
        if link.peer is None:
            return
        self._feed(ownership.NodeLoad(link.peer.id, message.load))
        for batch in message.unknown:
            dispatch = self._core.dispatch_of(batch)
            if dispatch is not None and dispatch.node == link.peer.id:
                self._dispatch(dispatch)

    def _show_progress(self, now: float) -> None:
        for job_id in self._active:
            job = self._jobs[job_id]
            if now - job.since_s >= PROGRESS_AFTER_S:
                job.progress_shown = True
                self._call_sink(job.sink.progress, self._core.summary(job_id))

    def _spawn(self, work: Any, name: str) -> None:
        """Run a coroutine in the background; if it dies, that is reported."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            sys.stderr.write(f"kos: {task.get_name()} has failed:\n")
            traceback.print_exception(error)

    # ---- requests

    async def _request(self, question: wire.Asked, node: str, timeout_s: float) -> bytes:
        link = self._choose(node)
        number, self._next_request = self._next_request, self._next_request + 1
        answer: asyncio.Future[wire.Reply] = self._loop.create_future()
        self._requests[number] = answer
        try:
            link.send(wire.Request(number, question))
            reply = await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise UnreachableError(
                f"Node {link.peer.name if link.peer else link.address} did not answer within {timeout_s:.0f} s.",
                "Type 'kos cluster nodes' to see which nodes are alive.",
            ) from None
        finally:
            self._requests.pop(number, None)
        if reply.error is not None:
            name, message, hint = reply.error
            kind = getattr(errors, name, KosError)
            raise kind(message, hint)
        return bytes(reply.value)

    async def _request_all(self, question: wire.Asked) -> dict[str, bytes]:
        names = [link.peer.name for link in self._by_node.values() if link.peer is not None]
        answers = await asyncio.gather(
            *(self._request(question, name, REQUEST_TIMEOUT_S) for name in names), return_exceptions=True
        )
        told: dict[str, bytes] = {}
        refusals: list[KosError] = []
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, bytes):
                told[name] = answer
            elif isinstance(answer, KosError) and not isinstance(answer, UnreachableError):
                refusals.append(answer)
            elif not isinstance(answer, UnreachableError):
                raise answer
        if refusals and not any(told.values()):
            raise refusals[0]
        return told

    def _choose(self, node: str) -> NodeLink:
        """The link to the named node, or to any, the founder first."""
        ups = [link for link in self._by_node.values() if link.up and link.peer is not None]
        if node:
            for link in ups:
                if link.peer is not None and node in (link.peer.name, link.peer.id):
                    return link
            member = next((m for m in self.members.values() if node in (m.name, m.id)), None)
            if member is None:
                known = ", ".join(sorted(m.name for m in self.members.values()))
                raise errors.NoSuchNodeError(f"No node is named {node!r}.", f"The cluster has {known}.")
            raise UnreachableError(f"Node {member.name} ({member.state}) cannot be reached at {member.address}.")
        if not ups:
            raise self._unreachable()
        founders = [link for link in ups if link.peer and (m := self.members.get(link.peer.id)) and m.founder]
        return (founders or ups)[0]
