"""Tables: plain aligned text, or drawn by rich on a terminal.

Rules: both forms show the same cells. Control characters in a cell, which may come from another machine, are never
passed to the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

STYLES = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim", "done": "green", "failed": "red"}


@dataclass(frozen=True)
class Column:
    """A heading; numbers are set to the right."""

    heading: str
    right: bool = False


def plain(columns: Sequence[Column], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    """Aligned columns, two blanks apart."""
    cells = [[column.heading for column in columns], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        out.write("  ".join(padded).rstrip() + "\n")


def draw(columns: Sequence[Column], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    """A rich table; words that name a state are coloured."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell), style=STYLES.get(cell, "")) for cell in row))
    Console(file=out, highlight=False).print(table)


def printable(cell: str) -> str:
    """The cell with anything that could steer a terminal, or break a line, made visible."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cell)


def ago(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def rate(bytes_s: float) -> str:
    """Bytes a second in the unit that suits them."""
    for unit, size in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_s >= size:
            return f"{bytes_s / size:.1f} {unit}"
    return f"{bytes_s:.0f} B/s"


def size(size_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= length:
            return f"{size_bytes / length:.1f} {unit}"
    return f"{size_bytes:.0f} B"
