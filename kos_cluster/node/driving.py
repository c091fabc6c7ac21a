"""The detached jobs that this node drives: from an assignment in the cluster's state to the job's end in it.

Theory of operation. Who drives a job is agreed: its record names a node and an epoch. This node looks at the records
whenever something was agreed, begins the drives that are its own, and stops those that are not any more. To drive is to
fetch the job's work, if it is not kept here, and to let a driver process (`drives.py`) run the tasks that have no
result. Results are committed as they come; large ones are kept here and on a second node first. When a driver ends
before the job does, this node has another node drive it.

Rules. A job and its epoch are begun here once, also across a restart of the daemon: that they are is written down
first, so two drivers never speak under one epoch. Everything that is proposed carries the epoch; a refusal as out of
date ends the drive. What cannot be decided for the time being is offered again until it is.

    drive      event                                 next
    -          assigned here, a new epoch            fetching
    fetching   the work is here                      running
    fetching   all who kept it are gone              finished: failed
    running    each task has a result                finished
    running    the driver says that it cannot be     finished: failed
    running    the driver ends, or was another life's    assigned to another node
    any        cancelled, or assigned elsewhere      stopped
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kos_cluster.core import driving
from kos_cluster.core.records import runs_of
from kos_cluster.core.replicated import commands
from kos_cluster.core.replicated.commands import AssignDriver, CommitResults, FinishJob, JobEnd, TaskResult
from kos_cluster.core.replicated.jobs import TAIL_LIMIT_BYTES, Job, JobState
from kos_cluster.errors import KosError, LimitError, NoSuchTaskError, ProtocolError, StateError, UnreachableError
from kos_cluster.net import driven
from kos_cluster.net.standing import Standing
from kos_cluster.node.assigning import Assigning
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.copying import Copying
from kos_cluster.node.drives import Driver, Output
from kos_cluster.node.keeping import Kept
from kos_cluster.node.store import Store

log = logging.getLogger(__name__)

LOOK_S = 0.5
TIDY_S = 10.0  # between two looks at what is kept
PAUSE_S = 0.5  # before something is tried again
OUTPUTS_LIMIT = 64  # jobs that this node drove whose last output it still has
BEGUN = "driving"  # the name in the node's store: job -> epoch that was begun here


@dataclass(frozen=True)
class Place:
    """Where this node's drives happen."""

    node: str  # its id
    cluster: str
    spool: Path


