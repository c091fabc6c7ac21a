"""Results that stayed where they were made and are lost with their nodes: their tasks are run again.

Theory of operation. Beside each result that stays, its owner keeps how it was made (`Origin`): the task, its pickled
arguments, and the origins of the results that it took. A block is missed by who reads it: the owner itself, or a task,
whose worker says so instead of beginning it. Then the task that made the block runs once more, as its next attempt, and
its result becomes a block of the same name. So whatever names the block finds it, wherever it is now. What that task
took may be lost too: its own worker misses it, and so on, up to what was never lost.

    result      event                                      next
    stays       nobody has it, its task may run again      on its way; its reader waits, a task that takes it is held
    stays       nobody has it, its task may not            lost: its reader is told, and why
    on its way  its task has made it again                 stays
    on its way  its task has made it, and it does not stay is here: its reader gets it, a task that takes it fails
    on its way  its task has failed, or was cancelled      lost: its readers are told of that

Rules: an attempt that made what was lost counts as any other does; beyond `retries` nothing is made again. Neither are
results of a gang's ranks or of generators, nor what `put` and `stay` made. Arguments of `KEPT_ARGUMENTS_BYTES` and more
are not kept for this, and those of all results together take at most `KEPT_LIMIT_BYTES`. Blocks that arguments refer to
are not kept alive for this either. What came of making it again is unpickled by its readers only. Used in the mesh
thread, but for `Origin.made_again`.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from kos_cluster.core.ownerevents import Event, HeldFailed, InputLost, Released, ResultLost
from kos_cluster.core.records import AttemptEnd, HeldTasks, Runs, indices_of, runs_of
from kos_cluster.errors import BlockLostError
from kos_cluster.net import wire
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.net.transport import Payload
from kos_cluster.tasks.blocks import named_in
from kos_cluster.tasks.conditions import Answer
from kos_cluster.tasks.futures import NotMadeYet, Outcome, Settled, StayedOutcome
from kos_cluster.tasks.futures import Origin as AnyOrigin
from kos_cluster.tasks.holding import ROWS_LIMIT
from kos_cluster.tasks.inputs import failure_by
from kos_cluster.tasks.returns import Payloads

if TYPE_CHECKING:
    from kos_cluster.core.ownership import Ownership
    from kos_cluster.tasks.job import Job
    from kos_cluster.tasks.mesh import Mesh
    from kos_cluster.tasks.outgoing import Outgoing

KEPT_ARGUMENTS_BYTES = 1 << 20  # of one task, from which on they are not kept
KEPT_LIMIT_BYTES = 64 << 20  # of all tasks whose results stay
KEPT_LIMIT = 16_384  # results; as many as a node has blocks

_Ended = Answer[Outcome | BaseException]  # what came of making a result again


class Origin:
    """How one result was made. It lives while the result does, and those that were made of it."""

    def __init__(self, job: Job, index: int, block: str, remaking: Remaking) -> None:
        self.job = job
        self.index = index
        self.block = block
        self.inputs: tuple[AnyOrigin, ...] = ()  # which live as long
        self.payload = b""
        self.parts: dict[str, Payload] = {}
        self.never = ""  # why it cannot be made again, whatever happens
        self.making: _Ended | None = None  # while it is on its way
        self.ending: Outcome | BaseException | None = None  # of making it again, where no block came of that
        self._remaking = remaking

    @property
    def task(self) -> str:
        return f"{self.job.id}.{self.index}"

    def made_again(self, lost: BlockLostError, ends_s: float | None) -> Outcome:
        """Wait until the task that makes it again has ended; gives its outcome, which may be a failure. Any thread.

        Raises BlockLostError, NotMadeYet, or an error of the mesh.
        """
        return self._remaking.made_again(self, lost, ends_s)

    def settle(self, settled: Settled) -> None:
        """Its task has ended once more: called in place of its future. The outcome is unpickled by whoever asks."""
        if settled is None:
            cancelled = f"Task {self.task}, which made its result again, was cancelled."
            settled = BlockLostError(cancelled, "Submit it again.")
        if not isinstance(settled, StayedOutcome):
            self.ending = settled
        ended, self.making = self.making, None
        if ended is not None:
            ended.set_result(settled)


class Remaking:
    """Part of `owner`, a connection, with its table, its jobs by id and what it sends. `feed` gives an event to the
    table, `begin` says that a job has work again, `close` that a closed job is not needed for this any more.
    """

    def __init__(
        self,
        owner: Mesh,
        core: Ownership,
        jobs: Mapping[str, Job],
        outgoing: Outgoing,
        feed: Callable[[Event], None],
        begin: Callable[[str], None],
        close: Callable[[Job], None],
    ) -> None:
        self._owner = owner
        self._core = core
        self._table = jobs
        self._outgoing = outgoing
        self._feed = feed
        self._begin = begin
        self._close = close
        self._origins: weakref.WeakValueDictionary[str, Origin] = weakref.WeakValueDictionary()
        self._held: dict[tuple[str, int], dict[str, Origin]] = {}  # tasks, and the origins that they wait for, by task
        self._gone: deque[tuple[Job, int]] = deque()  # origins: their jobs, and the bytes that were kept
        self._jobs: Counter[str] = Counter()  # that origins are of
        self._kept_bytes = 0

    # ---- results that come

    def outcomes(self, job: Job, node: str, message: wire.Result, payloads: Payloads) -> dict[int, Outcome]:
        """The outcomes in a result of this node, by task. Those that stay have origins."""
        failed = frozenset(message.failed)
        found = {i: Outcome(data, i in failed) for i, data in zip(indices_of(message.runs), payloads, strict=True)}
        for index, size_bytes in message.stayed.items():
            data = found[index].payload
            found[index] = StayedOutcome(data, False, size_bytes, node, self._origin(job, index, data))
        return found

    def _origin(self, job: Job, index: int, data: Payload) -> Origin | None:
        (block,) = named_in(data)
        known = self._origins.get(block)
        if known is not None:
            return known
        origin = Origin(job, index, block, self)
        (payload,) = job.payloads([(index, 1)])
        if not payload:  # it is settled already
            return None
        parts = job.input_parts([(index, 1)]).get(index, {})
        size_bytes = len(payload) + sum(map(len, parts.values()))
        if job.spec.yields or job.spec.in_place is not None:
            origin.never = "what a generator or a gang's rank has made is not made again"
        elif size_bytes >= KEPT_ARGUMENTS_BYTES:
            origin.never = f"its arguments, {size_bytes:,} bytes, were not kept; the limit is {KEPT_ARGUMENTS_BYTES:,}"
        elif self._kept_bytes + size_bytes > KEPT_LIMIT_BYTES or len(self._origins) >= KEPT_LIMIT:
            origin.never = f"arguments were kept for {len(self._origins):,} other results, which is the limit"
        else:
            origin.payload, origin.parts, origin.inputs = payload, parts, job.made_of(index)
            self._kept_bytes += size_bytes
            self._jobs[job.id] += 1
            weakref.finalize(origin, self._gone.append, (job, size_bytes)).atexit = False
        self._origins[block] = origin
        return origin

    def needs(self, job: str) -> bool:
        """Whether tasks of this job may have to run again."""
        return self._jobs[job] > 0

    def tidy(self) -> None:
        """Let go of the jobs whose results are all gone."""
        while self._gone:
            job, size_bytes = self._gone.popleft()
            self._kept_bytes -= size_bytes
            self._jobs[job.id] -= 1
            if not self._jobs[job.id]:
                del self._jobs[job.id]
                if job.closed:
                    self._close(job)

    # ---- inputs that are lost

    def without_lost(self, message: wire.Result, payloads: Payloads) -> tuple[wire.Result, Payloads]:
        """A result without the tasks that miss results of others; these wait, held, until they are made again."""
        dispatch = self._core.dispatch_of(message.batch) if message.lost else None
        if dispatch is None:
            return message, payloads
        missed = {index: list(map(self._origins.get, blocks)) for index, blocks in message.lost.items()}
        waiting = {index: origins for index, origins in missed.items() if None not in origins}
        may_wait = self._core.tries_left(message.batch)
        for index, origins in waiting.items():
            self._wait(message.batch, dispatch.job, index, [origin for origin in origins if origin], may_wait)
        left = [(i, data) for i, data in zip(indices_of(message.runs), payloads, strict=True) if i not in waiting]
        runs, failed = runs_of(index for index, _ in left), [index for index in message.failed if index not in waiting]
        return msgspec.structs.replace(message, runs=runs, failed=failed), [data for _, data in left]

    def _wait(self, batch: int, job: str, index: int, origins: list[Origin], may_wait: bool) -> None:
        """Hold a task until these are made; none are, when they were found meanwhile."""
        missed = {origin.task: origin for origin in origins}
        what = f"the results of {', '.join(missed)}" if missed else "a result that was on its way"
        self._feed(InputLost(batch, index, f"it missed {what}"))
        if not self._core.is_held(job, index):  # it was cancelled, or another attempt runs
            return
        if not may_wait:
            tries = f"Task {job}.{index} was not run: it missed {what}, and has no tries left."
            self._fail(job, index, BlockLostError(tries, f"Type 'kos story {job}.{index}' for its attempts."))
        elif not missed:
            self._feed(Released(job, [(index, 1)]))
        else:
            self._held[job, index] = missed
            for origin in list(missed.values()):
                made = self._make(origin, "no node has it")
                made.add_done_callback(partial(self._input_made, job, index, origin))
                if (job, index) not in self._held:  # that one cannot be made: the others are of no use
                    break

    def _input_made(self, job: str, index: int, origin: Origin, made: _Ended) -> None:
        """What a held task waits for is there, or cannot be made."""
        if self._owner.closed:  # it ends with the connection
            return
        missed = self._held.get((job, index), {})
        if missed.pop(origin.task, None) is None:  # another one has failed, or the task was cancelled
            return
        ending = made.result()
        if isinstance(ending, Outcome) and not ending.failed and not isinstance(ending, StayedOutcome):
            ending = self._elsewhere(origin, len(ending.payload))
        if not isinstance(ending, StayedOutcome):
            del self._held[job, index]
            self._fail(job, index, failure_by(f"{job}.{index}", origin.task, ending, lost=True))
        elif not missed:
            del self._held[job, index]
            self._feed(Released(job, [(index, 1)]))

    def _elsewhere(self, origin: Origin, size_bytes: int) -> BlockLostError:
        """A result was made again, but is no block that a task could read: it has come here."""
        story = self._core.story(origin.job.id, origin.index)
        nodes = [attempt.node for attempt in story.attempts if attempt.end is AttemptEnd.DONE] if story else []
        if size_bytes < BULK_BYTES:
            why = f"it takes {size_bytes:,} bytes now, and results stay from {BULK_BYTES:,} on"
            room = ""
        else:
            why = f"the arena of node {nodes[-1] if nodes else '?'} could not take its {size_bytes:,} bytes"
            room = " Type 'kos mem status' for the room; drop references, or start nodes with a larger KOS_ARENA."
        again = "Call its task again, and pass that future."
        return BlockLostError(f"Task {origin.task} has made it again, but it does not stay there: {why}.", again + room)

    def dropped(self, job: str, runs: Runs) -> None:
        """These tasks are cancelled: they wait for nothing. What is on its way is made all the same, as a task that
        was cancelled could never make it again.
        """
        for index in indices_of(runs) if self._held else ():
            self._held.pop((job, index), None)

    def told(self, job: str) -> tuple[HeldTasks, ...]:
        """A job's tasks that wait for lost results, the first of them."""
        held = ((index, list(missed)) for (id_, index), missed in self._held.items() if id_ == job)
        return tuple(HeldTasks(index, 1, tuple(names[:1]), len(names) - 1) for index, names in islice(held, ROWS_LIMIT))

    def _fail(self, job: str, index: int, ending: Settled) -> None:
        """A held task ends."""
        self._table[job].settle_all([(index, 1)], ending)
        self._outgoing.settled(self._table[job], [(index, 1)])
        self._feed(HeldFailed(job, index))

    # ---- making again

    def made_again(self, origin: Origin, lost: BlockLostError, ends_s: float | None) -> Outcome:
        """See `Origin.made_again`."""
        if self._owner.closed:
            raise lost
        if self._owner.is_current:  # where nothing can be waited for
            raise BlockLostError(lost.message, "Ask for it outside of a callback: then it is made again.")
        made = self._owner.ask(lambda: self._make(origin, lost.message.rstrip(".")))
        try:
            ending = made.result(None if ends_s is None else max(0.0, ends_s - time.monotonic()))
        except TimeoutError:
            waits = f"The result of task {origin.task} is lost, and has not been made again in this time."
            raise NotMadeYet(f"{waits} Type 'kos why {origin.task}' for what it waits for.") from None
        if isinstance(ending, BaseException):
            raise ending
        return ending

    def _make(self, origin: Origin, cause: str) -> _Ended:
        """Done when the result was made again, or cannot be."""
        if origin.making is not None:
            return origin.making
        ended = _Ended()
        over = origin.ending or self._refusal(origin, cause)
        if over is not None:
            ended.set_result(over)
            return ended
        origin.making = ended
        self._owner.blocks.drop_elsewhere(origin.block)
        origin.job.again(origin)
        self._begin(origin.job.id)
        self._feed(ResultLost(origin.job.id, origin.index, cause))
        return ended

    def _refusal(self, origin: Origin, cause: str) -> BlockLostError | None:
        """Why it cannot be made again."""
        why = origin.never
        if not why and not self._core.may_run_again(origin.job.id, origin.index):
            why = f"its retries, {origin.job.spec.options.retries}, are used up"
        if not why:
            return None
        lost = f"The result of task {origin.task} is lost ({cause}), and cannot be made again: {why}."
        return BlockLostError(lost, f"Submit it again; 'kos story {origin.task}' tells where it was.")
