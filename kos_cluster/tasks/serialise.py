"""How functions, arguments and results become bytes and back.

Theory of operation. Plain C pickle is several times faster than cloudpickle but sends what is defined in `__main__`
by reference, which only the submitter could resolve. So plain pickle goes first, and its output is used when it does
not mention `__main__`; otherwise, and when plain pickle fails, cloudpickle sends such objects by value.

Two forms. A payload is a pickle (protocol 5), or, when it holds buffers of `wire.BULK_BYTES` and more (arrays), it is
*framed*: `FRAMED`, u64 count, then (u64 offset, u64 length) for the pickle and each of its out-of-band buffers, all
little-endian, then these, each aligned. A framed payload is written without joining it and read without copying.
`loads` reads both.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

from kos_cluster.net.wire import BULK_BYTES
from kos_cluster.tasks import references
from kos_cluster.tasks.unpicklable import explain

PROTOCOL = 5
FRAMED = b"KOSBUF1\0"
ALIGN_BYTES = 64
_MAIN_NAMES = ("__main__", "__mp_main__")
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})

Segments = list[bytes | memoryview]

# What a worker that has loaded the script returns refers to `__mp_main__`; here that is the script itself.
sys.modules.setdefault("__mp_main__", sys.modules["__main__"])


def dumps_callable(fn: Callable[..., Any], *, main_by_reference: bool = False) -> bytes:
    """Pickle a function for workers. Raises NotPicklableError, which names what in it cannot travel.

    `main_by_reference` is for workers that load the submitter's script themselves (`Environment.main`).
    """
    try:
        return _joined(_pickled(fn, main_by_reference))
    except Exception as error:
        name = getattr(fn, "__qualname__", repr(type(fn)))
        raise explain(f"The function {name!r}", [("", fn)], error, pickles) from error


def dumps_args(args: tuple[Any, ...], kwargs: dict[str, Any], *, main_by_reference: bool = False) -> bytes:
    """Pickle one call's arguments. Raises NotPicklableError, which names what in them cannot travel."""
    value = (args, kwargs)
    try:
        return _joined(_pickled(value, main_by_reference))
    except Exception as error:
        roots = [(f"argument {number}", item) for number, item in enumerate(args, 1)]
        roots += [(f"argument {name!r}", item) for name, item in kwargs.items()]
        raise explain("The call", roots, error, pickles) from error


def dumps_result(value: Any) -> bytes | Segments:
    """Pickle what a task returned: a plain pickle, or a framed payload as segments to write one after the other."""
    if type(value) in _ATOMS:
        return pickle.dumps(value, PROTOCOL)
    try:
        return _pickled(value, False)
    except Exception as error:
        raise explain("The result", [("", value)], error, pickles) from error


def loads(data: bytes | bytearray | memoryview) -> Any:
    """Read either form. Arrays are views of `data` when that is writable (a bytearray, a private mapping)."""
    pickled, buffers = _split(data)
    return pickle.loads(pickled, buffers=buffers)


loads_result = loads


def pickles(value: Any) -> bool:
    """Whether a value can travel; used to find the one that cannot."""
    try:
        _pickled(value, False)
    except Exception:  # the question is whether it fails; how is told by the caller
        return False
    return True


def modules_of(payload: bytes | bytearray | memoryview) -> set[str]:
    """The modules that a payload needs where it is unpickled (see `references`); executes nothing."""
    pickled, buffers = _split(payload)
    return references.modules_in(pickled, buffers)


# ---- inside


def _split(data: bytes | bytearray | memoryview) -> tuple[memoryview, list[memoryview]]:
    view = memoryview(data).cast("B")
    if view[: len(FRAMED)] != FRAMED:
        return view, []
    (count,) = struct.unpack_from("<Q", view, len(FRAMED))
    spans = struct.unpack_from(f"<{2 * count}Q", view, len(FRAMED) + 8)
    parts = [view[spans[i] : spans[i] + spans[i + 1]] for i in range(0, 2 * count, 2)]
    # An array that was writable must be so again; what cannot be written to is copied for it.
    return parts[0], [memoryview(bytearray(part)) for part in parts[1:]] if view.readonly else parts[1:]


def _pickled(value: Any, main_by_reference: bool) -> bytes | Segments:
    buffers: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < BULK_BYTES:
            return True
        buffers.append(raw)
        return False

    if not _by_value_modules():
        try:
            data = pickle.dumps(value, PROTOCOL, buffer_callback=in_band)
        except Exception:  # cloudpickle can do more, and says what is wrong where it cannot
            buffers.clear()
        else:
            if main_by_reference or b"__main__" not in data:
                return _framed(data, buffers) if buffers else data
            buffers.clear()
    file = io.BytesIO()
    (_MainByReference if main_by_reference else cloudpickle.Pickler)(file, PROTOCOL, in_band).dump(value)
    data = file.getvalue()
    return _framed(data, buffers) if buffers else data


_by_value_modules: Callable[[], set[str]] = cloudpickle.list_registry_pickle_by_value


def _framed(data: bytes, buffers: list[memoryview]) -> Segments:
    parts: list[bytes | memoryview] = [data, *buffers]
    offset = len(FRAMED) + 8 + 16 * len(parts)
    spans: list[int] = []
    body: Segments = []
    for part in parts:
        padding = -offset % ALIGN_BYTES
        offset += padding
        spans += (offset, len(part))
        offset += len(part)
        body += (bytes(padding), part)
    return [FRAMED + struct.pack(f"<Q{len(spans)}Q", len(parts), *spans), *body]


def _joined(pickled: bytes | Segments) -> bytes:
    return pickled if isinstance(pickled, bytes) else b"".join(pickled)


class _MainByReference(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, except that what the script defines at its top level is sent by name."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, types.FunctionType)) and obj.__module__ in _MAIN_NAMES and _in_main(obj):
            return NotImplemented
        return super().reducer_override(obj)


def _in_main(obj: Any) -> bool:
    found: Any = sys.modules["__main__"]
    for name in obj.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is obj
