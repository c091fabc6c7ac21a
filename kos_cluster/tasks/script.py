"""Scripts and commands on a node. `run_command` is the function of a fresh task; `main` is a script's own process.

Rules it keeps:
- a script sees what plain python would show it: argv, paths, `__main__`, tracebacks, exit code, exit functions; its
  standard input is empty, its output is the worker's own and so streams as it comes;
- what it wrote comes back with its exit code; what could not come back is named;
- cancelled, it gets SIGINT, then SIGTERM, then SIGKILL, each after a bound; the node ends what it left running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from pathlib import Path

from kos_cluster.tasks.changes import Tracker
from kos_cluster.tasks.workspace import workspace_around

INTERRUPT_GRACE_S = 0.5  # from SIGINT to SIGTERM
TERMINATE_GRACE_S = 0.3  # from SIGTERM to SIGKILL
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit codes, as a shell's
GIVEN_VARIABLES = "KOS_GIVEN"  # names of the variables that the submitter gave; a script's tasks get them too
_PYTHONS = ("python", "python3")


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. `changes` is the archive of what it wrote in its workspace; `left_out` what is not in it."""

    exit_code: int
    changes: bytes | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def run_command(
    argv: Sequence[str],
    *,
    shell: bool = False,
    environ: Mapping[str, str] | None = None,
    redirect: bool = False,
    script: str | None = None,
    pass_fds: Sequence[int] = (),
) -> CommandResult:
    """Run a command in this worker's folder and wait for it.

    With `redirect` and `script`, `argv` is [python, option, ..., script, argument, ...], and the script's process pools
    use the whole cluster. With `shell`, `argv` is one string for /bin/sh.
    """
    given = dict(environ or {})
    folder = workspace_around(Path.cwd())
    words = _command(argv, shell=shell, script=script if redirect else None)
    try:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, env=_environment(given), pass_fds=pass_fds)
    except OSError as error:
        return _not_started(words[0], error)
    code = _wait(child)
    if folder is None:
        return CommandResult(code)
    taken = Tracker(folder).take()
    return CommandResult(code, taken.archive, taken.left_out)


def _command(argv: Sequence[str], *, shell: bool, script: str | None) -> list[str]:
    if shell:
        return ["/bin/sh", "-c", *argv]
    words = list(argv)
    if words[0] in _PYTHONS:
        words[0] = sys.executable
    if script is not None:
        at = words.index(script)
        # -P: the folder in which the script happens to run must not shadow what KOS itself imports.
        words[at:at] = ["-P", "-m", __name__ if __name__ != "__main__" else "kos_cluster.tasks.script"]
    return words


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    environ: dict[str, str] = dict(os.environ)
    here = os.path.dirname(sys.executable)
    # The node runs in an environment that nobody has activated; its own python and tools come first.
    environ["PATH"] = os.pathsep.join(filter(None, [here, environ.get("PATH", os.defpath)]))
    environ["PYTHONUNBUFFERED"] = "1"
    environ[GIVEN_VARIABLES] = ",".join(given)
    return environ | dict(given)


def _not_started(name: str, error: OSError) -> CommandResult:
    missing = isinstance(error, FileNotFoundError)
    what = "command not found" if missing else error.strerror
    print(f"kos: {name}: {what} (node {os.environ.get('KOS_NODE', 'unknown')})", file=sys.stderr, flush=True)
    return CommandResult(NOT_FOUND if missing else NOT_EXECUTABLE)


def _wait(child: subprocess.Popen[bytes]) -> int:
    """The exit code, as a shell says it. A KeyboardInterrupt ends the child and goes on."""
    try:
        code = child.wait()
    except KeyboardInterrupt:
        _end(child)
        raise
    return 128 - code if code < 0 else code


def _end(child: subprocess.Popen[bytes]) -> None:
    if os.getpgrp() != os.getpid():  # the leader of a group was interrupted with its group, the child included
        child.send_signal(signal.SIGINT)
    for grace_s, then in ((INTERRUPT_GRACE_S, child.terminate), (TERMINATE_GRACE_S, child.kill)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
            return
        then()
    child.wait()


# ---- the script's own process


def main(argv: list[str]) -> None:
    """Run the script `argv[0]` as python itself would, with its process pools redirected to the cluster."""
    from kos_cluster.tasks import redirect, scriptpool

    script = argv[0]
    path = os.path.join(os.getcwd(), script)
    module = _main_module(path)
    sys.argv = argv
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    redirect.install(path)
    try:
        with open(path, "rb") as file:
            source = file.read()
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            scriptpool.cancel_all()
        _show(error)
        raise
    finally:
        scriptpool.finish()


def _main_module(path: str) -> types.ModuleType:
    """The module that stands for the script, with what python gives it."""
    module = types.ModuleType("__main__")
    vars(module).update(
        __file__=path,
        __cached__=None,
        __builtins__=sys.modules["builtins"],
        __loader__=SourceFileLoader("__main__", path),
        __annotations__={},
    )
    # `__mp_main__` is what workers call it, so that what they return is found here.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return module


def _show(error: BaseException) -> None:
    """Print the traceback without this module's frames, by whatever hook the script has set; once."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    error.__traceback__ = frames
    sys.excepthook(type(error), error, frames)
    sys.stderr.flush()
    # The interpreter ends the process as it does after any exception, and would print it once more.
    sys.excepthook = lambda *_: None


if __name__ == "__main__":
    main(sys.argv[1:])
