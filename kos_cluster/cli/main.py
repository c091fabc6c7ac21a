"""The `kos` command: parse, find the action, run it, turn its end into an exit code.

Exit codes: 0 done; the `exit_code` of the KosError; that of the program that `run` or `exec` ran; 70 an error in KOS
itself; 130 interrupted; 141 the reader of stdout went away. No end shows a traceback: an error in KOS goes to a report
in KOS_HOME/crashes, of which the last `CRASH_REPORTS_LIMIT` are kept.

Rules: an action's module is imported when it is asked for, so `kos --help` costs no more than the grammar.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from kos_cluster.errors import KosError, StateError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from kos_cluster.cli.console import Console

Action = Callable[["argparse.Namespace", "Console"], int]

EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
LOOK = "Type 'kos doctor' to look for the cause."  # the next step after an error that names none
CRASH_REPORTS_LIMIT = 20

MODULES = {
    "forming": ("up", "down", "node"),
    "members": ("create", "token", "join", "leave"),
    "caring": ("drain", "remove", "rotate"),
    "locking": ("lock", "locks"),
    "registering": ("register",),
    "doctoring": ("doctor",),
    "looking": ("status", "nodes"),
    "memory": ("mem_status",),
    "engines": ("engine_start", "engine_list", "engine_status", "engine_scale", "engine_stop", "engine_dashboard"),
    "running": ("exec", "run"),
    "dryrunning": ("dry_run",),
    "attaching": ("attach",),
    "work": ("ps", "cancel", "logs", "why", "story"),
    "top": ("top", "monitor"),
    "metrics": ("metrics",),
    "reporting": ("profile", "report"),
    "kernels": ("kernel_install", "kernel_list", "kernel_remove"),
    "bench": ("bench", "bench_control", "bench_notebook", "bench_memory", "bench_queued", "bench_engines"),
    "sim": ("sim",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller has closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        code = run(sys.argv[1:] if argv is None else argv, sys.stdout, sys.stderr)
    except KeyboardInterrupt:  # a second one, while the first was being told
        code = EXIT_INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left is short: to say goodbye to the nodes
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_PIPE
    except OSError as error:
        code = _say(sys.stderr, f"kos: the output could not be written ({error.strerror}).", StateError.exit_code)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code == EXIT_PIPE:  # or the interpreter complains when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def run(argv: Sequence[str], out: TextIO, err: TextIO, console: Console | None = None) -> int:
    """Run one command line (without the leading `kos`) and return its exit code. Never raises, never exits.

    `console`: what the command talks to, if not plainly to `out` and `err`.
    """
    try:
        return _act(argv, out, err, console)
    except KosError as error:
        return _say(err, f"kos: {error.message} {error.hint or LOOK}", error.exit_code)
    except KeyboardInterrupt:
        return _say(err, "kos: interrupted.", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return EXIT_PIPE
    except OSError as error:
        if error.filename is None:
            return _say(err, _reported(argv, error), EXIT_INTERNAL)
        return _say(err, f"kos: {error.filename}: {error.strerror}.", StateError.exit_code)
    except Exception as error:  # the last line of defence: a sentence for the user, the traceback for a report
        return _say(err, _reported(argv, error), EXIT_INTERNAL)


def _act(argv: Sequence[str], out: TextIO, err: TextIO, console: Console | None) -> int:
    from kos_cluster.cli.grammar import parse
    from kos_cluster.cli.parser import Shown

    try:
        parsed = parse(argv)
    except Shown as shown:
        out.write(shown.text)
        return 0
    return _action(parsed.action)(parsed, console or _console(out, err))


def _say(err: TextIO, text: str, code: int) -> int:
    err.write(text + "\n")
    err.flush()
    return code


def _console(out: TextIO, err: TextIO) -> Console:
    from kos_cluster.cli.console import Console

    return Console(out, err)


def _action(name: str) -> Action:
    module = next(module for module, names in MODULES.items() if name in names)
    action: Action = getattr(importlib.import_module(f"kos_cluster.cli.{module}"), f"{name}_")
    return action


def _reported(argv: Sequence[str], error: Exception) -> str:
    """Write the traceback to a report; the sentence that says where."""
    import time
    import traceback

    from kos_cluster.home import Home, private_folder, write_private

    summary = f"kos: an error in KOS itself: {type(error).__name__}: {error}."
    words = [word for word in argv if "KOS1." not in word]  # a token is a secret
    text = f"kos {' '.join(words)}\n{''.join(traceback.format_exception(error))}"
    try:
        folder = private_folder(Home().path / "crashes")
        report = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        write_private(report, text.encode(errors="backslashreplace"))
        _prune(folder)
    except OSError as unwritten:
        return f"{summary} No report could be written ({unwritten})."
    return f"{summary} A report is in {report}; please send it to the maintainers."


def _prune(folder: Path) -> None:
    for old in sorted(folder.glob("*.txt"))[:-CRASH_REPORTS_LIMIT]:
        old.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