class Driving:
    """One node's drives. Used in the daemon's loop. `run` does not return."""

    def __init__(
        self, place: Place, consensus: Consensus, kept: Kept, copying: Copying, assigning: Assigning, store: Store
    ) -> None:
        self._place = place
        self._consensus = consensus
        self._kept = kept
        self._copying = copying
        self._assigning = assigning
        self._store = store
        saved = store.get(BEGUN)
        self._begun = msgspec.msgpack.decode(saved, type=dict[str, int]) if saved else {}
        self._drives: dict[str, _Drive] = {}
        self._outputs: OrderedDict[str, Output] = OrderedDict()
        self._next_tidy_s = 0.0

    async def run(self) -> None:
        while True:
            self._look()
            now = time.monotonic()
            if now >= self._next_tidy_s and self._consensus.leader is not None:
                self._next_tidy_s = now + TIDY_S
                self._tidy(now)
            await self._consensus.moved(LOOK_S)

    async def close(self) -> None:
        """Stop all drives: other nodes go on with the jobs."""
        for drive in self._drives.values():
            drive.task.cancel()
        await asyncio.gather(*(drive.task for drive in self._drives.values()), return_exceptions=True)

    def output(self, id_: str, epoch: int) -> Output | None:
        """What the tasks of a job wrote in an epoch that this node drives, or did lately."""
        output = self._outputs.get(id_)
        return output if output is not None and output.epoch == epoch else None

    async def standing(self, id_: str, epoch: int) -> Standing | None:
        """Why a job's tasks wait, as its driver judges; None when none of this epoch runs here, or it does not say."""
        drive = self._drives.get(id_)
        if drive is None or drive.epoch != epoch or drive.driver is None:
            return None
        return await drive.driver.standing()

    # ---- inside

    def _tidy(self, now: float) -> None:
        try:
            self._kept.tidy(self._copying.named(), now)
        except OSError as error:
            log.warning("What no job needs any more could not be removed: %s", error)

    def _look(self) -> None:
        jobs = self._consensus.state.jobs.snapshot()
        mine = {job.id: job for job in jobs if job.state is JobState.DRIVEN and job.driver == self._place.node}
        for id_, drive in list(self._drives.items()):
            job = mine.get(id_)
            if job is not None and job.epoch == drive.epoch and not drive.broke_off:
                continue
            if drive.task.done():
                del self._drives[id_]
            elif not drive.stopping:
                drive.stopping = True
                drive.task.cancel()
        for id_, job in mine.items():
            if id_ not in self._drives:
                self._begin(job)

    def _begin(self, job: Job) -> None:
        output = self.output(job.id, job.epoch) or Output(job.epoch)
        self._outputs[job.id] = output
        self._outputs.move_to_end(job.id)
        while len(self._outputs) > OUTPUTS_LIMIT:
            self._outputs.popitem(last=False)
        task = asyncio.get_running_loop().create_task(self._drive(job.id, job.epoch, output), name=f"drive-{job.id}")
        self._drives[job.id] = _Drive(job.epoch, task)

    async def _drive(self, id_: str, epoch: int, output: Output) -> None:
        """Returns when the job is not this node's to drive any more; it is tried again while it is."""
        try:
            if self._first_time(id_, epoch):
                await self._run(id_, epoch, output)
            await self._pass_on(id_, epoch)
        except _Over:
            return
        except Exception:  # a full disk, or a defect of ours: another node may fare better
            log.exception("Driving job %s failed.", id_)
            await asyncio.sleep(PAUSE_S)
            with suppress(_Over):
                await self._pass_on(id_, epoch)

    def _first_time(self, id_: str, epoch: int) -> bool:
        """Write down that this epoch is begun here; False when it was before. Raises StateError."""
        if self._begun.get(id_) == epoch:
            return False
        state = self._consensus.state
        begun = {job: e for job, e in self._begun.items() if state.jobs.get(job) is not None}
        begun[id_] = epoch
        self._store.put({BEGUN: msgspec.msgpack.encode(begun)})
        self._begun = begun
        return True

    # ---- one drive

    async def _run(self, id_: str, epoch: int, output: Output) -> None:
        """Drive; returns when a driver ended too early. Raises _Over when there is no more to do here."""
        job = self._job(id_, epoch)
        work = driving.decode(job.spec)
        await self._finish_if_complete(id_, epoch, work, output)
        if not await self._copying.fetch(id_, work.bundle):
            gone = " and ".join(self._copying.names(job.parts.get(work.bundle, ())))
            output.wrote(f"kos: The work of job {id_} is lost: {gone}, which kept it, are gone.\n".encode())
            await self._finish(id_, epoch, output, JobEnd.FAILED, UnreachableError.exit_code)
        job = self._job(id_, epoch)
        order = driven.Drive(
            job=id_,
            cluster=self._place.cluster,
            epoch=epoch,
            programs=work.kind is not driving.Kind.MAP,
            bundle=str(self._kept.path(work.bundle)),
            sha256=work.bundle,
            settled=runs_of(sorted(job.results)),
            inline_bytes=job.inline_bytes,
            spool=str(self._place.spool),
        )
        log.info("Driving job %s (%s), epoch %d.", id_, job.name, epoch)
        driver = self._drives[id_].driver = await Driver.start(order)
        try:
            async for message, payload in driver.messages():
                await self._take(id_, epoch, work, output, message, payload)
        except (ProtocolError, LimitError, OSError) as error:
            await self._give_up(id_, epoch, output, error)
        finally:
            status = await driver.end()
        log.warning("The driver of job %s ended with status %d before the job did.", id_, status)

    async def _take(
        self, id_: str, epoch: int, work: driving.Work, output: Output, message: driven.FromDriver, payload: bytes
    ) -> None:
        match message:
            case driven.Wrote():
                output.wrote(payload)
            case driven.Settled():
                results = await self._results(message, payload)
                await self._insist(id_, epoch, CommitResults(id_, epoch, results))
                while not self._job(id_, epoch).results.keys() >= message.exit_codes.keys():
                    await self._consensus.moved(LOOK_S)  # decided, and not yet known here
                await self._finish_if_complete(id_, epoch, work, output)
            case driven.Failed(sentence, exit_code):
                output.wrote(f"kos: {sentence}\n".encode())
                await self._finish(id_, epoch, output, JobEnd.FAILED, exit_code)

    async def _results(self, message: driven.Settled, payload: bytes) -> tuple[TaskResult, ...]:
        """The results as they are committed; what is large is kept here and elsewhere by then."""
        if not message.file:
            outcomes = msgspec.msgpack.decode(payload, type=dict[int, bytes])
            return tuple(TaskResult(task, outcomes[task], exit_code=code) for task, code in message.exit_codes.items())
        await asyncio.to_thread(self._kept.adopt, message.sha256, Path(message.file))
        holders = await self._copying.spread(message.sha256)
        return tuple(TaskResult(task, None, message.sha256, holders, code) for task, code in message.exit_codes.items())

    async def _give_up(self, id_: str, epoch: int, output: Output, error: KosError | OSError) -> None:
        output.wrote(f"kos: {error}\n".encode())
        code = error.exit_code if isinstance(error, KosError) else StateError.exit_code
        await self._finish(id_, epoch, output, JobEnd.FAILED, code)

    async def _finish_if_complete(self, id_: str, epoch: int, work: driving.Work, output: Output) -> None:
        job = self._job(id_, epoch)
        if len(job.results) < work.count:
            return
        codes = [job.results[task].exit_code for task in sorted(job.results)]
        code = codes[0] if work.kind is not driving.Kind.MAP else int(any(codes))
        await self._finish(id_, epoch, output, JobEnd.FAILED if code else JobEnd.DONE, code)

    async def _finish(self, id_: str, epoch: int, output: Output, end: JobEnd, exit_code: int) -> None:
        """Raises _Over, always."""
        await self._insist(id_, epoch, FinishJob(id_, epoch, end, exit_code, output.tail(TAIL_LIMIT_BYTES)))
        raise _Over

    async def _pass_on(self, id_: str, epoch: int) -> None:
        """Let another node drive it on, or this one again. Raises _Over when that is decided."""
        while True:
            job = self._job(id_, epoch)
            if epoch >= driving.EPOCHS_LIMIT:
                output = Output(epoch)
                output.wrote(f"kos: {epoch} drivers of job {id_} have ended before it did.\n".encode())
                await self._finish(id_, epoch, output, JobEnd.FAILED, StateError.exit_code)
            node = self._assigning.choose(job, avoid=self._place.node)
            if node is not None:
                await self._insist(id_, epoch, AssignDriver(id_, node, epoch))
                raise _Over
            await asyncio.sleep(PAUSE_S)

    def _job(self, id_: str, epoch: int) -> Job:
        """The record, while it is this drive's. Raises _Over."""
        job = self._consensus.state.jobs.get(id_)
        if job is None or job.state is not JobState.DRIVEN or (job.driver, job.epoch) != (self._place.node, epoch):
            raise _Over
        return job

    async def _insist(self, id_: str, epoch: int, command: commands.Command) -> None:
        """Have it applied here too. Raises _Over when the job is not this drive's any more, or LimitError."""
        while True:
            self._job(id_, epoch)
            try:
                await self._consensus.propose(command)
                break
            except UnreachableError as error:
                log.warning("Job %s waits for a decision: %s", id_, error.message)
                await asyncio.sleep(PAUSE_S)
            except (StateError, NoSuchTaskError) as error:
                log.info("Job %s is not driven here any more: %s", id_, error.message)
                raise _Over from None


@dataclass(slots=True)
class _Drive:
    epoch: int
    task: asyncio.Task[None]
    driver: Driver | None = None
    stopping: bool = False

    @property
    def broke_off(self) -> bool:
        """Whether it could not even be passed on; it is begun again then."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is not None


class _Over(Exception):
    """The job has ended, or is not this drive's any more."""
