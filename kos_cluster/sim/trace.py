"""What happened, as lines of text.

Theory of operation. Everything that happens in a world is noted as (time, host, what, values). Values of machines are
frozen, so they are written out only when somebody reads the trace; a run that nobody reads keeps the last
`KEPT_LIMIT` notes and pays for tuples alone. With a `sink` every line is written at once and also hashed.

Rules: a line depends on the seed alone: no address, no set in its own order, no real time. The same seed gives the same
bytes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

KEPT_LIMIT = 400  # notes that are kept for a failure's report

Note = tuple[float, str, str, tuple[Any, ...]]


class Trace:
    """The notes of one world."""

    def __init__(self, sink: Callable[[Note, str], object] | None = None) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._kept: deque[Note] = deque(maxlen=KEPT_LIMIT)
        self.count = 0

    def note(self, at_s: float, host: str, what: str, *values: Any) -> None:
        self.count += 1
        note = (at_s, host, what, values)
        self._kept.append(note)
        if self._sink is not None:
            text = line(note)
            self._hash.update(text.encode() + b"\n")
            self._sink(note, text)

    def tail(self) -> Iterator[str]:
        """The last lines."""
        return map(line, self._kept)

    def digest(self) -> str:
        """SHA-256 of all lines; only a trace with a sink has one."""
        return self._hash.hexdigest()


def line(note: Note) -> str:
    """A note as text."""
    at_s, host, what, values = note
    return f"{at_s:12.6f} {host:<4} {what:<10} " + " ".join(map(_text, values))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return value if isinstance(value, str) else repr(value)
