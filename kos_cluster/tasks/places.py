"""The places of futures in a call's pickled arguments, on both sides of the way.

Theory of operation. While `Gathering`, a future that is pickled leaves its number. A `Whole` holds such a pickle and
the payloads for its places, still pickled; where it is unpickled, in the worker, they come first, each once.

Rules: a future can be pickled only while `Gathering`. What is gathered and placed is of one thread, and nests. Workers
import this, so it stays small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kos_cluster.errors import KosError, NotPicklableError
from kos_cluster.tasks import serialise

if TYPE_CHECKING:
    from kos_cluster.tasks.futures import Future


class _Thread(threading.local):
    found: dict[Future, int] | None = None
    values: Sequence[Any] = ()


_thread = _Thread()


def _outside(hash_: str) -> bytes:
    raise KosError(f"The part {hash_[:12]} was asked for outside a worker.", "Run the call as a task.")


_find_part: Callable[[str], bytes | memoryview] = _outside


def find_parts_by(find: Callable[[str], bytes | memoryview]) -> None:
    """Where unpickling finds the parts that large values travelled as: called once, by the worker."""
    global _find_part
    _find_part = find


class Gathering:
    """Lets futures be pickled; gives those that are met, in order. A class, since each submit enters it."""

    __slots__ = ("_before",)

    def __enter__(self) -> dict[Future, int]:
        self._before = _thread.found
        found = _thread.found = {}
        return found

    def __exit__(self, *_: object) -> None:
        _thread.found = self._before


def reduced(future: Future) -> tuple[Callable[[int], Any], tuple[int]]:
    """How a future is pickled. Raises NotPicklableError where it cannot be."""
    found = _thread.found
    if found is None:
        raise NotPicklableError("only as an argument of submit or map can a future be passed on")
    return _value, (found.setdefault(future, len(found)),)


class Whole:
    """Unpickles to what the pickle `call` holds, with values in its places: payloads, or the hashes of parts."""

    def __init__(self, call: bytes, values: list[bytes | str]) -> None:
        self._made_of = (call, values)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes, list[bytes | str]]]:
        return _whole, self._made_of


def _whole(call: bytes, values: list[bytes | str]) -> Any:
    before = _thread.values
    loaded = [serialise.loads(value if isinstance(value, bytes) else _find_part(value)) for value in values]
    _thread.values = loaded
    try:
        return serialise.loads(call)
    finally:
        _thread.values = before


def _value(number: int) -> Any:
    return _thread.values[number]
