"""The cluster as a program sees it: `connect`, `submit`, `map`, and what can be asked of it.

Rules. One connection per process and cluster; it works inside tasks too, whose submissions belong to the task's
attempt. Functions and arguments are pickled in the caller's thread at the time of the call, so later changes don't
matter and errors appear where they are made.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster.core.arena import Usage
from kos_cluster.core.driving import Kind
from kos_cluster.core.placement import UNREADABLE
from kos_cluster.core.records import JobSummary, Story
from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, IncompatibleError, KosError, PlacementError, UnreachableError, UsageError
from kos_cluster.home import Home
from kos_cluster.net import wire
from kos_cluster.net.blocks import MemoryAsked
from kos_cluster.net.identity import Peer
from kos_cluster.net.local import Environment
from kos_cluster.net.locks import HeldLock, LocksAsked
from kos_cluster.node import machine
from kos_cluster.tasks import (
    compat,
    detached,
    failures,
    inputs,
    kernels,
    output,
    profiling,
    script,
    serialise,
    showing,
    streaming,
)
from kos_cluster.tasks.asking import DECISION_TIMEOUT_S, VIEWS_ENOUGH_S
from kos_cluster.tasks.blocks import BlockRef, named_in
from kos_cluster.tasks.comm.ranks import ProgramCall
from kos_cluster.tasks.detached import DetachedJob
from kos_cluster.tasks.functions import Functions, Shipped, with_arguments
from kos_cluster.tasks.gangs import Gang, prepared
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.kernels import KernelSpec, RemoteKernel
from kos_cluster.tasks.launching import Program
from kos_cluster.tasks.locking import TTL_S, Lock
from kos_cluster.tasks.mapresult import MapResult
from kos_cluster.tasks.mesh import Mesh
from kos_cluster.tasks.nodes import newest, node_rows, status_of, to_ask
from kos_cluster.tasks.options import PLAIN, Options, split_options
from kos_cluster.tasks.ownblocks import Read
from kos_cluster.tasks.registers import Register, read
from kos_cluster.tasks.relating import find_related
from kos_cluster.tasks.stories import merged
from kos_cluster.tasks.streaming import Stream
from kos_cluster.tasks.why import Why, WouldGo, explain

STREAMS_LIMIT = 128  # kinds of submit (function, options) whose tasks share a job
REMOVAL_TIMEOUT_S = 30.0  # for a node's answer; longer than it and the coordinator take at most
STREAMED_LIMIT_BYTES = 1 << 18  # of a function whose job is kept open for further submits; none that refers to a block
_JOB_ID_BYTES = 5
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

_connections: dict[tuple[str, str], Cluster] = {}
_connecting = threading.Lock()


def connect(name: str | None = None, *, home: Path | None = None) -> Cluster:
    """The cluster of that name; else KOS_CLUSTER's, the current one, or the only one on this machine.

    `home`: another KOS_HOME than this process's.

    Raises NotInClusterError, UnreachableError, AuthError.
    """
    found = Home(home).cluster(name)
    file = found.read()
    key = (str(found.path), found.name)
    with _connecting:
        known = _connections.get(key)
        if known is not None and known.usable:
            if known.authority == file.ca_sha256:
                return known
            known.close()  # another cluster has taken the name since
        mesh = Mesh(found)
        mesh.start()
        cluster = _connections[key] = Cluster(mesh)
        return cluster


def disconnect() -> None:
    """Close every connection of this process. Tasks that are not done are cancelled; `connect` connects anew."""
    for cluster in list(_connections.values()):
        if cluster.usable:
            cluster.close()


class Cluster:
    """A connection to a cluster. Made by `connect`; closed by `close` or at the end of the process."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._functions = Functions()
        self._streams: OrderedDict[tuple[Any, ...], Job] = OrderedDict()
        self._streaming = threading.Lock()
        atexit.register(self.close)

    @property
    def name(self) -> str:
        return self._mesh.home.name

    @property
    def authority(self) -> str:
        """Hex SHA-256 of the cluster's CA key, which tells clusters of one name apart."""
        return self._mesh.file.ca_sha256

    @property
    def usable(self) -> bool:
        """Whether this is open and of this process (a forked child must connect anew)."""
        return not self._mesh.closed and self._mesh.pid == os.getpid()

    def check_reachable(self) -> None:
        """Raises UnreachableError when no node answers now: what is submitted would wait until one does."""
        self._mesh.check_reachable()

    # ---- running work

    def submit(self, fn: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """Run `fn(*args, **kwargs)` somewhere in the cluster; gives its Future, or, of a generator function, a Stream.

        Futures of this cluster may stand anywhere in the arguments: the task is run when they are done, with their
        results in their places. Keywords that are options (see `tasks.options.Options`) say how and where to run it;
        the others are the function's own. Raises NotPicklableError, PlacementError, LimitError, UsageError.
        """
        options, kwargs = split_options(keywords)
        yields = streaming.yields(fn)
        fn = profiling.applied(fn)
        payload, taken = inputs.dumps_call(args, kwargs)
        shipped = with_arguments(self._functions.ship(fn), (payload,))
        modules = compat.needed(shipped.modules, (payload,))
        read = self._mesh.blocks.read_by((payload,))
        shared = len(shipped.payload) < STREAMED_LIMIT_BYTES and not named_in(shipped.payload)
        if shared:
            job = self._stream(fn, shipped, options, modules, read, takes=bool(taken), yields=yields)
        else:
            job = self._launch(_spec(fn, shipped, options, modules, read, yields=yields))
        future = job.add_call(payload, taken)
        if not shared:
            job.close()
        return Stream(job, future, self._mesh.streams.taken) if yields else future

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **keywords: Any) -> MapResult:
        """Run `fn` on each element (or each tuple of elements) in parallel; gives the results in order.

        All keywords are options, see `submit`; elements may be, or hold, futures.
        """
        spec, payloads, taken = self._mapped("map", fn, iterables, keywords)
        job = self._launch(spec)
        if taken:
            job.add_calls(payloads, taken)
        else:
            job.add_many(payloads)
        job.close()
        return MapResult(job)

    def gang(self, fn: Callable[..., Any], n: int, /, *args: Any, restarts: int = 0, **keywords: Any) -> Gang:
        """Run `fn(*args, **kwargs)` as `n` ranks, all together or not at all; `kos.comm()` connects them. `restarts`:
        how often all start anew when one is lost. Options as for `submit`, of each rank, but `retries`."""
        call, options, kwargs = prepared(fn, keywords)
        payload = serialise.dumps_args(args, kwargs)
        shipped = with_arguments(self._functions.ship(call), (payload,))
        read = self._mesh.blocks.read_by((payload,))
        spec = _spec(call, shipped, options, compat.needed(shipped.modules, (payload,)), read)
        return Gang(self._mesh, self._launch, spec, payload, n, restarts)

    def gang_program(self, program: Program, n: int, restarts: int) -> Gang:
        """A script or command as the program of each rank, which may call `kos.comm()` itself."""
        spec = replace(program.spec, fn=serialise.dumps_callable(ProgramCall(script.run_command)))
        return Gang(self._mesh, self._launch, spec, program.payload, n, restarts)

    def detach(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **keywords: Any) -> DetachedJob:
        """As `map`, as a detached job: it goes on without this process and this machine.

        Its function, arguments and results are kept by two nodes. See `DetachedJob` for what to do with it.
        """
        spec, payloads, taken = self._mapped("detach", fn, iterables, keywords)
        if taken:
            raise UsageError("detach() takes no futures: its tasks outlive this process.", "Pass their results.")
        return detached.submit(self, self._mesh, spec, payloads, Kind.MAP)

    def detach_program(self, program: Program, kind: Kind) -> DetachedJob:
        """A script or command as a detached job."""
        return detached.submit(self, self._mesh, program.spec, [program.payload], kind)

    def attach(self, id: str) -> DetachedJob:
        """The detached job of this id. Raises NoSuchTaskError."""
        return DetachedJob(self._mesh, id)

    def start_kernel(self, spec: KernelSpec) -> RemoteKernel:
        """Run a Jupyter kernel on a node that has room, and wait until it is ready."""
        self.check_kernel(spec)
        return kernels.start(self._mesh, new_job_id(), spec)

    def check_kernel(self, spec: KernelSpec) -> None:
        """Raises what `start_kernel` raises at once: PlacementError, NoSuchNodeError, UnreachableError, AuthError."""
        self.possible(JobSpec(b"", options=spec.options, name="the kernel"))

    def kernel(self, id: str, node: str, node_name: str) -> RemoteKernel:
        """A kernel that was started on the node of this id."""
        return RemoteKernel(self._mesh, id, node, node_name)

    def launch(self, spec: JobSpec, id: str = "") -> Job:
        """A job of one's own; add tasks to it and close it. The level below `submit` and `map`."""
        return self._launch(spec, id)

    def gather(self, futures: Iterable[Any]) -> list[Any]:
        """The results of all, in order. When one fails the rest is cancelled; an interrupt cancels all.

        The error tells what else had failed by then, equal failures folded into one with a count.
        """
        waiting = list(futures)
        try:
            return [future.result() for future in waiting]
        except BaseException as error:
            ended = [future for future in waiting if future.done() and not future.cancelled()]
            failed = [other for future in ended if (other := future.exception()) is not None and other is not error]
            for future in waiting:
                future.cancel()
            failures.note_others(error, failed)
            raise

    def as_completed(self, futures: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
        """Each future as it gets done; see `concurrent.futures.as_completed`. An interrupt cancels the rest."""
        waiting = list(futures)
        try:
            yield from concurrent.futures.as_completed(waiting, timeout)
        except KeyboardInterrupt:
            for future in waiting:
                future.cancel()
            raise

    def put(self, value: Any, *, pin: bool = False) -> BlockRef:
        """Lay a value into the shared memory of this machine's node; tasks that are given the reference read it there.

        It lives as long as this process has a reference to it. With `pin` it is never moved to the disk. Raises
        NotPicklableError, ArenaFullError.
        """
        return self._mesh.blocks.put(value, pin=pin)

    def memory(self) -> dict[str, Usage]:
        """What the arena of each node holds, by the node's name."""
        return self._mesh.request_all(MemoryAsked(), Usage, VIEWS_ENOUGH_S)

    # ---- asking

    def nodes(self) -> list[dict[str, Any]]:
        """Each node as `kos cluster nodes --json` shows it."""
        told = self._mesh.request_all(wire.Nodes(), wire.SyncData, VIEWS_ENOUGH_S)
        return node_rows(newest(told.values()), {name: data.trouble for name, data in told.items()})

    def heard(self) -> wire.SyncData:
        """The nodes as this process has heard of them, which costs no message: what is looked at often."""
        return self._mesh.heard()

    @property
    def peer(self) -> Peer:
        """Who this process is in the cluster: its identity's name and role."""
        return self._mesh.credentials.peer

    def status(self) -> dict[str, Any]:
        """The cluster at a glance: alive nodes, slots, coordinator, this identity, and what a loss would mean."""
        return status_of(self.name, self._mesh.credentials.peer, self.nodes())

    def packages(self) -> dict[str, dict[str, str]]:
        """What is installed on each node that is linked: import name -> version."""
        return dict(self._mesh.packages)

    def jobs(self) -> list[JobSummary]:
        """The jobs of everybody, as the nodes know them."""
        told = self._mesh.request_all(wire.Jobs(), list[JobSummary]).values()
        return self._listed((job for jobs in told for job in jobs), detached.records(self._mesh))

    def jobs_told(self, timeout_s: float) -> list[JobSummary]:
        """As `jobs`, as one node tells it: what is looked at often. Raises UnreachableError.

        Each owner tells all nodes of its jobs, so one that was linked to a moment ago may not know all of them yet.
        """
        told = self._mesh.request(wire.Jobs(), list[JobSummary], timeout_s=timeout_s)
        kept = self._mesh.request(wire.DetachedJobs(), list[wire.DetachedJob], timeout_s=timeout_s)
        return self._listed(told, kept)

    def remembered_jobs(self) -> list[str]:
        """The ids of all jobs of whose tasks a node can tell, those of processes that are gone too; the newest last."""
        told = self._mesh.request_all(wire.RememberedJobs(), list[str]).values()
        return list(dict.fromkeys(job for jobs in told for job in jobs))

    def own_jobs(self) -> list[JobSummary]:
        """The jobs of this process; nobody is asked."""
        return [msgspec.structs.replace(job, user=self.peer.name) for job in self._mesh.summaries()]

    def states(self, job: str) -> bytes:
        """A byte a task of one of this process's jobs, an index of `core.jobrows.STATES`; empty for any other."""
        return self._mesh.states(job)

    def own_stories(self, job: str, indices: Collection[int]) -> list[Story]:
        """Every known attempt at these tasks of one of this process's jobs; nobody is asked."""
        return self._mesh.stories(job, indices)

    def _listed(self, told: Iterable[JobSummary], kept: Iterable[wire.DetachedJob]) -> list[JobSummary]:
        """One line a job: of several that tell of one, what is furthest on; the oldest first."""
        known = {job.job: job for job in self.own_jobs()}
        for job in told:
            if job.job not in known or job.done + job.failed >= known[job.job].done + known[job.job].failed:
                known[job.job] = job
        for record in kept:
            known[record.id] = detached.summary(record, known.get(record.id))
        return sorted(known.values(), key=lambda job: job.since_s)

    def logs(self, id: str) -> list[tuple[str, bytes]]:
        """The last output of a job's tasks, or of one task."""
        answers = self._mesh.request_all(wire.Logs(id), list[tuple[str, bytes]]).values()
        if not any(answers):
            return detached.tail(self._mesh, id)
        return sorted((log for logs in answers for log in logs), key=lambda log: _task_order(log[0]))

    def stories(self, id: str) -> list[Story]:
        """Every known attempt at a job's tasks, or at one task."""
        return merged(self._mesh.request_all(wire.Stories(id), list[Story]).values())

    def why(self, id: str) -> list[Why]:
        """Where a job's tasks, or one task, are and why; empty when nobody knows the id.

        A job of this process is told of as it is known here when no node answers.
        """
        job, _, index = id.partition(".")
        standing = self._mesh.standing(job)
        try:
            jobs, stories, nodes = self.jobs(), self.stories(id), self.nodes()
        except UnreachableError:
            if standing is None:
                raise
            jobs, nodes = self.own_jobs(), node_rows(self.heard(), {})
            wanted = [int(index)] if index.isascii() and index.isdigit() else range(len(self.states(job)))
            stories = self.own_stories(job, wanted)
        summary = next((known for known in jobs if known.job == job), None)
        return explain(id, summary, stories, nodes, standing or detached.standing(self._mesh, summary), time.time())

    def would_go(self, *, modules: tuple[str, ...] = (), **keywords: Any) -> WouldGo:
        """Where a task of these options (see `submit`) would go now, and why; nothing is run.

        `modules`: installed packages that it imports. Raises PlacementError as `submit` does.
        """
        options, own = split_options(keywords)
        if own:
            raise UsageError(f"would_go() has no option {next(iter(own))!r}.", "See the options of submit.")
        job = self.possible(JobSpec(b"", options=options, name=options.name or "such a task", modules=modules))
        placed, standing = self._mesh.would_go(job.needs)
        name = next((member.name for member in self._mesh.members if member.id == placed.node), "")
        return WouldGo(name, placed.reasons, standing)

    def cancel(self, id: str) -> bool:
        """Cancel a job or task by id, whoever submitted it. False when no node knows it."""
        if self._mesh.request(wire.CancelDetached(id), bool, timeout_s=detached.AGREED_TIMEOUT_S):
            return True
        return any(self._mesh.request_all(wire.CancelWork(id), bool).values())

    def mint_token(self, role: str, ttl_s: float) -> str:
        """A join token, for one use. Needs the role admin."""
        return self._mesh.request(wire.MintToken(role, ttl_s), str, timeout_s=DECISION_TIMEOUT_S)

    def lock(self, name: str, *, ttl: float = TTL_S, wait: float | None = None) -> Lock:
        """A named lock of the whole cluster, as a context manager with `.token` and `.held`; see `tasks.locking`.

        `ttl`: seconds for which it stays taken when this process is gone; it is renewed in time. `wait`: seconds to
        wait for it; 0: not at all, None: as long as it takes. Raises LockHeldError when it is not free in that time,
        and on leaving when the lease was lost.
        """
        for what, seconds in (("ttl", ttl), ("wait", wait or 0.0)):
            if not isinstance(seconds, int | float):
                raise UsageError(f"{what}={seconds!r} is not a number of seconds.", "Write for example ttl=30.")
        return Lock(self._mesh, name, float(ttl), None if wait is None else float(wait))

    def register(self, name: str) -> Register:
        """A small named text that the whole cluster agrees on: `.get()`, `.set(value)`, `.compare_and_set(old, new)`.

        Values are strings of up to 4,096 bytes, and None for one that is not set; all registers take 64 KiB at most.
        """
        return Register(self._mesh, name)

    def registers(self) -> dict[str, str]:
        """What each register holds that is set, by name."""
        return {name: value for name, value in read(self._mesh).items() if value is not None}

    def locks(self) -> list[HeldLock]:
        """The locks that are held, by name."""
        return self._mesh.request(LocksAsked(), list[HeldLock], timeout_s=DECISION_TIMEOUT_S)

    def drain_node(self, name: str, *, undo: bool = False) -> None:
        """Give a node no more work (what runs there goes on), or work again. Needs the role admin."""
        self._mesh.request(wire.DrainNode(name, not undo), bool, timeout_s=DECISION_TIMEOUT_S)

    def remove(self, name: str) -> list[str]:
        """Remove a node or client for good; the names removed, with those that came with it. Needs the role admin."""
        asked, question = to_ask(self.nodes(), name), wire.RemoveNode(name)
        try:
            return self._mesh.request(question, list[str], node=asked, timeout_s=REMOVAL_TIMEOUT_S)
        except UnreachableError:  # who was asked may have been removed itself, and was the first to answer
            another = to_ask(self.nodes(), name)
            if another == asked:
                raise
            return self._mesh.request(question, list[str], node=another, timeout_s=REMOVAL_TIMEOUT_S)

    def renew_node(self, name: str) -> float:
        """Have a node renew its certificate; when the new one ends (Unix seconds). Needs the role admin."""
        return self._mesh.request(wire.RenewNode(), float, node=name, timeout_s=REMOVAL_TIMEOUT_S)

    def renew(self) -> float:
        """Renew this machine's client certificate; when the new one ends (Unix seconds)."""
        return self._mesh.renew()

    def agreement(self, node: str) -> wire.ClusterStatus:
        """What a node knows of what the cluster has agreed on, and its clock."""
        return self._mesh.request(wire.Status(), wire.ClusterStatus, node=node)

    def stop_node(self, name: str) -> None:
        """Stop a node's daemon. Needs the role admin."""
        self._mesh.request(wire.StopNode(), bool, node=name)

    def close(self) -> None:
        """End the connection. Tasks that are not done are cancelled."""
        self._mesh.close()
        atexit.unregister(self.close)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<kos Cluster {self.name!r}{f': {showing.nodes(self._mesh.members)}' if self.usable else ' closed'}>"

    def _repr_html_(self) -> str:
        return showing.cluster(repr(self), self._mesh.members if self.usable else [])

    # ---- inside

    def _mapped(
        self, call: str, fn: Callable[..., Any], iterables: Sequence[Iterable[Any]], keywords: dict[str, Any]
    ) -> tuple[JobSpec, list[bytes], dict[int, inputs.Inputs]]:
        """A function with the arguments of each task, and the futures that some take, for the method named `call`."""
        options, own = split_options(keywords)
        if own:
            raise UsageError(f"{call}() has no option {next(iter(own))!r}.", "Bind it with functools.partial.")
        if not iterables:
            raise UsageError(f"{call}() needs at least one iterable.", f"Call it as cluster.{call}(fn, elements).")
        if streaming.yields(fn):
            raise UsageError(f"{call}() takes no generator function.", "Submit it, or let it return a list.")
        fn = profiling.applied(fn)
        payloads, taken = inputs.dumps_calls(zip(*iterables, strict=False))
        shipped = with_arguments(self._functions.ship(fn), payloads)
        read = self._mesh.blocks.read_by(payloads)
        return _spec(fn, shipped, options, compat.needed(shipped.modules, payloads), read), payloads, taken

    def _stream(
        self,
        fn: Callable[..., Any],
        shipped: Shipped,
        options: Options,
        modules: tuple[str, ...],
        read: Read,
        *,
        takes: bool,
        yields: bool,
    ) -> Job:
        """The job that submits of the same function, options, blocks and place share, so that they travel together.

        Calls that take futures have another one.
        """
        sink = options.sink or output.default_sink()
        key: tuple[Any, ...] = (shipped.key, id(sink), current_parent(), modules, read.blocks, takes)
        if options is not PLAIN:
            key += _told(options)
        with self._streaming:
            job = self._streams.get(key)
            if job is not None:
                self._streams.move_to_end(key)
                return job
        # Not under the lock: it asks the mesh thread, where a future's callback may submit, too.
        made = self._launch(_spec(fn, shipped, options, modules, read, sink, yields=yields))
        with self._streaming:
            job = self._streams.setdefault(key, made)
            over = self._streams.popitem(last=False)[1] if len(self._streams) > STREAMS_LIMIT else None
        for spare in (over, made if made is not job else None):
            if spare is not None:
                spare.close()
        return job

    def _launch(self, spec: JobSpec, id_: str = "") -> Job:
        job = self.possible(spec, id_)
        self._mesh.open(job)
        return job

    def possible(self, spec: JobSpec, id_: str = "") -> Job:
        """The job, not yet begun. Raises AuthError, or PlacementError when no node can ever run it."""
        role = self._mesh.credentials.peer.role
        if not may(role, Command.SUBMIT):
            raise AuthError(
                f"The role {role} of {self._mesh.credentials.peer.name} may look, but not run work.",
                "Join with a token for the role client.",
            )
        job = Job(id_ or new_job_id(), spec, spec.sink or output.default_sink(), self._mesh, current_parent())
        if job.needs.near or job.needs.apart:
            find_related(self, self._mesh, job.needs, driven=bool(id_))
        never = self._mesh.why_never(job)
        if never:
            raise _impossible(job, never)
        return job


def _impossible(job: Job, never: Sequence[str]) -> KosError:
    """Why no node can ever run this job, by each node's reason; of a node that was named, that one's alone."""
    reasons = [reason for reason in never if reason.startswith(f"{job.needs.on}: ")] or list(never)
    said = f"No node can run {job.spec.name}: {'; '.join(reasons)}."
    if all(UNREADABLE in reason for reason in reasons):
        install = compat.installing(machine.versions())
        return IncompatibleError(
            said, f"Type there, for the Python that runs KOS: python -m {install}; then 'kos down' and 'kos up'."
        )
    return PlacementError(said, "Type 'kos cluster nodes' to see them.")


def current_parent() -> str:
    """The attempt that this code runs in, as OWNER/JOB.INDEX#ATTEMPT; empty outside of tasks."""
    task = os.environ.get("KOS_TASK")
    return f"{os.environ.get('KOS_OWNER', '')}/{task}#{os.environ.get('KOS_ATTEMPT', '1')}" if task else ""


def new_job_id() -> str:
    """Eight characters, without those that look alike."""
    number = secrets.randbits(8 * _JOB_ID_BYTES)
    return "".join(_ALPHABET[(number >> 5 * place) & 31] for place in range(8))


def _task_order(task: str) -> tuple[str, int]:
    job, _, index = task.partition(".")
    return job, int(index) if index.isdigit() else -1


def _told(options: Options) -> tuple[Any, ...]:
    """What distinguishes options from others, as a key; the sink is told apart by its owner."""
    told = vars(options) | {name: _pairs(getattr(options, name)) for name in ("env", "resources")}
    return tuple(value for name, value in told.items() if name != "sink")


def _pairs(mapping: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(mapping.items())) if mapping else ()


def current_folder() -> str:
    """The current folder, for the tasks to work in where it exists; empty when it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _spec(
    fn: Callable[..., Any],
    shipped: Shipped,
    options: Options,
    modules: tuple[str, ...],
    read: Read,
    sink: output.Sink | None = None,
    *,
    yields: bool = False,
) -> JobSpec:
    environment = Environment(
        modules=shipped.local_modules,
        environ=dict(options.env or {}),
        threads=options.cpus,
        cwd=current_folder(),
        fresh=options.fresh,
    )
    name = options.name or getattr(fn, "__qualname__", type(fn).__name__)
    sink = sink or options.sink
    return JobSpec(shipped.payload, environment, shipped.parts, options, sink, name, modules, yields, reads=read.inputs)
