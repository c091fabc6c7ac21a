"""How functions, arguments and results become bytes and back.

Theory of operation. Plain C pickle is several times faster than cloudpickle but sends what is defined in `__main__` by
reference, which only the submitter could resolve. So plain pickle goes first, and its output is used when it does not
mention `__main__`; otherwise, and when plain pickle fails, cloudpickle sends such objects by value.

A payload is a pickle (protocol 5), or, when it holds buffers of `BULK_BYTES` and more (arrays), it is framed (see
`framing`); `loads` reads both.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle

from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.tasks.framing import Segments, frame, split
from kos_cluster.tasks.references import modules_in as modules_of
from kos_cluster.tasks.unpicklable import explain

__all__ = [
    "PROTOCOL",
    "Segments",
    "dumps_args",
    "dumps_block",
    "dumps_callable",
    "dumps_result",
    "loads",
    "loads_block",
    "loads_result",
    "modules_of",
]

PROTOCOL = 5
BLOCK_BUFFER_BYTES = 1 << 12  # a buffer of this size and more is read from a block where it is
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_by_value_modules: Callable[[], set[str]] = cloudpickle.list_registry_pickle_by_value

# What a worker that has loaded the script returns refers to `__mp_main__`; here that is the script itself.
sys.modules.setdefault("__mp_main__", sys.modules["__main__"])


def dumps_callable(fn: Any) -> bytes:
    """Pickle a function for workers. Raises NotPicklableError, which names what in it cannot travel."""
    try:
        return _joined(_pickled(fn))
    except Exception as error:
        name = getattr(fn, "__qualname__", repr(type(fn)))
        raise explain(f"The function {name!r}", [("", fn)], error, _pickles) from error


def dumps_args(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Pickle one call's arguments. Raises NotPicklableError, which names what in them cannot travel."""
    if not kwargs and _ATOMS.issuperset(map(type, args)):
        return pickle.dumps((args, kwargs), PROTOCOL)
    try:
        return _joined(_pickled((args, kwargs)))
    except Exception as error:
        roots = [(f"argument {number}", item) for number, item in enumerate(args, 1)]
        roots += [(f"argument {name!r}", item) for name, item in kwargs.items()]
        raise explain("The call", roots, error, _pickles) from error


def dumps_result(value: Any) -> bytes | Segments:
    """Pickle what a task returned: a plain pickle, or a framed payload as segments to write one after the other."""
    if type(value) in _ATOMS:
        return pickle.dumps(value, PROTOCOL)
    try:
        return _pickled(value)
    except Exception as error:
        raise explain("The result", [("", value)], error, _pickles) from error


def dumps_block(value: Any) -> Segments:
    """Pickle a value for a block: its buffers apart, so that whoever reads it reads them where they are."""
    try:
        pickled = _pickled(value, BLOCK_BUFFER_BYTES)
    except Exception as error:
        raise explain("The value", [("", value)], error, _pickles) from error
    return [pickled] if isinstance(pickled, bytes) else pickled


def loads_block(content: memoryview) -> Any:
    """Read a block. Its buffers are views of it, and read-only."""
    pickled, buffers = split(content, copy=False)
    return pickle.loads(pickled, buffers=buffers)


def loads(payload: bytes | bytearray | memoryview) -> Any:
    """Read a payload of either form. Large arrays in a writable one (a bytearray, say) are views of it."""
    if len(payload) < BULK_BYTES:  # too small to be framed
        return pickle.loads(payload)
    pickled, buffers = split(payload)
    return pickle.loads(pickled, buffers=buffers)


loads_result = loads


# ---- inside


def _pickled(value: Any, apart_bytes: int = BULK_BYTES) -> bytes | Segments:
    """A value's pickle; with its buffers of `apart_bytes` and more apart from it."""
    buffers: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < apart_bytes:
            return True
        buffers.append(raw)
        return False

    if not _by_value_modules():
        try:
            data = pickle.dumps(value, PROTOCOL, buffer_callback=in_band)
        except Exception:  # cloudpickle can do more, and says what is wrong where it cannot
            buffers.clear()
        else:
            if b"__main__" not in data:
                return frame(data, buffers) if buffers else data
            buffers.clear()
    file = io.BytesIO()
    cloudpickle.Pickler(file, PROTOCOL, in_band).dump(value)
    data = file.getvalue()
    return frame(data, buffers) if buffers else data


def _joined(pickled: bytes | Segments) -> bytes:
    return pickled if isinstance(pickled, bytes) else b"".join(pickled)


def _pickles(value: Any) -> bool:
    """Whether a value can travel; used to find the one that cannot."""
    try:
        _pickled(value)
    except Exception:  # the question is whether it fails; how is told by the caller
        return False
    return True
