"""The notebook that all tests of the monitor share, and what they look for in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.lab import Notebook, until

NAME = "watch.ipynb"
ROOT = Path(__file__).parents[2]
LOAD, MONITOR, MANY, SLOW, CELL = range(5)
CELLS = (
    f"import sys, time, kos_cluster as kos\nsys.path.insert(0, {str(ROOT)!r})\n"
    "cluster = kos.connect()\nx = 21\nCELSIUS = [20]",
    "%kos monitor",
    "def square(n):\n    if n % 20_000 == 7:\n        raise ValueError(n)\n    return n * n\n"
    "many = cluster.map(square, range(100_000), name='many')\nlen(many.futures)",
    "def slow(n):\n    time.sleep(60)\nlist(cluster.map(slow, range(9), name='slow', retries=3))",
    "%%kos run --distribute\ny = x * 2\nprint('twice', y)",
)


def row(notebook: Notebook, of: str, /, **wanted: str) -> Any:
    """The row of a list with these data attributes."""
    marks = "".join(f'[data-{name}="{value}"]' for name, value in wanted.items())
    return notebook.monitor.locator(f".kos-row.kos-{of}{marks}")


def move(shown: list[Callable[[], str | None]]) -> None:
    """Wait until each has shown something, and then something else."""
    before = [until(each, "something is shown") for each in shown]
    until(lambda: all(each() != first for each, first in zip(shown, before, strict=True)), "all of them move")
