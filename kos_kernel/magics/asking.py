"""`%kos run?`: a question mark after a command shows its help.

Theory of operation. IPython takes the last word before a question mark for a name to look up, which for `%kos run?` is
its own `%run`. So such a line is turned into `%kos run --help` before IPython looks at it. `%kos?` is IPython's: it
shows the magic's own text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_ASKING = re.compile(r"^(\s*)%{1,2}kos[ \t]+([^?\n]*?)[ \t]*\?{1,2}[ \t]*(\n?)$")


def with_help(lines: list[str]) -> list[str]:
    """The lines of a cell, those that ask turned into commands."""
    return [_ASKING.sub(_command, line) for line in lines]


def _command(match: re.Match[str]) -> str:
    words = [word for word in match[2].split() if not word.startswith("-")]
    return f"{match[1]}%kos {' '.join(words)} --help{match[3]}"


def register(shell: InteractiveShell) -> None:
    shell.input_transformers_cleanup.append(with_help)


def unregister(shell: InteractiveShell) -> None:
    if with_help in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(with_help)
