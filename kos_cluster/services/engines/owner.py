"""This process's tasks on one engine: the table that the mesh thread keeps for those on the mesh (`tasks.owning`).

Theory of operation. A job adds tasks; here they wait for their turn, go to the engine as `HostedCall`s, and settle the
job when they come back. What a call says meanwhile goes to the job's sink. A call whose worker died is sent again, as
often as the job's retries allow; what an engine's own worker takes with it when it dies, the engine runs again, as it
does for all its tasks.

Rules. One thread decides everything; others leave it notes. At most `OUT_LIMIT` calls of a job, or as many as its group
has for a cap, are with the engine. Pickles of `INLINE_BYTES` and more do not go through the engine: they are laid into
the memory of this machine's node, where there is one, and each node that needs them reads them there once. Tasks of an
engine take no futures of the mesh.

Limits: the stories of `JOBS_KEPT` jobs that are over.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import os
import queue
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

import msgspec

from kos_cluster.core.jobrows import STATES
from kos_cluster.core.records import AttemptEnd, JobSummary, Needs, Runs, Story, TaskState
from kos_cluster.errors import ArenaFullError, EngineError, StateError, TaskLostError, UnreachableError, UsageError
from kos_cluster.services.engines.calls import BEGUN, DISPLAY, DISPLAY_END, Ended, HostedCall
from kos_cluster.services.engines.calltables import Group, Row, Table
from kos_cluster.services.engines.engine import Connection
from kos_cluster.tasks import blocks
from kos_cluster.tasks.futures import Outcome, Settled
from kos_cluster.tasks.inputs import Inputs
from kos_cluster.tasks.job import Job
from kos_cluster.tasks.losses import loss_error
from kos_cluster.tasks.mesh import Mesh
from kos_cluster.tasks.output import PROGRESS_AFTER_S, PROGRESS_EVERY_S, tell

OUT_LIMIT = 512  # calls of one job that are with the engine at once
INLINE_BYTES = 256 << 10
JOBS_KEPT = 64
_STATE_CODES = {state: code for code, state in enumerate(STATES)} | {TaskState.RUNNING: STATES.index(TaskState.SENT)}


_owners: weakref.WeakSet[EngineOwner] = weakref.WeakSet()


def engine_of(job: str) -> str:
    """The name of the engine that a job of this process runs on, or ran; empty: it is none of an engine."""
    return next((owner.engine for owner in list(_owners) if owner.knows(job)), "")


class EngineOwner:
    """See `tasks.owning.Owner`. `mesh` is the process's connection to the cluster, which has the blocks."""

    def __init__(self, engine: str, cpus: int, connection: Connection, mesh: Mesh) -> None:
        """`cpus`: of each worker of the engine of this name."""
        self.engine = engine
        self.cpus = cpus
        self.pid = os.getpid()
        self.closed = False
        self.blocks = mesh.blocks
        self.holding = self.jobs = self.placing = self
        self._connection = connection
        self._user = mesh.credentials.peer.name
        self._tables: dict[str, Table] = {}  # those that are over last; changed in the owner's thread alone
        self._groups: weakref.WeakValueDictionary[str, Group] = weakref.WeakValueDictionary()  # by name
        self._active: set[Table] = set()
        self._notes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._noting = threading.Lock()
        self._stopped = False
        self._left = False  # the engine
        self._thread = threading.Thread(target=self._serve, name="kos-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        mesh.jobs.elsewhere.append(self)
        self._listed = mesh.jobs.elsewhere
        self._announce = mesh.announce
        _owners.add(self)

    @property
    def usable(self) -> bool:
        """Whether this is open, of this process, and the engine has not gone."""
        return self._open and self._connection.usable

    @property
    def _open(self) -> bool:
        return not self.closed and self.pid == os.getpid()

    def open(self, job: Job) -> None:
        """Make a job known, before its first task."""
        self._note(self._open_job, job)
        self.blocks.used(job.spec.fn)

    def close(self) -> None:
        """Cancel what is not done, and leave the engine. Nothing is taken from the beginning of this on."""
        if self.pid != os.getpid():
            return
        with self._noting:
            if not self.closed:
                self.closed = True
                self._notes.put(self._stop)
        self._thread.join()
        with self._noting:
            if self._left:  # another thread has closed this too
                return
            self._left = True
        self._listed.remove(self)
        self._connection.close()
        atexit.unregister(self.close)

    # ---- tasks.owning.Owner; any thread

    def added(self, job: Job, count: int, size_bytes: int) -> None:
        self._note(self._add, job, count)

    def resumed(self, job: Job, count: int, size_bytes: int, settled: Runs) -> None:
        raise AssertionError("an engine drives no detached jobs")

    def cancel(self, job: Job, index: int | None, *, waiting: bool = False) -> None:
        self._note(self._cancel, job, index, waiting)

    def close_job(self, job: Job) -> None:
        self._note(self._close_job, job)

    def admit(self, taken: Collection[Inputs]) -> None:
        if any(taken):
            raise UsageError("A task on an engine takes no futures of the cluster.", "Pass their result() instead.")

    def add(self, job: Job, start: int, payloads: Sequence[bytes], inputs: Mapping[int, Inputs]) -> None:
        raise AssertionError("none was admitted")

    def summary(self, job: Job) -> JobSummary | None:
        table = self._tables.get(job.id)
        return table.summary() if table is not None else None

    def stories(self, job: str, indices: Collection[int]) -> list[Story]:
        table = self._tables.get(job)
        rows = [table.rows[index] for index in indices if index < len(table.rows)] if table is not None else []
        return [Story(f"{job}.{row.index}", table.name, row.state, tuple(row.attempts)) for row in rows if table]

    def standing(self, job: str) -> tuple[Needs, tuple[str, ...]] | None:
        return None

    # ---- tasks.owning.Elsewhere; any thread

    def summaries(self) -> list[JobSummary]:
        return [table.summary() for table in self._tables.copy().values()]

    def states(self, job: str) -> bytes:
        table = self._tables.get(job)
        return bytes(_STATE_CODES[row.state] for row in list(table.rows)) if table is not None else b""

    def knows(self, job: str) -> bool:
        """Whether it has this job, or had it lately."""
        return job in self._tables

    def cancel_wanted(self, job: str, index: int | None) -> None:
        with suppress(StateError):  # its tasks end with the connection
            self._note(self._cancel_named, job, index)

    # ---- the thread

    def _note(self, call: Callable[..., None], *args: object) -> None:
        with self._noting:
            if self.closed:
                raise StateError(f"The connection to engine {self.engine} is closed.", "Ask for the engine again.")
            self._notes.put(functools.partial(call, *args))

    def _serve(self) -> None:
        try:
            self._take_notes()
            failure = StateError(f"The connection to engine {self.engine} was closed.", "Ask for the engine again.")
        except BaseException as error:
            traceback.print_exc()
            told = f"The thread of engine {self.engine} has failed ({error!r})."
            failure = StateError(told, "Ask for the engine again, and report it.")
        with self._noting:
            self.closed = True
        for table in self._tables.values():
            if table.job is not None:
                table.job.abandon(failure)

    def _take_notes(self) -> None:
        """Until this is to stop. Progress is shown in between, however many notes there are."""
        show_s = time.monotonic()
        while not self._stopped:
            with suppress(queue.Empty):
                note = self._notes.get(timeout=max(0.0, show_s - time.monotonic()) if self._active else None)
                note()
            if time.monotonic() >= show_s:
                self._show_progress()
                show_s = time.monotonic() + PROGRESS_EVERY_S

    def _stop(self) -> None:
        self._stopped = True
        for table in list(self._active):
            if table.job is not None:
                self._cancel(table.job, None, False)

    def _open_job(self, job: Job) -> None:
        options = job.spec.options
        group = Group(options.max_parallel or OUT_LIMIT, options.max_parallel > 0)
        if job.spec.group:
            group = self._groups.setdefault(job.spec.group, group)
        self._tables[job.id] = Table(job.id, job.spec.name, self._user, self.engine, job, group)
        self._announce()

    def _add(self, job: Job, count: int) -> None:
        table = self._tables[job.id]
        rows = table.add(count)
        if table not in self._active:
            job.since_s = time.monotonic()
            self._active.add(table)
        table.group.waiting.extend((table, row) for row in rows)
        self._dispatch(table.group)

    def _dispatch(self, group: Group) -> None:
        """Send what may go."""
        while group.waiting and group.out < group.limit:
            table, row = group.waiting.popleft()
            if row.state is TaskState.WAITING and table.job is not None:
                self._send(table, table.job, row)

    def _send(self, table: Table, job: Job, row: Row) -> None:
        spec, options = job.spec, job.spec.options
        try:
            self._check_usable()
            table.fn = table.fn or self._carried(spec.fn, table.kept)
            (args,) = job.payloads([(row.index, 1)])
            call = HostedCall(
                job.id,
                row.index,
                1 + len(row.attempts),
                self._user,
                table.fn,
                self._carried(args, row.kept),
                job.parts[job.env_hash],
                {hash_: bytes(data) for hash_, data in spec.parts.items()},
                options.seed,
                options.timeout,
            )
            retries = max(0, options.retries - row.losses)
            sent = self._connection.submit(
                call, cpus=options.cpus, retries=retries, write=functools.partial(self._said, job, table, row)
            )
        except Exception as error:  # what it cannot take fails this task, and not this thread
            self._settle(table, row, error)
            return
        table.move(row, TaskState.SENT)
        row.sent, row.sent_s = sent, time.time()
        table.group.out += 1
        sent.add_done_callback(lambda sent: self._notes.put(functools.partial(self._came, table, row, sent)))

    def _check_usable(self) -> None:
        if not self._connection.usable:
            raise EngineError(
                f"Engine {self.engine} does not answer any more.", f"Type 'kos engine status {self.engine}'."
            )

    def _carried(self, data: bytes, kept: list[blocks.BlockRef]) -> bytes:
        """A pickle as it goes to the engine: itself, or one that reads it from a block."""
        if len(data) < INLINE_BYTES:
            return data
        try:
            kept.append(self.blocks.lay([data]))
        except (UsageError, ArenaFullError, UnreachableError):  # there is no node here, or it has no room
            return data
        return blocks.stand_in(kept[-1])

    def _said(self, job: Job, table: Table, row: Row, stream: str, text: str) -> None:
        """What a call says; in the connection's thread."""
        task = f"{table.id}.{row.index}"
        if stream == BEGUN:
            self._notes.put(functools.partial(self._begun, table, row, text))
        elif row.state in (TaskState.SENT, TaskState.RUNNING):  # else it was cancelled
            if stream == DISPLAY:
                row.display += text
                if text.endswith(DISPLAY_END):
                    content, row.display = msgspec.json.decode(row.display), ""
                    tell(job.sink.display, task, content)
            else:
                tell(job.sink.write, task, stream, text.encode())

    def _begun(self, table: Table, row: Row, node: str) -> None:
        if row.state not in (TaskState.SENT, TaskState.RUNNING):  # it was cancelled meanwhile
            return
        if row.attempts and row.attempts[-1].end is AttemptEnd.OPEN:  # its engine's worker was lost, and it runs again
            row.close(AttemptEnd.NODE_LOST)
        table.began(row, node)
        if row.state is TaskState.SENT:
            table.move(row, TaskState.RUNNING)

    def _came(self, table: Table, row: Row, sent: concurrent.futures.Future[Ended]) -> None:
        """A call is done, or was cancelled."""
        table.group.out -= 1
        row.kept.clear()
        if row.state in (TaskState.SENT, TaskState.RUNNING):
            if sent.cancelled():
                self._settle(table, row, None)
            elif (error := sent.exception()) is not None:
                self._failed(table, row, error)
            else:
                self._ended(table, row, sent.result())
        self._dispatch(table.group)

    def _failed(self, table: Table, row: Row, error: BaseException) -> None:
        if isinstance(error, TaskLostError):
            row.close(AttemptEnd.NODE_LOST, error.message)
            error = TaskLostError(f"Task {table.id}.{row.index} was lost: {error.message}", error.hint)
        self._settle(table, row, error)

    def _ended(self, table: Table, row: Row, ended: Ended) -> None:
        row.close(ended.end, ended.detail)
        job = table.job
        if ended.end in (AttemptEnd.DONE, AttemptEnd.FAILED):
            outcome = Outcome(ended.payload, ended.end is AttemptEnd.FAILED)
            if ended.blocks:
                self.blocks.claim(ended.node, ended.blocks, outcome)
            self._settle(table, row, outcome)
            return
        if ended.end is AttemptEnd.CANCELLED:
            self._settle(table, row, None)
            return
        lost = ended.end is not AttemptEnd.TIMEOUT
        if lost and job is not None and row.losses < job.spec.options.retries:
            row.losses += 1
            table.move(row, TaskState.WAITING)
            table.group.waiting.appendleft((table, row))
            return
        told = loss_error(f"{table.id}.{row.index}", ended.end, ended.node, len(row.attempts), ended.detail)
        self._settle(table, row, type(told)(told.message))  # the hint is of the mesh's tasks alone

    def _settle(self, table: Table, row: Row, settled: Settled) -> None:
        if isinstance(settled, Outcome) and not settled.failed:
            table.move(row, TaskState.DONE)
        else:
            table.move(row, TaskState.CANCELLED if settled is None else TaskState.FAILED)
        row.sent = None
        table.left -= 1
        if table.job is not None:
            table.job.settle_all([(row.index, 1)], settled)
        if not table.left:
            self._idle(table)

    def _cancel_named(self, id_: str, index: int | None) -> None:
        table = self._tables.get(id_)
        if table is not None and table.job is not None:
            self._cancel(table.job, index, False)

    def _cancel(self, job: Job, index: int | None, waiting: bool) -> None:
        table = self._tables.get(job.id)
        if table is None:
            return
        for row in table.rows if index is None else table.rows[index : index + 1]:
            self._cancel_row(table, row, waiting)

    def _cancel_row(self, table: Table, row: Row, waiting: bool) -> None:
        if row.state not in (TaskState.WAITING, TaskState.SENT, TaskState.RUNNING):
            return
        if waiting and (row.state is TaskState.RUNNING or (table.group.capped and row.state is TaskState.SENT)):
            return
        sent = row.sent
        row.close(AttemptEnd.CANCELLED)
        self._settle(table, row, None)
        if sent is not None:
            sent.cancel()  # its end is noted, and is no news then

    # ---- jobs

    def _idle(self, table: Table) -> None:
        """All tasks so far are final."""
        self._active.discard(table)
        job = table.job
        if job is None:
            return
        if job.progress_shown:
            job.progress_shown = False
            tell(job.sink.finished, table.summary())
        if job.closed:
            self._retire(table, job)

    def _close_job(self, job: Job) -> None:
        job.closed = True
        table = self._tables.get(job.id)
        if table is not None and not table.left:
            self._retire(table, job)

    def _retire(self, table: Table, job: Job) -> None:
        """A job that is over for good keeps its story for a while, and nothing that is large."""
        self.blocks.unused(job.spec.fn)
        job.lighten()
        table.job = None
        table.fn = b""
        table.kept.clear()
        self._tables[table.id] = self._tables.pop(table.id)
        over = [old for old in self._tables.values() if old.job is None]
        for old in over[: max(0, len(over) - JOBS_KEPT)]:
            del self._tables[old.id]

    def _show_progress(self) -> None:
        now = time.monotonic()
        for table in self._active:
            job = table.job
            if job is not None and now - job.since_s >= PROGRESS_AFTER_S:
                job.progress_shown = True
                summary = table.summary()
                waits = "" if summary.running else f"no worker of engine {self.engine} has begun a task of it."
                tell(job.sink.progress, summary, waits)
