"""The cluster as a program sees it: `connect`, `submit`, `map`, and what can be asked of it.

Rules. One connection per process and cluster; it works inside tasks too, whose submissions belong to the task's
attempt. Functions and arguments are pickled in the caller's thread at the time of the call, so later changes don't
matter and errors appear where they are made.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos_cluster.core.arena import Usage
from kos_cluster.core.driving import Kind
from kos_cluster.core.records import JobSummary, Story
from kos_cluster.errors import UnreachableError, UsageError
from kos_cluster.home import Home
from kos_cluster.net import wire
from kos_cluster.net.administration import ClusterStatus, DrainNode, MintToken, RemoveNode, RenewNode, Status, StopNode
from kos_cluster.net.blocks import MemoryAsked
from kos_cluster.net.detached import CancelDetached
from kos_cluster.net.engines import EngineCertificate
from kos_cluster.net.identity import Peer
from kos_cluster.net.locks import HeldLock, LocksAsked
from kos_cluster.tasks import (
    detached,
    enginekeys,
    failures,
    inputs,
    joblist,
    kernels,
    portforwarding,
    profiling,
    script,
    serialise,
    showing,
    streaming,
)
from kos_cluster.tasks.asking import DECISION_TIMEOUT_S, VIEWS_ENOUGH_S
from kos_cluster.tasks.blocks import BlockRef
from kos_cluster.tasks.comm.ranks import ProgramCall
from kos_cluster.tasks.detached import DetachedJob
from kos_cluster.tasks.enginekeys import Credentials
from kos_cluster.tasks.gangs import Gang, prepared
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.kernels import KernelSpec, RemoteKernel
from kos_cluster.tasks.launching import Program
from kos_cluster.tasks.locking import TTL_S, Lock
from kos_cluster.tasks.mapresult import MapResult
from kos_cluster.tasks.mesh import Mesh
from kos_cluster.tasks.nodes import newest, node_rows, status_of, to_ask
from kos_cluster.tasks.options import split_options
from kos_cluster.tasks.portforwarding import ForwardedPort
from kos_cluster.tasks.registers import FAILOVER_S, Register, read
from kos_cluster.tasks.stories import merged
from kos_cluster.tasks.streaming import Stream
from kos_cluster.tasks.submission import Submission, new_job_id
from kos_cluster.tasks.why import Why, WouldGo, explain

if TYPE_CHECKING:
    from kos_cluster.services.engines.engine import Connection
    from kos_cluster.services.engines.launching import Launcher, Owners

REMOVAL_TIMEOUT_S = 30.0  # for a node's answer; longer than it and the coordinator take at most

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
        self._submission = Submission(mesh)
        self._engines: dict[str, Connection] = {}  # that `engine` has connected to, by name
        self._owners: Owners | None = None  # of what runs on engines
        self._opening = threading.Lock()  # an engine
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
        job, shared = self._submission.job_of(fn, payload, options, takes=bool(taken), yields=yields)
        future = job.add_call(payload, taken)
        if not shared:
            job.close()
        return Stream(job, future, self._mesh.streams.taken) if yields else future

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **keywords: Any) -> MapResult:
        """Run `fn` on each element (or each tuple of elements) in parallel; gives the results in order.

        All keywords are options, see `submit`; elements may be, or hold, futures. The iterables are gone through at
        once, up to the end of the shortest, so one of them has to end.
        """
        spec, payloads, taken = self._submission.mapped("map", fn, iterables, keywords)
        job = self._submission.launch(spec)
        if taken:
            job.add_calls(payloads, taken)
        else:
            job.add_many(payloads)
        job.close()
        return MapResult(job)

    def gang(
        self,
        fn: Callable[..., Any],
        n: int,
        /,
        *args: Any,
        restarts: int = 0,
        vital: int | None = None,
        **keywords: Any,
    ) -> Gang:
        """Run `fn(*args, **kwargs)` as `n` ranks, all together or not at all; `kos.comm()` connects them. `restarts`:
        how often all start anew when one is lost. `vital`: only the ranks below it end the gang when they are lost or
        raise, all by default. Options as for `submit`, of each rank, but `retries`."""
        call, options, kwargs = prepared(fn, keywords)
        payload = serialise.dumps_args(args, kwargs)
        spec = self._submission.spec(call, (payload,), options)
        return Gang(self._mesh, self._submission.launch, spec, payload, n, restarts, vital)

    def gang_program(self, program: Program, n: int, restarts: int) -> Gang:
        """A script or command as the program of each rank, which may call `kos.comm()` itself."""
        spec = replace(program.spec, fn=serialise.dumps_callable(ProgramCall(script.run_command)))
        return Gang(self._mesh, self._submission.launch, spec, program.payload, n, restarts)

    def detach(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **keywords: Any) -> DetachedJob:
        """As `map`, as a detached job: it goes on without this process and this machine.

        Its function, arguments and results are kept by two nodes. See `DetachedJob` for what to do with it.
        """
        spec, payloads, taken = self._submission.mapped("detach", fn, iterables, keywords)
        if taken:
            raise UsageError("detach() takes no futures: its tasks outlive this process.", "Pass their results.")
        return detached.submit(self._mesh, self._submission.possible(spec), payloads, Kind.MAP)

    def detach_program(self, program: Program, kind: Kind) -> DetachedJob:
        """A script or command as a detached job."""
        return detached.submit(self._mesh, self._submission.possible(program.spec), [program.payload], kind)

    def attach(self, id: str) -> DetachedJob:
        """The detached job of this id. Raises NoSuchTaskError."""
        return DetachedJob(self._mesh, id)

    def start_kernel(self, spec: KernelSpec) -> RemoteKernel:
        """Run a Jupyter kernel on a node that has room, and wait until it is ready."""
        self.check_kernel(spec)
        return kernels.start(self._mesh, new_job_id(), spec)

    def check_kernel(self, spec: KernelSpec) -> None:
        """Raises what `start_kernel` raises at once: PlacementError, NoSuchNodeError, UnreachableError, AuthError."""
        self._submission.possible(JobSpec(b"", options=spec.options, name="the kernel"))

    def kernel(self, id: str, node: str, node_name: str) -> RemoteKernel:
        """A kernel that was started on the node of this id."""
        return RemoteKernel(self._mesh, id, node, node_name)

    def on_engine(self, name: str) -> Launcher:
        """An engine in the place of the mesh: its `map` is as this one's, and runs there. `name`: or its kind.

        Raises EngineError when none of them serves.
        """
        from kos_cluster.services.engines import launching

        with self._opening:
            self._owners = self._owners or launching.Owners(self, self._mesh)
        return launching.launcher(self._owners, self._submission, name)

    def launch(self, spec: JobSpec, id: str = "") -> Job:
        """A job of one's own; add tasks to it and close it. The level below `submit` and `map`."""
        return self._submission.launch(spec, id)

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

    def engine(self, name: str) -> Any:
        """The engine of this name, or the only one of this kind, as its own users know it: of Dask a connected
        `distributed.Client`. It is closed with this connection. Raises EngineError, UnreachableError, UsageError.
        """
        from kos_cluster.services.engines import control  # here, as it is not needed by most, and is built on this

        with self._opening:
            known = self._engines.get(name)
            if known is not None and not known.usable:
                known.close()
            if known is None or not known.usable:
                known = self._engines[name] = control.open_engine(self, name)
            return known.client

    def leave_engine(self, id: str, *names: str) -> None:
        """Cancel what runs there, and close what `engine` has connected to by these names: it is about to be stopped,
        and a client that is left behind tells of that on stderr.
        """
        if self._owners is not None:
            self._owners.leave(id)
        with self._opening:
            left = [self._engines.pop(name) for name in names if name in self._engines]
        for connection in left:
            connection.close()

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
        return joblist.everybodys(self._mesh)

    def jobs_told(self, timeout_s: float) -> list[JobSummary]:
        """As `jobs`, as one node tells it: what is looked at often. Raises UnreachableError.

        Each owner tells all nodes of its jobs, so one that was linked to a moment ago may not know all of them yet.
        """
        return joblist.as_one_node_tells(self._mesh, timeout_s)

    def remembered_jobs(self) -> list[str]:
        """The ids of all jobs of whose tasks a node can tell, those of processes that are gone too; the newest last."""
        told = self._mesh.request_all(wire.RememberedJobs(), list[str]).values()
        return list(dict.fromkeys(job for jobs in told for job in jobs))

    def own_jobs(self) -> list[JobSummary]:
        """The jobs of this process; nobody is asked."""
        return joblist.own(self._mesh)

    def states(self, job: str) -> bytes:
        """A byte a task of one of this process's jobs, an index of `core.jobrows.STATES`; empty for any other."""
        return self._mesh.jobs.states(job)

    def own_stories(self, job: str, indices: Collection[int]) -> list[Story]:
        """Every known attempt at these tasks of one of this process's jobs; nobody is asked."""
        return self._mesh.jobs.stories(job, indices)

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
        standing = self._mesh.placing.standing(job)
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
        job = self._submission.possible(
            JobSpec(b"", options=options, name=options.name or "such a task", modules=modules)
        )
        placed, standing = self._mesh.placing.would_go(job.needs)
        name = next((member.name for member in self._mesh.members if member.id == placed.node), "")
        return WouldGo(name, placed.reasons, standing)

    def cancel(self, id: str) -> bool:
        """Cancel a job or task by id, whoever submitted it. False when no node knows it."""
        if self._mesh.request(CancelDetached(id), bool, timeout_s=detached.AGREED_TIMEOUT_S):
            return True
        if any(self._mesh.request_all(wire.CancelWork(id), bool).values()):
            return True
        return self._mesh.more_linked() and any(self._mesh.request_all(wire.CancelWork(id), bool).values())

    def mint_token(self, role: str, ttl_s: float) -> str:
        """A join token, for one use. Needs the role admin."""
        return self._mesh.request(MintToken(role, ttl_s), str, timeout_s=DECISION_TIMEOUT_S)

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

    def registers(self, patience_s: float = FAILOVER_S) -> dict[str, str]:
        """What each register holds that is set, by name. `patience_s`: for which an answer is looked for."""
        told = read(self._mesh, patience_s=patience_s)
        return {name: value for name, value in told.items() if value is not None}

    def locks(self) -> list[HeldLock]:
        """The locks that are held, by name."""
        return self._mesh.request(LocksAsked(), list[HeldLock], timeout_s=DECISION_TIMEOUT_S)

    def drain_node(self, name: str, *, undo: bool = False) -> None:
        """Give a node no more work (what runs there goes on), or work again. Needs the role admin."""
        self._mesh.request(DrainNode(name, not undo), bool, timeout_s=DECISION_TIMEOUT_S)

    def remove(self, name: str) -> list[str]:
        """Remove a node or client for good; the names removed, with those that came with it. Needs the role admin."""
        asked, question = to_ask(self.nodes(), name), RemoveNode(name)
        try:
            return self._mesh.request(question, list[str], node=asked, timeout_s=REMOVAL_TIMEOUT_S)
        except UnreachableError:  # who was asked may have been removed itself, and was the first to answer
            another = to_ask(self.nodes(), name)
            if another == asked:
                raise
            return self._mesh.request(question, list[str], node=another, timeout_s=REMOVAL_TIMEOUT_S)

    def renew_node(self, name: str) -> float:
        """Have a node renew its certificate; when the new one ends (Unix seconds). Needs the role admin."""
        return self._mesh.request(RenewNode(), float, node=name, timeout_s=REMOVAL_TIMEOUT_S)

    def forward_port(self, node: str, port: int, *, local_port: int = 0) -> ForwardedPort:
        """Have a port of this machine's loopback (0: any) lead to one of a node's, for a browser, until it is closed.

        Raises NoSuchNodeError, UnreachableError, PortTakenError, AuthError for who may not submit work, UsageError.
        """
        return portforwarding.forward(self._mesh, node, port, local_port)

    def engine_keys(self, engine: str, host: str) -> Credentials:
        """A key of this process, with a certificate of the engine's own authority for a part that is reached at `host`.

        Raises UsageError, AuthError when one may not submit work, UnreachableError.
        """
        return enginekeys.certified(self._mesh, engine, host)

    def engine_certificate(self, engine: str, request_pem: bytes, host: str) -> EngineCertificate:
        """As `engine_keys`, for a process that has made its key and request itself, and has no connection."""
        return enginekeys.issued(self._mesh, engine, request_pem, host)

    def renew(self) -> float:
        """Renew this machine's client certificate; when the new one ends (Unix seconds)."""
        return self._mesh.renew()

    def agreement(self, node: str) -> ClusterStatus:
        """What a node knows of what the cluster has agreed on, and its clock."""
        return self._mesh.request(Status(), ClusterStatus, node=node)

    def stop_node(self, name: str) -> None:
        """Stop a node's daemon. Needs the role admin."""
        self._mesh.request(StopNode(), bool, node=name)

    def close(self) -> None:
        """End the connection. Tasks that are not done are cancelled, those on engines too."""
        if self._owners is not None:
            self._owners.close()
        while self._engines:
            self._engines.popitem()[1].close()
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


def _task_order(task: str) -> tuple[str, int]:
    job, _, index = task.partition(".")
    return job, int(index) if index.isdigit() else -1
