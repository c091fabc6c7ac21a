"""Detached jobs as a client sees them: submitted, watched, cancelled, and their results taken.

Theory of operation. The submitter packs the work into one part (`bundle`), puts it on the disks of two nodes, and has
the cluster agree on the job; from then on nothing depends on it. Whoever asks later asks any node: the state of the job
is agreed, its output is asked of the node that drives it, its larger results are fetched from the nodes that keep them.

Rules. An id is given out only when the job is agreed on. A client that waits outlives the nodes that it asks: it goes
on asking the others for `PATIENCE_S`. Results are unpickled by whoever asks for them, never before.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kos_cluster.core.driving import Kind, Work, encode, holders_of
from kos_cluster.core.records import JobSummary, Member, MemberState, Needs
from kos_cluster.core.replicated.commands import TaskResult
from kos_cluster.core.replicated.jobs import HOLDERS, NAME_LIMIT_CHARACTERS, JobState
from kos_cluster.errors import KosError, NoSuchTaskError, PlacementError, TaskLostError, UnreachableError
from kos_cluster.net import detached as asks
from kos_cluster.net import wire
from kos_cluster.net.bulk import get_kept, put_part
from kos_cluster.net.standing import Standing, StandingAsked
from kos_cluster.tasks import bundle
from kos_cluster.tasks.asking import REQUEST_TIMEOUT_S
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.job import Job

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh

POLL_S = 0.25
PATIENCE_S = 30.0  # for a cluster that does not answer while one waits
AGREED_TIMEOUT_S = 15.0  # longer than a proposal takes at most
ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

T = TypeVar("T")
Write = Callable[[bytes], None]
Report = Callable[[str], None]


class DetachedJob:
    """A job that the cluster drives. Its `id` is all that is needed to find it again, from any machine."""

    def __init__(self, mesh: Mesh, id: str) -> None:
        self.id = id
        self._mesh = mesh
        self._record = self._ask()

    def __repr__(self) -> str:
        return f"<kos DetachedJob {self.id} {self._record.state}>"

    def state(self) -> asks.DetachedJob:
        """What the cluster knows of it now. Raises NoSuchTaskError when it ended so long ago that it is forgotten."""
        self._record = self._ask()
        return self._record

    def wait(self, timeout: float | None = None) -> asks.DetachedJob:
        """Wait until it has ended. Raises TimeoutError. An interrupt ends the waiting, not the job."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (record := self.state()).state not in ENDED:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"Job {self.id} has not ended after {timeout} s.")
            time.sleep(POLL_S)
        return record

    def follow(self, write: Write, report: Report) -> asks.DetachedJob:
        """Pass its output on, from the last that is kept, until it has ended. `report` is told what changes."""
        reader = _Reader(self._mesh, self.id, write, report)
        while True:
            record = self.state()
            reader.read(record)
            if record.state in ENDED:
                return record
            time.sleep(POLL_S)

    def results(self, timeout: float | None = None) -> list[Any]:
        """Wait, and give the results in order. Raises what the first task that failed has raised."""
        self.wait(timeout)
        return [outcome.value() for outcome in self.outcomes()]

    def outcomes(self) -> Iterator[Outcome]:
        """The outcome of each task, in order. Raises TaskLostError at one that there is none of."""
        record = self.state()
        found = _patiently(self._mesh, asks.DetachedResults(self.id), list[TaskResult])
        results = {result.task: result for result in found}
        fetched: dict[str, dict[int, bytes]] = {}
        for task in range(record.total):
            result = results.get(task)
            if result is None:
                raise TaskLostError(
                    f"Task {self.id}.{task} has no result: its job is {record.state}.", f"See 'kos attach {self.id}'."
                )
            if result.inline is not None:
                yield bundle.unpack_outcome(result.inline)
                continue
            if result.sha256 not in fetched:
                fetched = {result.sha256: bundle.unpack_outcomes(self._fetch(result))}  # tasks of one part are adjacent
            yield bundle.unpack_outcome(fetched[result.sha256][task])

    def cancel(self) -> bool:
        """Stop it everywhere. False when it had ended."""
        if self.state().state in ENDED:
            return False
        return self._mesh.request(asks.CancelDetached(self.id), bool, timeout_s=AGREED_TIMEOUT_S)

    # ---- inside

    def _ask(self) -> asks.DetachedJob:
        return _patiently(self._mesh, asks.DetachedJobOf(self.id), asks.DetachedJob)

    def _fetch(self, result: TaskResult) -> bytes:
        members = {member.id: member for member in _members(self._mesh)}
        names = [members[holder].name if holder in members else holder for holder in result.holders]
        problem = ""
        for holder in result.holders:
            member = members.get(holder)
            if member is None or member.state in (MemberState.DEAD, MemberState.LEFT):
                continue
            file = io.BytesIO()
            try:
                get_kept(member.host, member.port, self._mesh.credentials, result.sha256, file)
            except KosError as error:
                problem = error.message
            else:
                return file.getvalue()
        known = [members.get(holder) for holder in result.holders]
        for_good = all(member is None or member.state is MemberState.LEFT for member in known)
        gone = f"{' and '.join(names)}, which kept it, {'are' if len(names) > 1 else 'is'} gone"
        raise TaskLostError(
            f"The result of task {self.id}.{result.task} cannot be had: "
            + (problem or gone + (" for good." if for_good else ".")),
            "Submit the job again." if for_good else "Start these nodes again; their disks have it.",
        )


