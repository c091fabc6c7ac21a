"""This process's tasks that wait for others: carries out what `core.dependencies` decides.

Theory of operation. A held task stands in its job and in the owner's table from the beginning, so it has an id, can be
cancelled and is counted; it is only not dispatched. Its inputs are followed through their futures. When all have ended
well, the task's payload is made whole and the table is told that it may go; when one has failed, the task ends with an
outcome that tells of it.

Rules: used in the mesh thread, but for `admit` and `add`. A future's end is posted to the mesh, never handled where it
is heard, so a long chain that fails is no deep recursion.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING

from kos_cluster.core import dependencies
from kos_cluster.core.dependencies import PAIRS_LIMIT, Dependencies
from kos_cluster.core.ownerevents import Added, Event, HeldFailed, Released
from kos_cluster.core.records import HeldTasks, Runs, indices_of, runs_of
from kos_cluster.errors import LimitError
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.inputs import Inputs, check, failure

if TYPE_CHECKING:
    from kos_cluster.tasks.futures import Settled
    from kos_cluster.tasks.job import Job
    from kos_cluster.tasks.mesh import Mesh

ROWS_LIMIT = 16  # groups of a job's held tasks that are told to others
LOOKED_AT_LIMIT = 1024  # held tasks of a job that are looked at for them
NAMED_LIMIT = 4  # inputs that a group names


@dataclass(frozen=True, slots=True)
class _Held:
    job: Job
    index: int
    inputs: Inputs


class Holding:
    """Part of `owner`, a connection. `feed` gives an event to its table, `resume` one that brings it tasks, and `post`
    runs a call in the mesh thread, soon.
    """

    def __init__(
        self,
        owner: Mesh,
        feed: Callable[[Event], None],
        resume: Callable[[Added], None],
        post: Callable[..., None],
    ) -> None:
        self._owner = owner
        self._feed = feed
        self._resume = resume
        self._post = post
        self._core = Dependencies()
        self._held: dict[str, dict[int, _Held]] = {}  # by job and index
        self._followed: dict[str, Future] = {}  # inputs that have not ended
        self._pairs = 0
        self._counting = threading.Lock()  # of `_pairs`

    def admit(self, taken: Collection[Inputs]) -> None:
        """Make sure that tasks can be held that take these. Raises UsageError, NotPicklableError, LimitError. Any
        thread.
        """
        for inputs in taken:
            check(inputs, self._owner)
            for future in inputs:
                future.keep()
        pairs = sum(map(len, taken))
        with self._counting:
            if self._pairs + pairs > PAIRS_LIMIT:
                raise LimitError(
                    f"{self._pairs:,} results are waited for by other tasks already; the limit is {PAIRS_LIMIT:,}.",
                    "Wait for some of them before you submit more.",
                )
            self._pairs += pairs

    def add(self, job: Job, start: int, payloads: Sequence[bytes], inputs: Mapping[int, Inputs]) -> None:
        """The job has these tasks more, from `start` on; what they take was admitted. Any thread."""
        taken = {start + place: futures for place, futures in inputs.items()}
        self._post(self._add, job, range(start, start + len(payloads)), sum(map(len, payloads)), taken)

    def dropped(self, job: Job, runs: Runs) -> None:
        """These tasks are cancelled, or over in some other way."""
        of_job = self._held.get(job.id)
        for index in indices_of(runs) if of_job else ():
            if of_job and index in of_job:
                self._core.handle(dependencies.Dropped(_id(self._pop(of_job[index]))))

    def told(self, job: str) -> tuple[HeldTasks, ...]:
        """A job's held tasks, grouped by what they wait for: the first `ROWS_LIMIT` groups."""
        return tuple(islice(self._groups(job), ROWS_LIMIT))

    def _groups(self, job: str) -> Iterator[HeldTasks]:
        looked_at = islice(self._held.get(job, {}).values(), LOOKED_AT_LIMIT)
        placed = ((self._core.waits_for(_id(held)), held.index - place, held) for place, held in enumerate(looked_at))
        for (waits_for, _), alike in groupby(placed, key=lambda row: row[:2]):
            indices = [held.index for _, _, held in alike]
            more = max(0, len(waits_for) - NAMED_LIMIT)
            yield HeldTasks(indices[0], len(indices), waits_for[:NAMED_LIMIT], more)

    # ---- inside

    def _add(self, job: Job, indices: range, size_bytes: int, taken: dict[int, Inputs]) -> None:
        self._resume(Added(job.id, len(indices), size_bytes, held=True))
        free = runs_of(index for index in indices if index not in taken)
        if free:
            self._feed(Released(job.id, free))
        for index, inputs in taken.items():
            self._hold(_Held(job, index, inputs))

    def _hold(self, held: _Held) -> None:
        self._held.setdefault(held.job.id, {})[held.index] = held
        self._followed.update((future.task, future) for future in held.inputs)
        self._carry_out(self._core.handle(dependencies.Held(_id(held), tuple(future.task for future in held.inputs))))

    def _carry_out(self, effects: Sequence[dependencies.Effect]) -> None:
        for effect in effects:
            match effect:
                case dependencies.Follow(task):
                    concurrent.futures.Future.add_done_callback(self._followed[task], self._heard)
                case dependencies.Release(task):
                    self._release(self._pop(self._find(task)))
                case dependencies.Fail(task, input_):
                    held = self._pop(self._find(task))
                    future = next(future for future in held.inputs if future.task == input_)
                    self._fail(held, failure(task, future))

    def _heard(self, future: concurrent.futures.Future[object]) -> None:
        """Called in the thread that ended the future."""
        assert isinstance(future, Future)
        if not self._owner.closed:  # else what waits for it ends with the connection
            self._post(self._ended, future.task)

    def _ended(self, task: str) -> None:
        future = self._followed.pop(task, None)
        if future is not None:
            ending = future.ending()
            failed = not isinstance(ending, Outcome) or ending.failed
            self._carry_out(self._core.handle(dependencies.Ended(task, failed)))

    def _release(self, held: _Held) -> None:
        try:
            grown = held.job.bind(held.index, held.inputs)
        except LimitError as error:
            self._fail(held, error)
            return
        if grown is not None:
            one: Runs = [(held.index, 1)]
            read = self._owner.blocks.read_by(held.job.payloads(one))
            self._feed(Released(held.job.id, one, grown, read.inputs))

    def _fail(self, held: _Held, settled: Settled) -> None:
        held.job.settle_all([(held.index, 1)], settled)
        self._feed(HeldFailed(held.job.id, held.index))

    def _find(self, task: str) -> _Held:
        job, _, index = task.partition(".")
        return self._held[job][int(index)]

    def _pop(self, held: _Held) -> _Held:
        of_job = self._held[held.job.id]
        del of_job[held.index]
        if not of_job:
            del self._held[held.job.id]
        with self._counting:
            self._pairs -= len(held.inputs)
        return held


def _id(held: _Held) -> str:
    return f"{held.job.id}.{held.index}"
