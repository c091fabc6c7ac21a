"""Where the output of remote work goes in a notebook: under the cell that submitted it.

Theory of operation. IPython's streams, display publisher and displayhook find the cell that output belongs to in
context variables. A `CellSink` is made in the submitting thread, keeps a copy of that thread's context, and enters it
whenever the mesh thread hands it output; so output finds its cell although others run meanwhile, and long after it
has ended.

All submissions of one cell share a sink.

Rules: a sink never raises into the mesh thread for what the other side sent, and keeps no more than one incomplete
character a task and stream. Of the remote output of one cell at most `OUTPUT_LIMIT_BYTES` are shown; `kos logs` has
the rest.
"""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython

from kos_kernel.bar import Bar, bar_for

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kos_cluster.core.records import JobSummary
    from kos_cluster.tasks.output import Sink

OUTPUT_LIMIT_BYTES = 64 << 20  # of remote prints and displays in one cell
PROFILE = "profile"  # `kos_cluster.tasks.profiling.KIND`, which loading must not load
BARS_LIMIT = 8  # jobs of one cell that show their progress at the same time

_default_sink_before: list[Callable[[], Sink]] = []


def register(shell: InteractiveShell) -> None:
    """Make notebook sinks the default of this process."""
    from kos_cluster.tasks import output

    if not _default_sink_before:
        _default_sink_before.append(output.default_sink)
        output.default_sink = sink_of_this_cell


def unregister() -> None:
    from kos_cluster.tasks import output

    if _default_sink_before:
        output.default_sink = _default_sink_before.pop()


def sink_of_this_cell() -> CellSink:
    """The sink of the cell that runs in the calling thread; the last one made is kept, so one cell gets one sink."""
    global _latest
    shell = get_ipython()
    cell = _cell_key(shell)
    if _latest is None or _latest[0] != cell:
        _latest = cell, CellSink(shell)
    return _latest[1]


_latest: tuple[tuple[object, ...], CellSink] | None = None


def _cell_key(shell: Any) -> tuple[object, ...]:
    """What tells cells apart, and a part of a cell whose output is captured from the rest of it."""
    publisher = getattr(shell, "display_pub", None)
    parent = getattr(publisher, "parent_header", {}).get("msg_id", "")
    return parent, getattr(shell, "execution_count", 0), id(publisher), id(sys.stdout), id(sys.stderr)


class CellSink:
    """The sink of one cell: the one that runs when it is made."""

    def __init__(self, shell: Any) -> None:
        self._context = contextvars.copy_context()
        # A context can be entered by one thread at a time; also, output keeps its order.
        self._lock = threading.RLock()
        self._streams = {"stdout": sys.stdout, "stderr": sys.stderr}
        self._shell = shell
        self._publisher = getattr(shell, "display_pub", None)
        self._count = shell.displayhook.prompt_count if shell is not None else 0
        self._decoders: dict[tuple[str, str], codecs.IncrementalDecoder] = {}
        self._left_bytes = OUTPUT_LIMIT_BYTES
        self._bars: dict[str, Bar] = {}
        self._take_profile: Callable[[Mapping[str, Any]], None] | None = None

    @contextlib.contextmanager
    def profiled(self, take: Callable[[Mapping[str, Any]], None]) -> Iterator[None]:
        """Give the profiles of tasks, which come as displays, to `take` meanwhile."""
        self._take_profile = take
        try:
            yield
        finally:
            with self._lock:
                self._take_profile = None

    def write(self, task: str, stream: str, data: bytes) -> None:
        with self._lock:
            if self._allow(task, len(data)):
                self._write(stream, self._decoded(task, stream, data))

    def display(self, task: str, content: dict[str, Any]) -> None:
        with self._lock:
            if content.get("kind") == PROFILE:
                if self._take_profile is not None:
                    self._take_profile(content)
            elif self._allow(task, sum(len(value) for value in _bundle(content).values() if isinstance(value, str))):
                self._context.run(self._show, content)

    def progress(self, summary: JobSummary, waits: str) -> None:
        with self._lock:
            bar = self._bars.get(summary.job)
            if bar is None and len(self._bars) < BARS_LIMIT:
                bar = self._bars[summary.job] = bar_for(self._shell, self._streams["stderr"])
            if bar is not None:
                self._context.run(bar.show, summary, waits)

    def finished(self, summary: JobSummary) -> None:
        with self._lock:
            bar = self._bars.pop(summary.job, None)
            if bar is not None:
                self._context.run(bar.finish, summary)

    def _allow(self, task: str, length: int) -> bool:
        if self._left_bytes < 0:
            return False
        self._left_bytes -= length
        if self._left_bytes < 0:
            job = task.partition(".")[0]
            limit = f"{OUTPUT_LIMIT_BYTES >> 20} MiB"
            self._write("stderr", f"\nkos: more than {limit} of output; the rest is left out. {_rest_of(job)}\n")
            return False
        return True

    def _write(self, stream: str, text: str) -> None:
        target = self._streams.get(stream, sys.stderr)
        if text:
            self._context.run(target.write, text)
            if not hasattr(target, "pub_thread"):  # a notebook's stream flushes itself, in its own thread
                self._context.run(target.flush)

    def _decoded(self, task: str, stream: str, data: bytes) -> str:
        key = task, stream
        decoder = self._decoders.pop(key, None) or codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data)
        if decoder.getstate()[0]:
            self._decoders[key] = decoder
        return text

    def _show(self, content: dict[str, Any]) -> None:
        kind = content.get("kind", "display_data")
        if self._publisher is None:
            self._streams["stdout"].write(f"{_bundle(content).get('text/plain', '')}\n")
        elif kind == "clear_output":
            self._publisher.clear_output(wait=bool(content.get("wait")))
        elif kind == "execute_result" and _publishes_results(self._shell):
            self._show_result(content)
        else:
            self._publisher.publish(
                data=_bundle(content),
                metadata=content.get("metadata") or {},
                transient=content.get("transient") or {},
                update=kind == "update_display_data",
            )

    def _show_result(self, content: dict[str, Any]) -> None:
        hook = self._shell.displayhook
        self._streams["stdout"].flush()
        self._streams["stderr"].flush()
        message = {
            "execution_count": self._count,
            "data": _bundle(content),
            "metadata": content.get("metadata") or {},
        }
        hook.session.send(hook.pub_socket, "execute_result", message, parent=hook.parent_header, ident=hook.topic)


def _rest_of(job: str) -> str:
    """Where the output of a job can be had that is not shown."""
    from kos_cluster.services.engines.owner import engine_of  # most programs use no engine

    engine = engine_of(job)
    if engine:
        return f"Nobody keeps it, as the job is on engine {engine}: let its tasks write to files."
    return f"Type 'kos logs {job}'."


def _bundle(content: dict[str, Any]) -> dict[str, Any]:
    """The mime bundle: under `data`, or all of what user code gave `context.display` itself."""
    data = content.get("data")
    if isinstance(data, dict):
        return data
    return {} if "kind" in content else content


def _publishes_results(shell: Any) -> bool:
    """Whether results go out as messages of their own: in a kernel, and not while `%%capture` collects them."""
    return hasattr(shell.displayhook, "session") and sys.displayhook is shell.displayhook