class _Reader:
    """Reads a job's output from whichever node drives it."""

    def __init__(self, mesh: Mesh, id_: str, write: Write, report: Report) -> None:
        self._mesh = mesh
        self._id = id_
        self._write = write
        self._report = report
        self._epoch = 0
        self._offset = 0

    def read(self, record: asks.DetachedJob) -> None:
        """Pass on what is new."""
        if record.epoch != self._epoch and record.state == JobState.DRIVEN:
            if self._epoch:
                self._report(f"{record.driver_name} drives job {self._id} on.")
            self._epoch, self._offset = record.epoch, 0
        told = self._told(record) if record.driver else None
        if told is not None and told.known:
            if told.start > self._offset > 0:
                self._report(f"{told.start - self._offset} bytes of output came too fast to be kept.")
            self._offset = told.start + len(told.data)
            self._pass(told.data)
        elif record.state in ENDED and not self._offset:
            self._pass(record.tail)

    def _told(self, record: asks.DetachedJob) -> asks.OutputSoFar | None:
        question = asks.DetachedOutput(self._id, self._epoch or record.epoch, self._offset)
        try:
            return self._mesh.request(question, asks.OutputSoFar, node=record.driver)
        except KosError:  # it is gone, or going; its successor tells
            return None

    def _pass(self, data: bytes) -> None:
        if data:
            self._write(data)


def submit(mesh: Mesh, job: Job, payloads: Sequence[bytes], kind: Kind) -> DetachedJob:
    """Have the cluster drive a job. Raises what refuses it: LimitError, PlacementError, UnreachableError."""
    data = bundle.pack(job.spec, payloads)
    hash_ = hashlib.sha256(data).hexdigest()
    holders = _put(mesh, hash_, data)
    work = encode(Work(kind, len(payloads), hash_))
    ask = asks.Detach(job.id, job.spec.name[:NAME_LIMIT_CHARACTERS], work, hash_, holders)
    try:
        mesh.request(ask, bool, timeout_s=AGREED_TIMEOUT_S)
    except UnreachableError as error:
        raise UnreachableError(
            error.message, f"It may have been submitted all the same: see 'kos attach {job.id}' before you do it again."
        ) from None
    return DetachedJob(mesh, job.id)


def _put(mesh: Mesh, hash_: str, data: bytes) -> tuple[str, ...]:
    """Have `HOLDERS` nodes keep a part, or as many as there are; their ids. Raises the last refusal."""
    members = [m for m in _members(mesh) if m.state is MemberState.ALIVE and not m.drained]
    holders: list[str] = []
    problem: KosError = PlacementError("No node can keep the job's work.", "Type 'kos nodes' to see them.")
    for member in holders_of(hash_, members):
        try:
            put_part(member.host, member.port, mesh.credentials, hash_, data, keep=True)
        except KosError as error:
            problem = error
        else:
            holders.append(member.id)
        if len(holders) == HOLDERS:
            break
    if not holders:
        raise problem
    return tuple(holders)


def _patiently(mesh: Mesh, question: wire.Asked, kind: type[T]) -> T:
    """The answer of whichever node gives one. Raises UnreachableError when none does for `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return mesh.request(question, kind)
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def _members(mesh: Mesh) -> list[Member]:
    return mesh.request(wire.Nodes(), wire.SyncData).members or []


def records(mesh: Mesh, enough_s: float = REQUEST_TIMEOUT_S) -> list[asks.DetachedJob]:
    """All detached jobs; of each what the node tells that is furthest on, of those that answer within this time."""
    newest: dict[str, asks.DetachedJob] = {}
    for told in mesh.request_all(asks.DetachedJobs(), list[asks.DetachedJob], enough_s).values():
        for record in told:
            if record.id not in newest or _progress(record) > _progress(newest[record.id]):
                newest[record.id] = record
    return list(newest.values())


def _progress(record: asks.DetachedJob) -> tuple[bool, int, int]:
    return record.ended_s is not None, record.epoch, record.done


def summary(record: asks.DetachedJob, running: JobSummary | None) -> JobSummary:
    """A job's line in a listing: what is agreed, and what its driver tells of it while there is one."""
    known = JobSummary(
        job=record.id,
        name=record.name,
        user=record.user,
        total=record.total,
        done=record.done - record.failed,
        failed=record.failed,
        running=0,
        since_s=record.submitted_s,
    )
    if running is not None and record.state == JobState.DRIVEN:
        known = msgspec.structs.replace(running, user=record.user, since_s=record.submitted_s)
    return msgspec.structs.replace(known, state=record.state, driver=record.driver_name, epoch=record.epoch)


def standing(mesh: Mesh, job: JobSummary | None) -> tuple[Needs, tuple[str, ...]] | None:
    """As `Placing.standing`, of a detached job, told by the node that drives it; None when none does or tells."""
    if job is None or job.state != JobState.DRIVEN:
        return None
    driver = next((member.id for member in mesh.members if member.name == job.driver), job.driver)
    try:
        told = mesh.request(StandingAsked(job.job, job.epoch), Standing, node=driver)
    except KosError:  # it is gone, or going, or of an earlier version; `explain` says that it did not tell
        return None
    return told.needs, told.reasons


def tail(mesh: Mesh, id_: str) -> list[tuple[str, bytes]]:
    """The last output of a detached job that is kept when no node remembers its tasks; nothing for other ids."""
    try:
        record = mesh.request(asks.DetachedJobOf(id_), asks.DetachedJob)
    except NoSuchTaskError:
        return []
    return [(id_, record.tail)]
