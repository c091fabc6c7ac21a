"""What a running job shows on the terminal: its output as it comes, a bar for what lasts, one line at the end.

Rules: the output's bytes are passed on unchanged. The bar is on stderr, only when that is a terminal, and is taken away
before any output is written. Methods of the sink are called in the mesh thread, `close` in the main one. When the
reader of stdout is gone, the main thread is interrupted once, so that the work stops too. What is written belongs to
the context that the sink was made in: the mesh thread serves all cells of a notebook, and this is of one of them.
"""

from __future__ import annotations

import contextvars
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kos_cluster.cli.console import Console, on_terminal
from kos_cluster.cli.tables import ago
from kos_cluster.core.records import JobSummary

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SUMMARY_AFTER_S = 2.0  # what is shorter needs no summary line


class TerminalSink:
    """A `tasks.output.Sink` that writes to a console. Close it when the work has ended."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self.broken = False  # the reader of our output went away
        self._console = console
        self._clock = clock
        self._began_s = clock()
        self._lock = threading.Lock()
        self._context = contextvars.copy_context()
        self._bar: tuple[Progress, TaskID] | None = None
        self._line_open = False  # output ended within a line, where no bar can be drawn
        self._last: JobSummary | None = None

    def write(self, task: str, stream: str, data: bytes) -> None:
        with self._lock:
            self._hide()
            if self.broken:
                return
            try:
                target = self._console.out if stream == "stdout" else self._console.err
                self._context.run(self._console.raw, target, data)
            except BrokenPipeError:
                self.broken = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            self._line_open = not data.endswith(b"\n")

    def display(self, task: str, content: dict[str, Any]) -> None:
        """A terminal shows the plain text of a rich display."""
        text = content.get("data", content).get("text/plain", "")
        self.write(task, "stdout", f"{text}\n".encode())

    def progress(self, summary: JobSummary, waits: str) -> None:
        with self._lock:
            self._last = summary
            if on_terminal(self._console.err) and not self._line_open:
                self._show(summary, waits)

    def finished(self, summary: JobSummary) -> None:
        with self._lock:
            self._last = summary
            self._hide()

    def close(self) -> None:
        """Take the bar away, and say in one line what a job that lasted did."""
        with self._lock:
            self._hide()
            took_s = self._clock() - self._began_s
            if self._last is not None and took_s >= SUMMARY_AFTER_S and not self.broken:
                self._console.note(summary_line(self._last, took_s))

    def _show(self, summary: JobSummary, waits: str) -> None:
        counted = (
            f" {summary.done}/{summary.total}" if summary.total > 1 else ""
        )  # of one task there is nothing to count
        took = ago(self._clock() - self._began_s)
        where = "waits" if waits else f"on {', '.join(summary.nodes) or 'no node yet'}"
        text = f"{summary.name} {where}{counted}, {took}{waits and f': {waits}'}"
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn

            bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                console=RichConsole(file=self._console.err),
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar = bar, bar.add_task(text, total=None)
            bar.start()
        bar, shown = self._bar
        total = summary.total if summary.total > 1 else None
        bar.update(shown, description=text, completed=summary.done, total=total, refresh=True)

    def _hide(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None


def summary_line(summary: JobSummary, took_s: float) -> str:
    """One line about a job that has ended."""
    failed = f", {summary.failed} failed" if summary.failed else ""
    rerun = f", {summary.reruns} run again" if summary.reruns else ""
    tasks = f"{summary.done} of {summary.total} tasks done{failed}{rerun}" if summary.total > 1 else f"ended{rerun}"
    nodes = ", ".join(summary.nodes) or "no node"
    return f"kos: job {summary.job} ({summary.name}) {tasks} after {ago(took_s)} on {nodes}."
