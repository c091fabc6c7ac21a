"""Where task code finds out who it is, and shows things: `current()` and `display()`.

Rules: imported by every worker and by user code inside tasks, so it stays tiny. The worker writes `here`; everybody
else only reads it. There is one running task a worker, so this is plain module state and user threads see it too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from kos_cluster.errors import LimitError, UsageError

DISPLAY_LIMIT_BYTES = 8 << 20  # of one display's JSON; it must fit a control message
_NONE = -1


class TaskContext(NamedTuple):
    """The task that this process is running."""

    node: str
    task: str  # "JOB.INDEX"
    attempt: int


class Here:
    """The worker's own note of what runs now. Slots, because the worker's inner loop writes `index` for each task."""

    __slots__ = ("arena", "attempt", "batch", "index", "job", "meet", "node", "owner", "show")

    def __init__(self) -> None:
        self.arena: Path | None = None  # of this worker's node; None in a process that is no worker
        self.node = ""
        self.owner = ""
        self.job = ""
        self.attempt = 0
        self.batch = 0
        self.index = _NONE
        self.show: Callable[[int, int, bytes], None] | None = None  # batch, index, JSON
        self.meet: Callable[[int, int, bytes], bytes] | None = None  # batch, index, for a rank's owner -> its answer

    def runs(self, batch: int) -> bool:
        """Whether a task of that batch is running."""
        return self.index != _NONE and self.batch == batch

    def leave(self) -> None:
        """No task runs any more."""
        self.index = _NONE


here = Here()


def current() -> TaskContext | None:
    """The task that this code runs in, or None outside one."""
    index = here.index
    if index == _NONE:
        return None
    return TaskContext(here.node, f"{here.job}.{index}", here.attempt)


def display(content: dict[str, Any]) -> None:
    """Show something under the cell that submitted the task, in order with what was printed before and after.

    `content` must be JSON-able. Returns when the daemon has taken it. Works from any thread of the task.
    """
    batch, index, show = here.batch, here.index, here.show
    if index == _NONE or show is None:
        raise UsageError("display() was called outside a task.", "Call it in code that a cluster runs as a task.")
    try:
        data = msgspec.json.encode(content)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"display() takes what JSON can hold ({error}).") from error
    if len(data) > DISPLAY_LIMIT_BYTES:
        raise LimitError(
            f"A display of {len(data)} bytes is over the limit of {DISPLAY_LIMIT_BYTES}.",
            "Show less, or return the value as the task's result.",
        )
    show(batch, index, data)
