"""Detached jobs: what survives of a job when the machines of its submitter and of its driver are gone.

Theory of operation. A node drives a job: it holds the job's `Ownership` in its submitter's stead. When it dies the
coordinator assigns another, under the next epoch, which goes on from the committed results; whatever the former driver
still proposes carries the former epoch and is refused. Small results are here; larger ones, and parts, lie on the
disks of `HOLDERS` nodes, and only their hashes are here.

Rules: the first result of a task stands. An ended job takes no result. Ended jobs are dropped after `ENDED_KEPT_S`, or
earlier, oldest first, when others need their room; jobs that have not ended are never dropped.

    state              command              next
    -                  submit               waiting
    waiting, driven    assign               driven, epoch + 1
    driven             results              driven
    driven             finish               done, failed
    waiting, driven    cancel               cancelled, epoch + 1
    ended              drop, age, room      -
"""

from __future__ import annotations

import enum
import re

import msgspec

from kos_cluster.core.replicated.commands import (
    AssignDriver,
    CancelJob,
    CommitResults,
    FinishJob,
    JobEnd,
    MovePart,
    SubmitJob,
    TaskResult,
)
from kos_cluster.core.replicated.deadlines import Deadlines
from kos_cluster.core.replicated.replies import JobEpoch, ResultsCommitted
from kos_cluster.errors import LimitError, NoSuchTaskError, StateError, UsageError

JOBS_LIMIT = 256  # ended ones included
TOTAL_LIMIT_BYTES = 8 << 20  # of all jobs together, which a snapshot must carry
SPEC_LIMIT_BYTES = 64 << 10
INLINE_LIMIT_BYTES = 64 << 10  # of one job's results here, together
TAIL_LIMIT_BYTES = 8 << 10  # of the last output; what is before it is cut off
RESULTS_LIMIT = 16384  # of one job
PARTS_LIMIT = 256  # of one job
HOLDERS = 2  # nodes that keep a part or a large result
ENDED_KEPT_S = 7 * 86400.0
NAME_LIMIT_CHARACTERS = 256
NODE_LIMIT_CHARACTERS = 64  # of a node's id
ENTRY_BYTES = 256  # reckoned for a hash with its holders
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class JobState(enum.StrEnum):
    """Where a detached job is in its life. The last three are ends."""

    WAITING = "waiting"
    DRIVEN = "driven"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job(msgspec.Struct):
    """A detached job. Times are of the replicated clock; `ended_s` None: it has not ended."""

    id: str
    submitter: str
    user: str
    name: str
    spec: bytes
    parts: dict[str, tuple[str, ...]]
    submitted_s: float
    state: JobState = JobState.WAITING
    driver: str = ""
    epoch: int = 0
    results: dict[int, TaskResult] = {}
    inline_bytes: int = 0
    exit_code: int | None = None
    tail: bytes = b""
    ended_s: float | None = None
    ended_by: str = ""

    @property
    def size_bytes(self) -> int:
        """What it is reckoned to take here."""
        entries = len(self.parts) + len(self.results) + 2
        return len(self.spec) + self.inline_bytes + len(self.tail) + entries * ENTRY_BYTES


