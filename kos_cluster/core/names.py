"""Names that users give to what the whole cluster shares: locks and registers.

Rules: a name is plain enough to stand in a path, a listing and a command line without quotes, and short enough that it
costs nothing to keep. It is checked where it is typed and by the node that is asked.
"""

from __future__ import annotations

import re

from kos_cluster.errors import UsageError

NAME_LIMIT_CHARACTERS = 64
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/-]{{0,{NAME_LIMIT_CHARACTERS - 1}}}")


def checked(name: str, what: str) -> str:
    """The name, of a "lock" say. Raises UsageError for one that cannot be."""
    thing = f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
    if not isinstance(name, str):
        raise UsageError(f"{thing.capitalize()}'s name is a string, not a {type(name).__name__}.", "Give it one.")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:NAME_LIMIT_CHARACTERS]!r} cannot be the name of {thing}.",
            f"Use up to {NAME_LIMIT_CHARACTERS} letters, digits and . _ / -, beginning with a letter or digit.",
        )
    return name
