"""Rows of arguments in chunks, each of which is a task of its own.

Rules. A chunk that fails fails whole, as with `multiprocessing`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def chunks_of(rows: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Rows in tuples of `size`, the last one shorter."""
    taking = iter(rows)
    while chunk := tuple(itertools.islice(taking, size)):
        yield chunk


class Chunk:
    """Calls with several rows of arguments, as one task."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(self, rows: Iterable[tuple[Any, ...]]) -> list[Any]:
        return [self.fn(*row) for row in rows]
