"""What only the processes of one machine share: locks, queues, values, pipes, a manager's proxies.

Theory of operation. Such an object is in the memory of a machine, or behind a socket of it, so a pool that uses one
must stay there. It reaches a pool's processes with `initargs`, as a global that a child of `fork` inherits, or, if it
is a manager's, as an argument. So whatever a pool sends is pickled here, and such an object found on the way:
a proxy could be pickled, but whoever unpickles it elsewhere waits at a socket that is not there.

Rules. Modules of multiprocessing that the program has not loaded are not loaded for this: no object of theirs exists.
What is looked into without pickling it is looked into up to `LOOKED_AT_LIMIT` objects.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import pickle
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import cloudpickle

from kos_cluster.tasks import serialise

LOOKED_AT_LIMIT = 100_000  # objects in one value

_TYPES = {
    "multiprocessing.synchronize": ("SemLock", "Condition", "Event", "Barrier"),
    "multiprocessing.queues": ("Queue", "SimpleQueue"),
    "multiprocessing.sharedctypes": ("SynchronizedBase",),
    "multiprocessing.connection": ("Connection", "Listener"),
    "multiprocessing.shared_memory": ("SharedMemory", "ShareableList"),
    "multiprocessing.managers": ("BaseProxy",),
}


class SharedObjectError(Exception):
    """What was to be pickled holds an object that only one machine's processes share; the text is its kind."""


def held_by(value: object) -> str | None:
    """The kind of such an object in a value, which need not be one that can be pickled; of a function in its defaults
    and what it encloses, of a class in its attributes. None when there is none."""
    shared, seen, waiting = _loaded_types(), set[int](), deque([value])
    while waiting and len(seen) < LOOKED_AT_LIMIT:
        each = waiting.popleft()
        if id(each) in seen:
            continue
        seen.add(id(each))
        with contextlib.suppress(Exception):  # looking into it runs its own code, as of one that stands for another
            kind = _kind(each, shared)
            if kind is not None:
                return kind
            waiting.extend(islice(_parts(each, whole=each is value), LOOKED_AT_LIMIT))
    return None


def dumps(value: Any, referred: set[str] | None = None) -> bytes:
    """Pickle, functions, classes and modules by reference. Raises SharedObjectError, and what pickling raises.

    The names at the top of `__main__` to which it refers are added to `referred`.
    """
    file = io.BytesIO()
    _ByReference(file, set() if referred is None else referred).dump(value)
    return file.getvalue()


def dumps_by_value(value: Any) -> bytes:
    """Pickle, what is defined in `__main__` by value. Raises SharedObjectError, and what pickling raises."""
    file = io.BytesIO()
    _ByValue(file, serialise.PROTOCOL).dump(value)
    return file.getvalue()


class _ByReference(pickle.Pickler):
    def __init__(self, file: io.BytesIO, referred: set[str]) -> None:
        super().__init__(file, serialise.PROTOCOL)
        self._types = _loaded_types()
        self._referred = referred

    def reducer_override(self, value: Any) -> Any:
        _check(value, self._types)
        if isinstance(value, types.ModuleType):
            return importlib.import_module, (value.__name__,)
        if isinstance(value, (types.FunctionType, type)) and value.__module__ == "__main__":
            self._referred.add(value.__qualname__.partition(".")[0])
        return NotImplemented


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self._types = _loaded_types()

    def reducer_override(self, value: Any) -> Any:
        _check(value, self._types)
        return super().reducer_override(value)


def _parts(value: object, *, whole: bool) -> Iterator[object]:
    """What a value is made of; a class only when it is the `whole`: else it is somebody's type."""
    match value:
        case dict():
            yield from value.keys()
            yield from value.values()
        case list() | tuple() | set() | frozenset() | deque():
            yield from value
        case types.FunctionType():
            yield from value.__defaults__ or ()
            yield from (value.__kwdefaults__ or {}).values()
            yield from _enclosed(value.__closure__ or ())
            yield from vars(value).values()
        case types.MethodType():
            yield from (value.__self__, value.__func__)
        case staticmethod() | classmethod():
            yield value.__func__
        case functools.partial():
            yield from (value.func, value.args, value.keywords)
        case type():
            yield from vars(value).values() if whole else ()
        case types.ModuleType():
            return
        case _:
            yield from getattr(value, "__dict__", {}).values()


def _enclosed(cells: Iterable[types.CellType]) -> Iterator[object]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell holds nothing
            continue


def _check(value: object, shared: tuple[type, ...]) -> None:
    kind = _kind(value, shared)
    if kind is not None:
        raise SharedObjectError(kind)


def _kind(value: object, shared: tuple[type, ...]) -> str | None:
    if isinstance(value, shared) or _is_raw(value):
        return type(value).__name__
    return None


def _is_raw(value: object) -> bool:
    """A RawValue or RawArray: a ctypes object in multiprocessing's heap, which pickle would copy."""
    heap, ctypes = sys.modules.get("multiprocessing.heap"), sys.modules.get("ctypes")
    if heap is None or ctypes is None or not isinstance(value, ctypes.Array.__base__):
        return False
    return isinstance(getattr(value, "_wrapper", None), heap.BufferWrapper)


def _loaded_types() -> tuple[type, ...]:
    loaded = {module: sys.modules[module] for module in _TYPES if module in sys.modules}
    return tuple(getattr(module, name) for key, module in loaded.items() for name in _TYPES[key])
