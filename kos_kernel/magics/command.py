"""The magics `%kos` and `%%kos`.

Rules: `%kos` takes what the `kos` command takes, through the same grammar, and prints what it prints; what it lists it
gives as an object, see `kos_kernel.listings`. What ends badly raises, so that "run all" stops there, and shows one
sentence.
"""

from __future__ import annotations

import io
import shlex
import sys
from typing import TYPE_CHECKING, Any, TextIO

from kos_cluster.errors import KosError, UsageError
from kos_kernel.rendering import CommandError, as_sentence, rendered

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kos_kernel.dashboard.widget import Monitor
    from kos_kernel.listings import Facts, Table

EXIT_INTERRUPTED = 130
NAME = "kos"


def register(shell: InteractiveShell) -> None:
    """Add both magics to the shell."""
    from kos_kernel.magics import statements

    def kos(line: str, cell: str | None = None) -> Any:
        try:
            if cell is None and line.split()[:1] == ["monitor"]:
                return monitor(line)
            if cell is None:
                return command(line)
            first, _, rest = line.strip().partition(" ")
            if first == "profile":
                from kos_kernel.magics import profiling

                return profiling.run(shell, rest.strip(), cell)
            from kos_kernel.magics import cells

            return cells.run(shell, line, cell)
        except KosError as error:
            if not hasattr(error, "_render_traceback_"):
                as_sentence(error)
            raise

    kos.__doc__ = _help()
    shell.register_magic_function(kos, "line_cell", NAME)  # type: ignore[arg-type]
    statements.register(shell, NAME)


def unregister(shell: InteractiveShell) -> None:
    from kos_kernel.magics import statements

    statements.unregister(shell)
    for kind in shell.magics_manager.magics.values():
        kind.pop(NAME, None)


def command(line: str) -> Table | Facts | None:
    """Run one command line; what it lists. Raises KosError when it ends with another exit code than 0."""
    from kos_cluster.cli.main import run
    from kos_kernel.listings import NotebookConsole

    argv = words(line) or ["--help"]
    _attach(argv)
    err = _LastLineKept(sys.stderr)
    console = NotebookConsole(sys.stdout, err)
    code = run(argv, sys.stdout, err, console)
    if code == EXIT_INTERRUPTED:
        raise rendered(KeyboardInterrupt(err.last), err.last)
    if code != 0:
        sentence = err.last.removeprefix("kos: ") or f"It ended with exit code {code}."
        raise CommandError(sentence, exit_code=code)
    err.release()
    return console.listed


def _attach(argv: list[str]) -> None:
    """See to it that the first run finds a cluster. What is wrong with the line is left to the command to say."""
    from kos_cluster.cli.grammar import parse
    from kos_cluster.cli.parser import Shown
    from kos_kernel import attaching

    try:
        parsed = parse(argv)
    except (Shown, UsageError):
        return
    if parsed.action == "run" and parsed.argv:
        attaching.ensure_cluster(parsed.cluster)
    else:
        attaching.decided_by(parsed.action)


def monitor(line: str) -> Monitor | None:
    """`%kos monitor`: the widget, which as a listing is shown where the line stands alone."""
    import kos_kernel
    from kos_cluster.cli.grammar import parse
    from kos_cluster.cli.parser import Shown

    try:
        parsed = parse(words(line))
    except Shown as shown:
        print(shown.text)
        return None
    return kos_kernel.monitor(parsed.cluster)


def words(line: str) -> list[str]:
    """Split a magic's line as a shell would. Raises UsageError for an open quotation mark."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"The line cannot be split into words: {error}.", "Close the quotation mark.") from None


class _LastLineKept(io.StringIO):
    """A stderr that passes all on but the newest message of KOS's own, which may turn out to be the error."""

    def __init__(self, target: TextIO) -> None:
        super().__init__()
        self._target = target
        self._held = ""

    def write(self, text: str) -> int:
        self.release()
        if text.startswith("kos: "):
            self._held = text
        else:
            self._target.write(text)
        return len(text)

    def flush(self) -> None:
        self._target.flush()

    def isatty(self) -> bool:
        return self._target.isatty()

    def release(self) -> None:
        self._target.write(self._held)
        self._held = ""

    @property
    def last(self) -> str:
        return self._held.strip()


def _help() -> str:
    from kos_cluster.cli.grammar import build_parser

    example = (
        "In a notebook:\n\n"
        "  %kos up -n 3                     a cluster on this machine\n"
        "  %kos run --distribute script.py  a script across the cluster\n"
        "  %%kos run --distribute           this cell on the cluster; with --over NAME once for each element\n"
    )
    return f"{build_parser().format_help()}\n{example}"
