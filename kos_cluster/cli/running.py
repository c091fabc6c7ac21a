"""`kos cluster exec` and `kos run`: a command on one node, a program on the cluster, a script across it.

Rules: output streams as it comes, the program's exit code is ours. The first interrupt stops the remote program,
the second one stops waiting for that.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kos_cluster.cli.console import Console
from kos_cluster.errors import UsageError

if TYPE_CHECKING:
    from kos_cluster.cli.progress import TerminalSink


def exec_(parsed: argparse.Namespace, console: Console) -> int:
    """Run a shell command on one node."""
    if not parsed.argv:
        raise UsageError("No command was given.", "Type: kos cluster exec NODE 'command'.")
    import kos_cluster as kos
    from kos_cluster.tasks import launching

    line = parsed.argv[0] if len(parsed.argv) == 1 else list(parsed.argv)
    cluster = kos.connect(parsed.cluster)
    return _streamed(console, lambda sink: launching.run_command(cluster, line, on=parsed.node, sink=sink))


def run_(parsed: argparse.Namespace, console: Console) -> int:
    """Run a command somewhere, or with --distribute a script across the cluster."""
    _check(parsed)
    options = {
        "on": parsed.on,
        "cpus": parsed.cpus,
        "memory": parsed.memory,
        "timeout": parsed.timeout,
        "retries": parsed.retries or 0,
        "env": environment(parsed.env),
    }
    argv, redirect = script_words(parsed.argv) if parsed.distribute else parsed.argv, not parsed.no_redirect
    import kos_cluster as kos
    from kos_cluster.tasks import launching

    cluster = kos.connect(parsed.cluster)
    if not parsed.distribute:
        return _streamed(console, lambda sink: launching.run_command(cluster, argv, sink=sink, **options))
    return _streamed(
        console,
        lambda sink: launching.run_script(cluster, argv, Path.cwd(), redirect=redirect, sink=sink, **options),
    )


def script_words(words: Sequence[str]) -> list[str]:
    """The script and its arguments, without a `python` in front. Raises UsageError when it is no such script."""
    argv = list(words)
    if os.path.basename(argv[0]) in ("python", "python3") and len(argv) > 1:
        del argv[0]
    if argv[0].startswith("-"):
        raise UsageError(
            f"--distribute runs a script, not python {argv[0]}.", "Put the code into a file, or leave it out."
        )
    if not Path(argv[0]).is_file():
        raise UsageError(f"There is no script {argv[0]} in {Path.cwd()}.", "Name a Python file that exists.")
    return argv


def environment(variables: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """The variables to take along, with their values. Raises UsageError for one that is not set here."""
    chosen = {}
    for name, value in variables:
        taken = os.environ.get(name) if value is None else value
        if taken is None:
            raise UsageError(f"The environment variable {name} is not set.", f"Set it, or give it: --env {name}=VALUE.")
        chosen[name] = taken
    return chosen


def _check(parsed: argparse.Namespace) -> None:
    for option in ("over", "out", "seed"):
        if getattr(parsed, option) is not None:
            raise UsageError(
                f"--{option} belongs to a notebook's cell, '%%kos run --distribute --{option} ...'.",
                "Leave it out on the command line.",
            )
    if not parsed.argv:
        raise UsageError("Nothing to run was given.", "Type for example: kos run --distribute script.py")
    if parsed.no_redirect and not parsed.distribute:
        raise UsageError("--no-redirect only means something with --distribute.", "Leave it out, or add --distribute.")


def _streamed(console: Console, work: Callable[[TerminalSink], int]) -> int:
    """Run something with its output on the console; its exit code."""
    from kos_cluster.cli.progress import TerminalSink

    sink = TerminalSink(console, time.monotonic)
    try:
        return work(sink)
    except KeyboardInterrupt:
        if sink.broken:
            raise BrokenPipeError from None
        raise
    finally:
        sink.close()
