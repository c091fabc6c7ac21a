"""The progress of a job that lasts: a bar while it runs, one line when it has ended.

Rules: works without widgets: in a notebook it is one display that is updated (HTML, with a text form for front ends
without it), on a terminal one line that is rewritten. Where neither is possible only the last line is written. Short
jobs show nothing, because a bar is made at the first `progress`, which only jobs that have lasted report.
"""

from __future__ import annotations

import html
import time
import uuid
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from kos_cluster.core.records import JobSummary
from kos_cluster.tasks.output import PROGRESS_AFTER_S

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

BAR_CHARACTERS = 30
NODES_LIMIT = 8  # named in a line; of more only the number is told


class Bar(Protocol):
    def show(self, summary: JobSummary, waits: str) -> None: ...
    def finish(self, summary: JobSummary) -> None: ...


def bar_for(shell: InteractiveShell | None, stream: TextIO) -> Bar:
    """The bar that this front end can show."""
    if shell is not None and hasattr(shell, "kernel"):
        return NotebookBar(shell.display_pub)
    return LineBar(stream)


class NotebookBar:
    """One display, updated in place."""

    def __init__(self, publisher: Any) -> None:
        self._publisher = publisher
        self._id = f"kos-{uuid.uuid4().hex}"
        self._began_s = time.monotonic() - PROGRESS_AFTER_S
        self._shown = False

    def show(self, summary: JobSummary, waits: str) -> None:
        told = state(summary, waits)
        self._publish(f"{_text_bar(summary)} {told}", f"{_html_bar(summary)} {html.escape(told)}")

    def finish(self, summary: JobSummary) -> None:
        line = last_line(summary, time.monotonic() - self._began_s)
        self._publish(line, f"<pre>{html.escape(line)}</pre>")

    def _publish(self, text: str, markup: str) -> None:
        data = {"text/plain": text, "text/html": markup}
        self._publisher.publish(data=data, metadata={}, transient={"display_id": self._id}, update=self._shown)
        self._shown = True


class LineBar:
    """One line of a terminal, rewritten; on anything else only the last line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._began_s = time.monotonic() - PROGRESS_AFTER_S
        self._rewrites = stream.isatty()
        self._waits = ""  # as it was told last

    def show(self, summary: JobSummary, waits: str) -> None:
        start = "\r\x1b[K" if self._rewrites else ""
        if waits and waits != self._waits:  # on a line of its own, for it may be longer than one that can be rewritten
            self._stream.write(f"{start}kos: {state(summary, waits)}\n")
        self._waits = waits
        if self._rewrites:
            self._stream.write(f"{start}{_text_bar(summary)} {state(summary, waits and 'see above')}")
        self._stream.flush()

    def finish(self, summary: JobSummary) -> None:
        start = "\r\x1b[K" if self._rewrites else ""
        self._stream.write(f"{start}{last_line(summary, time.monotonic() - self._began_s)}\n")
        self._stream.flush()


def state(summary: JobSummary, waits: str) -> str:
    """What a job that has not ended is doing. `waits`: on what all that is left of it waits, if it does."""
    now = f"waiting: {waits}" if waits else f"{summary.running} running on {_nodes(summary)}"
    if summary.total == 1:
        return now.removeprefix("1 ")
    failed = f", {summary.failed} failed" if summary.failed else ""
    return f"{summary.done}/{summary.total} done{failed}, {now}"


def last_line(summary: JobSummary, took_s: float) -> str:
    """What a job that has ended did."""
    tasks = "1 task" if summary.total == 1 else f"{summary.total} tasks"
    failed = f", {summary.failed} failed" if summary.failed else ""
    rerun = f", {summary.reruns} run again" if summary.reruns else ""
    return f"kos: {tasks} on {_nodes(summary)} in {took_s:.1f} s{failed}{rerun}"


def _nodes(summary: JobSummary) -> str:
    if not summary.nodes:
        return "no node yet"
    return ", ".join(summary.nodes) if len(summary.nodes) <= NODES_LIMIT else f"{len(summary.nodes)} nodes"


def _ended(summary: JobSummary) -> float:
    return min(1.0, (summary.done + summary.failed) / max(1, summary.total))


def _text_bar(summary: JobSummary) -> str:
    if summary.total == 1:
        return "kos:"
    filled = round(BAR_CHARACTERS * _ended(summary))
    return f"[{'#' * filled}{'.' * (BAR_CHARACTERS - filled)}]"


def _html_bar(summary: JobSummary) -> str:
    # Of a single task there is nothing to measure: a bar without a value only shows that something goes on.
    value = "" if summary.total == 1 else f' value="{_ended(summary):.4f}"'
    return f'<progress{value} style="width:20em"></progress>'