class Jobs:
    """The detached jobs."""

    def __init__(self, restored: list[Job]) -> None:
        self._jobs = {job.id: job for job in restored}
        self._size_bytes = sum(job.size_bytes for job in restored)
        self._ends = Deadlines()
        for job in restored:
            if job.ended_s is not None:
                self._ends.set(job.id, job.ended_s + ENDED_KEPT_S)

    def snapshot(self) -> list[Job]:
        return list(self._jobs.values())

    def get(self, id: str) -> Job | None:
        return self._jobs.get(id)

    def submit(self, command: SubmitJob, clock_s: float) -> JobEpoch:
        """Raises UsageError or LimitError."""
        if not _ID.fullmatch(command.id):
            raise UsageError(f"{command.id[:64]!r} cannot be the id of a job.")
        if command.id in self._jobs:
            raise UsageError(f"There is a job {command.id} already.", f"See 'kos attach {command.id}'.")
        if max(map(len, (command.name, command.user, command.submitter))) > NAME_LIMIT_CHARACTERS:
            raise LimitError(f"A name of the job {command.id} has more than {NAME_LIMIT_CHARACTERS} characters.")
        if len(command.spec) > SPEC_LIMIT_BYTES:
            raise LimitError(
                f"The description of job {command.id} takes {len(command.spec)} bytes; the limit is "
                f"{SPEC_LIMIT_BYTES}.",
                "Put what is large into parts.",
            )
        if len(command.parts) > PARTS_LIMIT:
            raise LimitError(f"The job {command.id} has {len(command.parts)} parts; the limit is {PARTS_LIMIT}.")
        for part in command.parts:
            _check_kept(part.sha256, part.holders)
        parts = {part.sha256: part.holders for part in command.parts}
        job = Job(command.id, command.submitter, command.user, command.name, command.spec, parts, clock_s)
        self._make_room(job.size_bytes, new=True)
        self._jobs[job.id] = job
        self._size_bytes += job.size_bytes
        return JobEpoch(job.id, job.epoch)

    def assign(self, command: AssignDriver) -> JobEpoch:
        """Raises NoSuchTaskError, StateError or UsageError."""
        job = self._going_on(command.id)
        _check_node(command.node)
        if job.epoch != command.epoch:
            raise _stale(job, command.epoch)
        job.state, job.driver, job.epoch = JobState.DRIVEN, command.node, job.epoch + 1
        return JobEpoch(job.id, job.epoch)

    def commit(self, command: CommitResults) -> ResultsCommitted:
        """All of the new results, or none. Raises NoSuchTaskError, StateError, UsageError or LimitError."""
        job = self._driven(command.id, command.epoch)
        fresh: dict[int, TaskResult] = {}
        for result in command.results:
            _check_result(result)
            if result.task not in job.results:
                fresh.setdefault(result.task, result)
        inline_bytes = sum(len(result.inline or b"") for result in fresh.values())
        if job.inline_bytes + inline_bytes > INLINE_LIMIT_BYTES:
            raise LimitError(
                f"The results of job {job.id} would take {job.inline_bytes + inline_bytes} bytes in the cluster's "
                f"state; the limit is {INLINE_LIMIT_BYTES}.",
                f"Keep them on the disks of {HOLDERS} nodes.",
            )
        if len(job.results) + len(fresh) > RESULTS_LIMIT:
            raise LimitError(f"The job {job.id} would have more than {RESULTS_LIMIT} results, which is the limit.")
        growth_bytes = inline_bytes + len(fresh) * ENTRY_BYTES
        self._make_room(growth_bytes, new=False)
        job.results.update(fresh)
        job.inline_bytes += inline_bytes
        self._size_bytes += growth_bytes
        earlier = tuple(result.task for result in command.results if result.task not in fresh)
        return ResultsCommitted(tuple(fresh), earlier)

    def move(self, command: MovePart) -> None:
        """Raises NoSuchTaskError, UsageError, or StateError when the job has nothing of that hash."""
        job = self._get(command.id)
        sha256, holders = command.part.sha256, command.part.holders
        _check_kept(sha256, holders)
        tasks = [task for task, result in job.results.items() if result.sha256 == sha256]
        if sha256 not in job.parts and not tasks:
            raise StateError(f"The job {job.id} has no part or result {sha256[:12]}.")
        if sha256 in job.parts:
            job.parts[sha256] = holders
        for task in tasks:
            job.results[task] = msgspec.structs.replace(job.results[task], holders=holders)

    def finish(self, command: FinishJob, clock_s: float) -> None:
        """Raises NoSuchTaskError or StateError."""
        job = self._driven(command.id, command.epoch)
        before_bytes = job.size_bytes
        job.exit_code = command.exit_code
        job.tail = command.tail[-TAIL_LIMIT_BYTES:]
        self._size_bytes += job.size_bytes - before_bytes
        self._end(job, JobState.DONE if command.end is JobEnd.DONE else JobState.FAILED, job.driver, clock_s)

    def cancel(self, command: CancelJob, clock_s: float) -> JobEpoch:
        """What the driver still proposes is refused from now on. Raises NoSuchTaskError or StateError."""
        job = self._going_on(command.id)
        job.epoch += 1
        self._end(job, JobState.CANCELLED, command.by[:NAME_LIMIT_CHARACTERS], clock_s)
        return JobEpoch(job.id, job.epoch)

    def drop(self, id: str) -> None:
        """Raises NoSuchTaskError, or StateError when it has not ended."""
        job = self._get(id)
        if job.ended_s is None:
            raise StateError(f"The job {id} has not ended.", f"Cancel it first: 'kos cancel {id}'.")
        self._forget(job)

    def expire(self, clock_s: float) -> None:
        for id in self._ends.due(clock_s):
            self._forget(self._jobs[id])

    def _get(self, id: str) -> Job:
        job = self._jobs.get(id)
        if job is None:
            raise NoSuchTaskError(f"The cluster knows no detached job {id[:64]}.", "See 'kos ps'.")
        return job

    def _going_on(self, id: str) -> Job:
        job = self._get(id)
        if job.ended_s is not None:
            raise StateError(f"The job {id} is {job.state} already.", f"See 'kos attach {id}'.")
        return job

    def _driven(self, id: str, epoch: int) -> Job:
        job = self._get(id)
        if job.epoch != epoch:
            raise _stale(job, epoch)
        job = self._going_on(id)
        if job.state is not JobState.DRIVEN:
            raise StateError(f"The job {id} has no driver yet.")
        return job

    def _end(self, job: Job, state: JobState, by: str, clock_s: float) -> None:
        job.state, job.ended_s, job.ended_by = state, clock_s, by
        self._ends.set(job.id, clock_s + ENDED_KEPT_S)

    def _make_room(self, size_bytes: int, new: bool) -> None:
        """Drop the jobs that ended first, as many as it takes. Raises LimitError when it cannot be enough."""
        ended = sorted((j for j in self._jobs.values() if j.ended_s is not None), key=lambda j: (j.ended_s, j.id))
        going_on = len(self._jobs) - len(ended)
        kept_bytes = self._size_bytes - sum(job.size_bytes for job in ended)
        if going_on + new > JOBS_LIMIT or kept_bytes + size_bytes > TOTAL_LIMIT_BYTES:
            raise LimitError(
                f"{going_on} detached jobs that have not ended take {kept_bytes} bytes in the cluster's state; the "
                f"limit is {JOBS_LIMIT} jobs and {TOTAL_LIMIT_BYTES} bytes.",
                "Wait until some have ended, or cancel some: 'kos ps', 'kos cancel ID'.",
            )
        for job in ended:
            if len(self._jobs) + new <= JOBS_LIMIT and self._size_bytes + size_bytes <= TOTAL_LIMIT_BYTES:
                return
            self._forget(job)

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        self._size_bytes -= job.size_bytes
        self._ends.drop(job.id)


def _stale(job: Job, epoch: int) -> StateError:
    driver = f" under {job.driver}" if job.driver else ""
    return StateError(
        f"The job {job.id} is in epoch {job.epoch}{driver}; a command of epoch {epoch} is out of date.",
        "Stop driving it.",
    )


def _check_kept(sha256: str, holders: tuple[str, ...]) -> None:
    if not _SHA256.fullmatch(sha256):
        raise UsageError(f"{sha256[:64]!r} is not a SHA-256 in hex.")
    if not 0 < len(set(holders)) == len(holders) <= HOLDERS:
        raise UsageError(f"The part {sha256[:12]} is kept by {len(holders)} nodes; it must be 1 to {HOLDERS}.")
    for node in holders:
        _check_node(node)


def _check_node(node: str) -> None:
    if not 0 < len(node) <= NODE_LIMIT_CHARACTERS:
        raise UsageError(f"The id of a node has 1 to {NODE_LIMIT_CHARACTERS} characters, not {len(node)}.")


def _check_result(result: TaskResult) -> None:
    if result.task < 0 or (result.inline is None) == (not result.sha256):
        raise UsageError(f"The result of task {result.task} must be here or on disks, one of the two.")
    if result.inline is None:
        _check_kept(result.sha256, result.holders)
