"""What only the processes of one machine share: locks, queues, values, pipes, a manager's proxies.

Theory of operation. Such an object is in the memory of a machine, or behind a socket of it, so a pool that uses one
must stay there. It reaches a pool's processes with `initargs`, as a global that a child of `fork` inherits, or, if it
is a manager's, as an argument. So whatever a pool sends is pickled here, and such an object found on the way:
a proxy could be pickled, but whoever unpickles it elsewhere waits at a socket that is not there.

Rules. Modules of multiprocessing that the program has not loaded are not loaded for this: no object of theirs exists.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import cloudpickle

from kos_cluster.tasks import serialise

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


def kind_of(value: object) -> str | None:
    """The name of such an object's kind; None for any other."""
    return _kind(value, _loaded_types())


def dumps(value: Any) -> bytes:
    """Pickle, functions and classes by reference. Raises SharedObjectError, and what pickling raises."""
    file = io.BytesIO()
    _ByReference(file, serialise.PROTOCOL).dump(value)
    return file.getvalue()


def dumps_by_value(value: Any) -> bytes:
    """Pickle, what is defined in `__main__` by value. Raises SharedObjectError, and what pickling raises."""
    file = io.BytesIO()
    _ByValue(file, serialise.PROTOCOL).dump(value)
    return file.getvalue()


class _ByReference(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self._types = _loaded_types()

    def reducer_override(self, value: Any) -> Any:
        _check(value, self._types)
        return NotImplemented


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self._types = _loaded_types()

    def reducer_override(self, value: Any) -> Any:
        _check(value, self._types)
        return super().reducer_override(value)


def _check(value: object, types: tuple[type, ...]) -> None:
    kind = _kind(value, types)
    if kind is not None:
        raise SharedObjectError(kind)


def _kind(value: object, types: tuple[type, ...]) -> str | None:
    if isinstance(value, types) or _is_raw(value):
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
