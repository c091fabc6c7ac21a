"""The future of a task: a `concurrent.futures.Future` that can be awaited and tells its story.

Rules. A result is unpickled in the thread that asks for it first, never in the mesh thread, so slow or hostile
unpickling of one's own data can't stall the mesh. `cancel()` also stops a task that runs. An interrupt while waiting
cancels the task. A future that is passed to a task keeps its outcome as it came, beside what it was unpickled to; so
does one whose result stays where it was made, as that is small, and what the task made is what others are passed.
What a future needs for those who wait for it is made when somebody does, so that one of a queued task takes 140 to 220
bytes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import hashlib
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures._base import PENDING
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from kos_cluster.errors import BlockLostError, KosError
from kos_cluster.tasks import failures, places, serialise, showing
from kos_cluster.tasks.conditions import Answer, Condition

if TYPE_CHECKING:
    from kos_cluster.core.records import Story


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Outcome:
    """A task's outcome as it came: the pickle of its result, or of its `failures.Failure`."""

    payload: bytes | bytearray | memoryview
    failed: bool = False

    def value(self, ends_s: float | None = None) -> Any:
        """The result; raises what the task raised. `ends_s`: until when to wait for one that is lost (monotonic)."""
        if self.failed:
            raise self.error()
        return serialise.loads(self.payload)

    def error(self) -> BaseException:
        """What a failed task raised."""
        return failures.to_exception(serialise.loads(self.payload))

    def cause(self) -> str:
        """The same in one line."""
        failure: failures.Failure = serialise.loads(self.payload)
        return failure.cause


class NotMadeYet(TimeoutError):
    """A lost result has not been made again in the time that its reader has. It is on its way."""


class Origin(Protocol):
    """How a result was made."""

    def made_again(self, lost: BlockLostError, ends_s: float | None, /) -> Outcome:
        """Wait for the outcome of making it again, until then (monotonic). Raises BlockLostError when that cannot be
        done, NotMadeYet.
        """


@dataclass(frozen=True, slots=True)
class StayedOutcome(Outcome):
    """A result that stays in the shared memory of the node with this id: the payload names the block."""

    size_bytes: int = 0
    node: str = ""
    origin: Origin | None = None

    def value(self, ends_s: float | None = None) -> Any:
        """As any outcome's; when nobody has it any more, it is made again first. Raises NotMadeYet."""
        try:
            return serialise.loads(self.payload)
        except BlockLostError as lost:
            if self.origin is None:
                raise
            return self.origin.made_again(lost, ends_s).value(ends_s)


Settled = Outcome | BaseException | None  # how a task ended; None: cancelled


class _Undecoded(Exception):
    """In the place of a failed task's exception until somebody asks for it; waiters are told of a failure at once."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


class Source(Protocol):
    """The job of a future's task."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> object: ...
    def cancel_task(self, index: int) -> None: ...
    def story(self, index: int) -> Story | None: ...


_MADE_WHEN_USED: dict[str, Callable[[], Any]] = {
    "_condition": Condition,
    "_waiters": list,
    "_done_callbacks": list,
    "_notice": threading.Lock,
}


