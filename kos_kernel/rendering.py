"""How the end of remote work looks in a notebook.

Rules: IPython shows an exception that has `_render_traceback_` by what that returns. Errors of KOS show one sentence;
an exception of the user's cell keeps its own type and shows the traceback of the cell as it ran on the node. Local
frames, which are all KOS's own, are never shown.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from kos_cluster.errors import KosError, UsageError

E = TypeVar("E", bound=BaseException)


class CommandError(KosError):
    """A `%kos` command ended with another exit code than 0."""

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


class CellSyntaxError(UsageError):
    """The cell does not parse. Shown as IPython shows it, under Python's name for it.

    It is no SyntaxError itself, since of those IPython shows the local frames too.
    """


CellSyntaxError.__name__ = CellSyntaxError.__qualname__ = "SyntaxError"


def rendered(error: E, *lines: str) -> E:
    """Make IPython show the error by these lines."""
    error._render_traceback_ = lambda: list(lines)  # type: ignore[attr-defined]
    return error


def as_sentence(error: KosError) -> KosError:
    return rendered(error, str(error))


def refuse_syntax(shell: Any, error: SyntaxError) -> NoReturn:
    lines = shell.SyntaxTB.structured_traceback(type(error), error, [])
    raise rendered(CellSyntaxError(str(error)), *lines) from None
