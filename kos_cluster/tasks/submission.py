"""What a call of `submit`, `map`, `gang` or `detach` becomes: a job, with all that must travel for its function to run.

Theory of operation. A `JobSpec` is made of a function, of its options, and of what it and its arguments name: local
modules, which travel along, installed packages, which a node must have, and blocks. Submits whose jobs would be equal
share one, so that they travel together; the last `STREAMS_LIMIT` of those are kept open for further ones.

Rules: everything is pickled in the caller's thread, at the time of the call. What no node can ever run, or this
identity may not, is refused before anything of it is sent.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kos_cluster.core.placement import UNREADABLE
from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, IncompatibleError, KosError, PlacementError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.node import machine
from kos_cluster.tasks import compat, inputs, output, profiling, streaming
from kos_cluster.tasks.context import here
from kos_cluster.tasks.functions import Functions, Shipped, with_arguments
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.joblist import everybodys
from kos_cluster.tasks.options import PLAIN, Options, split_options
from kos_cluster.tasks.ownblocks import Read
from kos_cluster.tasks.relating import find_related

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh

STREAMS_LIMIT = 128  # kinds of submit (function, options) whose tasks share a job
_OF_TASK = "KOS_TASK" in os.environ  # this process was started by a task, which is told by its environment
STREAMED_LIMIT_BYTES = 1 << 18  # of a function whose job is kept open for further submits; none that refers to a block
_JOB_ID_BYTES = 5
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Submission:
    """Makes and begins the jobs of one connection. Any thread."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._functions = Functions()
        self._streams: OrderedDict[tuple[Any, ...], Job] = OrderedDict()
        self._streaming = threading.Lock()

    def job_of(
        self, fn: Callable[..., Any], payload: bytes, options: Options, *, takes: bool, yields: bool
    ) -> tuple[Job, bool]:
        """The job for one call with these pickled arguments, and whether others share it: else the caller closes it.

        `takes`: the call takes futures; `yields`: it gives a generator.
        """
        shipped = with_arguments(self._functions.ship(fn), (payload,))
        modules = compat.needed(shipped.modules, (payload,))
        read = self._mesh.blocks.read_by((payload,))
        if len(shipped.payload) < STREAMED_LIMIT_BYTES and not shipped.names_blocks:
            return self._stream(fn, shipped, options, modules, read, takes=takes, yields=yields), True
        return self.launch(_spec(fn, shipped, options, modules, read, yields=yields)), False

    def spec(self, fn: Callable[..., Any], payloads: Sequence[bytes], options: Options) -> JobSpec:
        """What to run, of a function and the pickled arguments of each task."""
        shipped = with_arguments(self._functions.ship(fn), payloads)
        read = self._mesh.blocks.read_by(payloads)
        return _spec(fn, shipped, options, compat.needed(shipped.modules, payloads), read)

    def mapped(
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
        return self.spec(fn, payloads, options), payloads, taken

    def launch(self, spec: JobSpec, id_: str = "") -> Job:
        """Begin a job; the caller adds its tasks and closes it. Raises as `possible` does."""
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
            find_related(everybodys(self._mesh), self._mesh, job.needs, driven=bool(id_))
        never = self._mesh.placing.why_never(job)
        if never:
            raise _impossible(job, never)
        return job

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
        made = self.launch(_spec(fn, shipped, options, modules, read, sink, yields=yields))
        with self._streaming:
            job = self._streams.setdefault(key, made)
            over = self._streams.popitem(last=False)[1] if len(self._streams) > STREAMS_LIMIT else None
        for spare in (over, made if made is not job else None):
            if spare is not None:
                spare.close()
        return job


def new_job_id() -> str:
    """Eight characters, without those that look alike."""
    number = secrets.randbits(8 * _JOB_ID_BYTES)
    return "".join(_ALPHABET[(number >> 5 * place) & 31] for place in range(8))


def current_parent() -> str:
    """The attempt that this code runs in, as OWNER/JOB.INDEX#ATTEMPT; empty outside of tasks."""
    if here.arena is None and not _OF_TASK:
        return ""
    task = os.environ.get("KOS_TASK")
    return f"{os.environ.get('KOS_OWNER', '')}/{task}#{os.environ.get('KOS_ATTEMPT', '1')}" if task else ""


def current_folder() -> str:
    """The current folder, for the tasks to work in where it exists; empty when it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


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


def _told(options: Options) -> tuple[Any, ...]:
    """What distinguishes options from others, as a key; the sink is told apart by its owner."""
    told = vars(options) | {name: _pairs(getattr(options, name)) for name in ("env", "resources")}
    return tuple(value for name, value in told.items() if name != "sink")


def _pairs(mapping: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(mapping.items())) if mapping else ()
