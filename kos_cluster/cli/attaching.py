"""`kos attach`: watch a detached job until it ends, and take what it gives.

Rules: the job's output goes to stdout as it is, what KOS says to stderr; a program's exit code is ours, and a map's is
1 when a task of it failed. An interrupt ends the watching and leaves the job alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos_cluster.cli.console import Console
from kos_cluster.core.driving import Kind
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import StateError, UsageError

if TYPE_CHECKING:
    from kos_cluster.net.detached import DetachedJob as Record
    from kos_cluster.tasks.detached import DetachedJob
    from kos_cluster.tasks.script import CommandResult

EXIT_CANCELLED = 130  # as if it had been interrupted
EXIT_INTERRUPTED = 130


def attach_(parsed: argparse.Namespace, console: Console) -> int:
    """Show a job's output until it has ended; its exit code."""
    folder = Path(parsed.files) if parsed.files is not None else None
    if folder is not None and not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Make it first: what the script wrote goes into it.")
    import kos_cluster as kos

    job = kos.connect(parsed.cluster).attach(parsed.id)
    try:
        record = job.follow(lambda data: console.raw(console.out, data), lambda text: console.note(f"kos: {text}"))
    except KeyboardInterrupt:
        console.note(f"kos: job {job.id} goes on; 'kos attach {job.id}' shows it again, 'kos cancel {job.id}' ends it.")
        return EXIT_INTERRUPTED
    if record.state == JobState.CANCELLED:
        console.note(f"kos: the job was cancelled by {record.ended_by}.")
        return EXIT_CANCELLED
    if record.done == record.total:
        _show_results(job, record, folder, console)
    elif folder is not None:
        raise StateError(f"Job {job.id} has ended without a result, so it has no files.", f"See 'kos story {job.id}'.")
    return record.exit_code or 0


def _show_results(job: DetachedJob, record: Record, folder: Path | None, console: Console) -> None:
    if record.kind == Kind.MAP:
        _show_values(job, record, console)
        return
    (outcome,) = job.outcomes()
    _show_files(job, outcome.value(), folder, console)  # or raises why it failed


def _show_values(job: DetachedJob, record: Record, console: Console) -> None:
    """A line a result, unless there is nothing but None; a line on stderr for each that failed."""
    values: dict[int, Any] = {}
    for task, outcome in enumerate(job.outcomes()):
        if outcome.failed:
            error = outcome.error()
            console.note(f"kos: task {job.id}.{task} failed: {type(error).__name__}: {error}")
        else:
            values[task] = outcome.value()
    if any(value is not None for value in values.values()):
        for task, value in values.items():
            console.answer(repr(value) if record.total == len(values) else f"{task}: {value!r}")
    console.note(f"kos: {record.done - record.failed} of {record.total} tasks done.")


def _show_files(job: DetachedJob, result: CommandResult, folder: Path | None, console: Console) -> None:
    from kos_cluster.tasks.changes import Merger
    from kos_cluster.tasks.launching import merge_files

    if folder is not None:
        merge_files(Merger(folder), job.id, result, lambda text: console.note(f"kos: {text}"))
    elif result.changes is not None:
        console.note(f"kos: it wrote files; 'kos attach {job.id} --files FOLDER' brings them.")
