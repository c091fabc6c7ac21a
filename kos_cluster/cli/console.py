"""Where a command's output goes.

Rules: what was asked for goes to `out` (stdout), everything else to `err` (stderr). JSON is the same on a terminal
and in a pipe. Tables are drawn by rich on a terminal and are plain aligned text elsewhere; NO_COLOR is honoured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import msgspec

from kos_cluster.cli.tables import Column, draw, plain


class Console:
    """The streams of one command."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out = out
        self.err = err

    def answer(self, text: str) -> None:
        """What the command was asked for, as a line."""
        self.out.write(text + "\n")

    def note(self, text: str) -> None:
        """A line beside the answer."""
        self.out.flush()
        self.err.write(text + "\n")
        self.err.flush()

    def raw(self, stream: TextIO, data: bytes) -> None:
        """Bytes as a program wrote them; replaced where they are not text and the stream takes only text."""
        binary = getattr(stream, "buffer", None)
        if binary is None:
            stream.write(data.decode(errors="replace"))
        else:
            stream.flush()
            binary.write(data)
        stream.flush()

    def json(self, value: Any) -> None:
        json.dump(msgspec.to_builtins(value), self.out, indent=2)
        self.out.write("\n")

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        (draw if on_terminal(self.out) else plain)(columns, list(rows), self.out)

    def listing(self, records: Sequence[Any], columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """What is listed: a row of cells for people for each of what `records` tells programs."""
        self.table(columns, rows)

    def facts(self, record: Mapping[str, Any], lines: Iterable[str]) -> None:
        """What is told in lines for people, and in `record` for programs."""
        for line in lines:
            self.answer(line)


def on_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that understands cursor movement."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def standard() -> Console:
    """The process's own stdout and stderr."""
    return Console(sys.stdout, sys.stderr)
