"""The future of a task: a `concurrent.futures.Future` that can be awaited and tells its story.

Rules. A result is unpickled in the thread that asks for it first, never in the mesh thread, so slow or hostile
unpickling of one's own data can't stall the mesh. `cancel()` also stops a task that runs. An interrupt while waiting
cancels the task.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kos_cluster.tasks import failures, serialise, showing

if TYPE_CHECKING:
    from kos_cluster.core.records import Story


@dataclass(frozen=True, slots=True)
class Outcome:
    """A task's outcome as it came: the pickle of its result, or of its `failures.Failure`."""

    payload: bytes | bytearray | memoryview
    failed: bool = False

    def value(self) -> Any:
        """The result; raises what the task raised."""
        if self.failed:
            raise self.error()
        return serialise.loads(self.payload)

    def error(self) -> BaseException:
        """What a failed task raised."""
        return failures.to_exception(serialise.loads(self.payload))


class Future(concurrent.futures.Future[Any]):
    """What `submit` returns. `task` is its id, "JOB.INDEX"."""

    def __init__(self, task: str, cancel: Callable[[], None], story: Callable[[], Story | None]) -> None:
        super().__init__()
        self.task = task
        self._notice = threading.Lock()
        self._cancel_remote = cancel
        self._ask_story = story

    @property
    def job(self) -> str:
        return self.task.partition(".")[0]

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result. Raises what the task raised, TaskLostError, CancelledError, or TimeoutError."""
        value = self._await(timeout)
        if isinstance(value, Outcome):
            return self._decoded(value)
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
            if self.done() and error is self._exception:
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
        self._cancel_remote()
        return True

    def story(self) -> Story | None:
        """Every attempt at this task: node, times, how it ended. None once the cluster is closed."""
        return self._ask_story()

    def settle(self, outcome: Outcome | BaseException | None) -> None:
        """Called by the mesh: the outcome, an error of the mesh, or None when cancelled. Only the first counts."""
        if self.done():
            return
        if outcome is None:
            self._end_as_cancelled()
        elif isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

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
        except KeyboardInterrupt:
            self._cancel_remote()  # the future itself ends when that is known to be done
            raise

    def _decoded(self, outcome: Outcome) -> Any:
        """Unpickle once; what comes out stays."""
        try:
            value = outcome.value()
        except BaseException as error:
            self._exception: BaseException | None = error
            self._result = None
            raise
        self._result = value
        return value
