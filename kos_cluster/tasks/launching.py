"""Run a script or a command on the cluster and wait for it: what `kos run`, `kos cluster exec` and the magics share.

Rules it keeps:
- each is one task in a fresh worker; it runs again only if the caller says so, since its output would repeat;
- the exit code is the program's own; what KOS itself has to say goes to `report`, a sentence at a time: so why a
  program has not begun that waits for `TOLD_AFTER_S`;
- the first interrupt cancels the work everywhere, the second stops waiting for that;
- files come back only when the program has ended, and never over what the user has changed meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos_cluster.core.records import TaskState
from kos_cluster.errors import GangError, KosError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.tasks import script, serialise
from kos_cluster.tasks.changes import Merger, MergeReport, describe, left_out_error
from kos_cluster.tasks.failures import TaskExitedError
from kos_cluster.tasks.job import JobSpec
from kos_cluster.tasks.modules import installed_imports
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.output import Sink
from kos_cluster.tasks.script import CommandResult
from kos_cluster.tasks.workspace import Snapshot, pack, snapshot

if TYPE_CHECKING:
    from kos_cluster.tasks.cluster import Cluster

TOLD_AFTER_S = 5.0  # that a program, but no gang, waits to begin
CANCEL_WAIT_S = 10.0  # for the end of what an interrupt has cancelled
PYTHONS = ("python", "python3")

Report = Callable[[str], None]


def to_stderr(sentence: str) -> None:
    """Where KOS's own words go when the caller names no other place."""
    print(f"kos: {sentence}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Program:
    """A script or command, ready to go: its one task, and the folder that it was taken from, if one goes along."""

    spec: JobSpec
    payload: bytes
    taken: Snapshot | None = None


def run_script(
    cluster: Cluster,
    argv: Sequence[str],
    folder: Path,
    *,
    report: Report = to_stderr,
    **options: Any,
) -> int:
    """Run a Python script in a copy of `folder` on one node; its process pools use all of them, if `redirect`.

    `argv` and the options are those of `script_program`. Returns the script's exit code. Raises UsageError when it is
    not in the folder, LimitError when the folder is too large to go or to come back.
    """
    program = script_program(argv, folder, report=report, **options)
    task, result = _run(cluster, program, report)
    assert program.taken is not None
    merge_files(Merger(program.taken.folder, program.taken.manifest), task, result, report)
    return result.exit_code


def run_command(cluster: Cluster, command: str | Sequence[str], *, report: Report = to_stderr, **options: Any) -> int:
    """Run a command on a node, without any file of the user's; see `command_program`. Returns its exit code."""
    return _run(cluster, command_program(command, **options), report)[1].exit_code


def run_gang(cluster: Cluster, program: Program, ranks: int, restarts: int, report: Report = to_stderr) -> int:
    """Run a program as each rank of a gang. Returns 0, or the exit code of the first rank that failed.

    Files come back from rank 0 alone. Raises GangError when a rank was lost.
    """
    gang = cluster.gang_program(program, ranks, restarts)
    try:
        results: list[CommandResult] = gang.result()
    except GangError as error:
        if not isinstance(error.__cause__, TaskExitedError):
            raise
        report(error.message)
        return error.__cause__.exit_code
    if program.taken is not None:
        merge_files(Merger(program.taken.folder, program.taken.manifest), f"{gang.id}.0", results[0], report)
    return 0


def is_script(argv: Sequence[str]) -> bool:
    """Whether a command is a Python script, perhaps with a "python" in front."""
    words = argv[1:] if argv and os.path.basename(argv[0]) in PYTHONS else argv
    return bool(words) and words[0].endswith(".py")


def script_program(
    argv: Sequence[str],
    folder: Path,
    *,
    redirect: bool = True,
    env: Mapping[str, str] | None = None,
    sink: Sink | None = None,
    report: Report = to_stderr,
    **options: Any,
) -> Program:
    """A Python script with a copy of `folder`. `argv` is the script with its arguments, a "python" in front allowed.

    The other options are those of `Options`. Raises UsageError when it is not in the folder, LimitError when the folder
    is too large to go.
    """
    folder = folder.resolve()
    name, *arguments = _without_python(argv)
    path = _script_in(folder, name)
    taken = snapshot(folder)
    if path not in taken.manifest:
        why = taken.left_out.get(path, "is left out by .kosignore")
        raise UsageError(f"The script {path} cannot be sent: it {why}.", "Move it, or change .kosignore.")
    for left, why in taken.left_out.items():
        report(f"{left} stays here: it {why}.")
    archive = pack(taken)
    digest = hashlib.sha256(archive).hexdigest()
    shown = name if not os.path.isabs(name) else path
    given, told = dict(env or {}), _once(options)
    spec = JobSpec(
        fn=serialise.dumps_callable(script.run_command),
        environment=Environment(workspace=digest, environ=given, threads=told.cpus, fresh=True),
        parts={digest: archive},
        options=told,
        sink=sink,
        name=shown,
        modules=installed_imports(os.fspath(folder / path), taken.manifest),
    )
    call = {"environ": given, "redirect": redirect, "script": shown}
    return Program(spec, serialise.dumps_args((["python", shown, *arguments],), call), taken)


def command_program(
    command: str | Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    sink: Sink | None = None,
    **options: Any,
) -> Program:
    """A command, without any file of the user's: a string by /bin/sh, or words. The other options: of `Options`."""
    shell = isinstance(command, str)
    words = [command] if isinstance(command, str) else list(command)
    if not words or not words[0]:
        raise UsageError("No command was given.", "Type for example: kos run hostname")
    given, told = dict(env or {}), _once(options)
    spec = JobSpec(
        fn=serialise.dumps_callable(script.run_command),
        environment=Environment(environ=given, threads=told.cpus, fresh=True),
        options=told,
        sink=sink,
        name=" ".join(words)[:80],
    )
    return Program(spec, serialise.dumps_args((words,), {"shell": shell, "environ": given}))


def _once(options: Mapping[str, Any]) -> Options:
    """In a worker of its own; again only if the caller says so."""
    return Options(**{"retries": 0, **options, "fresh": True})


def _run(cluster: Cluster, program: Program, report: Report) -> tuple[str, CommandResult]:
    """Launch, wait, and give the task's id with its result. Interrupted, it cancels, and waits for that to be done."""
    job = cluster.launch(program.spec)
    future = job.add(program.payload)
    job.close()
    try:
        with contextlib.suppress(TimeoutError):  # if it is the task's own it comes again
            future.result(TOLD_AFTER_S)
        for sentence in () if future.done() else _why_it_waits(cluster, future.task):
            report(sentence)
        result: CommandResult = future.result()
    except KeyboardInterrupt:
        job.cancel()
        wait_for([future], CANCEL_WAIT_S)  # a second interrupt ends this wait
        raise
    return future.task, result


def _why_it_waits(cluster: Cluster, task: str) -> Iterator[str]:
    """A sentence, unless it runs or is over already."""
    try:
        rows = cluster.why(task)
    except KosError as error:
        yield f"it has not ended, and where it is cannot be told now: {error.message}"
        return
    for row in rows:
        if row.state in (TaskState.WAITING, TaskState.SENT):
            yield f"it has not begun: {row.why}. Type 'kos why {task}' later to see more."


# ---- before


def _without_python(argv: Sequence[str]) -> list[str]:
    words = list(argv)
    if words and os.path.basename(words[0]) in PYTHONS:
        del words[0]
    if not words:
        raise UsageError("No script was given.", "Type for example: kos run --distribute script.py")
    if words[0].startswith("-"):
        raise UsageError(
            f"A script is run across the cluster, not python {words[0]}.", "Put the code into a file, and name that."
        )
    return words


def _script_in(folder: Path, name: str) -> str:
    """The script's path relative to the folder. Raises UsageError when there is none, or it is elsewhere."""
    place = Path(os.path.normpath(folder / name))
    if not place.is_file():
        raise UsageError(f"There is no script {name} in {folder}.", f"The path searched is {place}.")
    # The folder's own links are resolved, those beneath it are not: they travel as links.
    beneath = place.parent.resolve() / place.name
    if not beneath.is_relative_to(folder):
        raise UsageError(
            f"The script {place} is not in {folder}, and only that folder is sent.",
            "Change to the script's folder, or to one above it, and run it from there.",
        )
    return os.fspath(beneath.relative_to(folder))


# ---- after


def merge_files(merger: Merger, task: str, result: CommandResult, report: Report) -> None:
    """Merge what a script wrote. Raises LimitError when some of it could not come."""
    if result.changes is not None:
        merged = merger.apply(result.changes, task)
        for sentence in _sentences(merged):
            report(sentence)
    too_large = {path: why for path, why in result.left_out.items() if "link" not in why}
    for path in result.left_out.keys() - too_large.keys():
        report(f"{path} stays there: it {result.left_out[path]}.")
    if too_large:
        raise left_out_error(too_large)


def _sentences(merged: MergeReport) -> list[str]:
    said = []
    if merged.written:
        count = len(merged.written)
        said.append(f"{count} {'file or folder' if count == 1 else 'files and folders'} written.")
    for path, copy in merged.conflicts.items():
        said.append(f"{path} has changed here too; the cluster's version is {copy}.")
    if merged.refused:
        said.append(f"Not written: {describe(merged.refused)}.")
    return said
