"""Where the output of remote tasks goes: a `Sink` per submission.

Rules. `default_sink` is called in the submitting thread for each submission that names no sink; a front end replaces
it to bind output to the cell that caused it, and returns the same object for the same cell. A sink's methods are
called in the mesh thread and must not block for long; what they raise is reported on stderr and stops nothing.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from kos_cluster.core.records import JobSummary

PROGRESS_AFTER_S = 2.0  # a job that lasts longer shows its progress
PROGRESS_EVERY_S = 0.2


class Sink(Protocol):
    """Takes what tasks write and show. `task` is "JOB.INDEX"."""

    def write(self, task: str, stream: str, data: bytes) -> None:
        """Bytes written to `stream`, "stdout" or "stderr"."""

    def display(self, task: str, content: dict[str, Any]) -> None:
        """What the task passed to `context.display`."""

    def progress(self, summary: JobSummary, waits: str) -> None:
        """Called every `PROGRESS_EVERY_S` once the job has lasted `PROGRESS_AFTER_S`.

        `waits`: on what all of its tasks that are left wait, as a sentence; empty while one is at a node.
        """

    def finished(self, summary: JobSummary) -> None:
        """All tasks so far are final. Only after a `progress`; again when more tasks were added since."""


def tell(call: Callable[..., None], *args: Any) -> None:
    """Call a sink's method."""
    try:
        call(*args)
    except Exception:
        sys.stderr.write("kos: showing a task's output failed:\n")
        traceback.print_exc()


class StandardSink:
    """Writes to this process's own stdout and stderr; shows a display's plain text; no progress."""

    def write(self, task: str, stream: str, data: bytes) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.write(data.decode(errors="replace"))
        out.flush()

    def display(self, task: str, content: dict[str, Any]) -> None:
        text = content.get("data", {}).get("text/plain")
        if text:
            sys.stdout.write(f"{text}\n")

    def progress(self, summary: JobSummary, waits: str) -> None:
        """A program that uses the library shows its own progress."""

    def finished(self, summary: JobSummary) -> None:
        """See `progress`."""


_standard = StandardSink()


def standard_sink() -> Sink:
    """The sink of programs and terminals."""
    return _standard


default_sink: Callable[[], Sink] = standard_sink