class Future(concurrent.futures.Future[Any]):
    """What `submit` returns. `task` is its id, "JOB.INDEX"; `owner` the connection that it belongs to."""

    # What most futures never get beyond is told by the class.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _keeps = False
    _kept: Outcome | None = None  # as it came, when it is kept
    _viewed = False  # what it was unpickled to may be views of its payload
    _hash = ""

    def __init__(self, source: Source, index: int) -> None:
        self._source = source  # and nothing of what the base class makes
        self._index = index

    def __getattr__(self, name: str) -> Any:
        """Called for what is not there: make it, once, whichever thread comes first."""
        make = _MADE_WHEN_USED.get(name)
        if make is None:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'", name=name, obj=self)
        return self.__dict__.setdefault(name, make())

    @property
    def task(self) -> str:
        return f"{self._source.id}.{self._index}"

    @property
    def job(self) -> str:
        return self._source.id

    @property
    def owner(self) -> object:
        return self._source.owner

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result. Raises what the task raised, TaskLostError, CancelledError, or TimeoutError."""
        ends_s = None if timeout is None else time.monotonic() + timeout
        value = self._await(timeout)
        if isinstance(value, Outcome):
            return self._decoded(value, ends_s)
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what `result` would raise."""
        try:
            self.result(timeout)
        except concurrent.futures.CancelledError:
            if self.cancelled():
                raise
            return self._exception
        except BaseException as error:
            if self.done() and (error is self._exception or (isinstance(error, KosError) and self._unread(error))):
                return error
            raise
        return None

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Any]], object]) -> None:
        """Call `fn(future)` once it is done, in the context of this call: what it prints belongs to the caller's cell.

        It is called in the mesh thread, so it must not wait for other tasks.
        """
        context = contextvars.copy_context()
        super().add_done_callback(lambda future: context.run(fn, future))

    def cancel(self) -> bool:
        """Cancel the task, also when it runs already: it is stopped meanwhile. False when it is done."""
        if self.done():
            return self.cancelled()
        if not self._end_as_cancelled():
            return False
        self._source.cancel_task(self._index)
        return True

    def story(self) -> Story | None:
        """Every attempt at this task: node, times, how it ended. None once the cluster is closed."""
        return self._source.story(self._index)

    def settle(self, outcome: Settled) -> None:
        """Called by the mesh: the outcome, an error of the mesh, or None when cancelled. Only the first counts."""
        try:
            if outcome is None:
                self._end_as_cancelled()
            elif isinstance(outcome, BaseException):
                self.set_exception(outcome)
            elif not outcome.failed:
                self.set_result(outcome)
            elif not self.done():
                self._result = outcome  # where it is looked for as an input
                self.set_exception(_Undecoded(outcome))
        except concurrent.futures.InvalidStateError:
            return  # it was cancelled, perhaps in this moment

    def settled(self) -> Settled:
        """How the task ended, once it is done: its outcome as it came, an error of the mesh, or None if cancelled."""
        if self.cancelled():
            return None
        try:
            outcome: Outcome = super().result(0)
        except _Undecoded as held:
            return held.outcome
        except Exception as error:
            return error
        return outcome

    # ---- as an input of other tasks

    def keep(self) -> None:
        """Keep the outcome as it comes, for tasks that are passed this future. Raises NotPicklableError.

        What was unpickled before is pickled again, as it is now.
        """
        with self._condition:
            if isinstance(self._result, Outcome) and self._kept is None:
                # Who unpickles it at this moment may get views of the payload, and change it through them later. Else
                # it must be the same object: blocks that it refers to live as long.
                outcome = self._result
                self._kept = replace(outcome, payload=bytes(outcome.payload)) if self._viewed else outcome
            if self._kept is not None or not self.done() or self.cancelled() or self._exception is not None:
                self._keeps = True
                return
        pickled = serialise.dumps_result(self._result)
        self._keep(Outcome(pickled if isinstance(pickled, bytes) else b"".join(pickled)))

    def ending(self) -> Settled:
        """How a task that is over ended, nothing unpickled; asked after `keep`."""
        if self.cancelled():
            return None
        if self._kept is not None:
            return self._kept
        return self._result if isinstance(self._result, Outcome) else self._exception

    def payload_hash(self) -> str:
        """The name of the kept payload as a part: hex SHA-256."""
        if not self._hash:
            ending = self.ending()
            assert isinstance(ending, Outcome)
            self._hash = hashlib.sha256(ending.payload).hexdigest()
        return self._hash

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return places.reduced(self)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        over: Answer[None] = Answer()
        super().add_done_callback(lambda _: over.set_result(None) if over.set_running_or_notify_cancel() else None)
        try:
            await asyncio.wrap_future(over)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(self._result, StayedOutcome):  # to get it may take a while, in which the loop goes on
            return await asyncio.to_thread(self.result)
        return await asyncio.wrap_future(self)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "done" if self.done() else "pending"
        return f"<kos Future {self.task} {state}>"

    def _repr_html_(self) -> str:
        return showing.future(repr(self), self.story())

    def _end_as_cancelled(self) -> bool:
        if not super().cancel():
            return False
        if self._notice.acquire(blocking=False):  # waiters are told once, whichever thread comes first
            self.set_running_or_notify_cancel()
        return True

    def _await(self, timeout: float | None) -> Any:
        try:
            return super().result(timeout)
        except _Undecoded as held:
            return held.outcome
        except KeyboardInterrupt:
            self._source.cancel_task(self._index)  # the future itself ends when that is known to be done
            raise

    def _decoded(self, outcome: Outcome, ends_s: float | None) -> Any:
        """Unpickle once; what comes out stays."""
        with self._condition:
            self._keeps = self._keeps or isinstance(outcome, StayedOutcome)
            self._viewed = not self._keeps
        try:
            readable = outcome if self._viewed else replace(outcome, payload=memoryview(outcome.payload).toreadonly())
            value = readable.value(ends_s)
        except BaseException as error:
            if self._unread(error):
                raise
            with self._condition:
                self._keep(outcome)  # it tells the node, for tasks that are passed this future
                self._exception = error
                self._result = None
            raise
        with self._condition:
            if self._keeps:
                self._keep(outcome)
            self._result = value
        return value

    def _unread(self, error: BaseException) -> bool:
        """Whether this says that a result which stayed cannot be got now; it may be later."""
        later = KosError, NotMadeYet, KeyboardInterrupt
        return isinstance(error, later) and isinstance(self._result, StayedOutcome)

    def _keep(self, outcome: Outcome) -> None:
        """Keep this, unless one is kept: what other tasks were passed stays."""
        with self._condition:
            self._keeps = True
            if self._kept is None:
                self._kept = outcome
