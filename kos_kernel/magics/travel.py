"""Variables on their way between a notebook's namespace and a worker's.

All variables of a parcel are one stream of pickles with one memo, so what they share stays shared. Functions and
classes defined in the notebook carry no copy of their globals: their `__globals__` is a mark that becomes the
namespace of the side where they arrive, so they see that side's variables. Which further names they read is found
while they are pickled, and those variables follow. A parcel that answers another can refer to objects of the first
(`known`): they arrive as the very objects that had been sent.

Rules: packing never changes the namespace. Unpacking binds nothing: the caller does. This relies on three private
points of cloudpickle 3: `Pickler.globals_ref`, `Pickler._dynamic_function_reduce` and the order of a function's
state; a test of this module holds each.
"""

from __future__ import annotations

import builtins
import io
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import msgspec

from kos_cluster.errors import LimitError, NotPicklableError
from kos_kernel.magics.names import OWN_NAMES, modules_imported_by

LIMIT_BYTES = 100 << 20  # of all variables that a cell reads together
NAMED_IN_LIMIT = 5  # how many of the largest variables a refusal names
_PROTOCOL = 5


class _Mark:
    """Stands for the user's namespace in a pickle. It is found again as `travel.namespace_of_this_side`."""


_MARK = _Mark()


def namespace_of_this_side() -> dict[str, Any]:
    """What the mark is pickled as a call of. Only `_Unpickler` knows the namespace, so the plain function refuses."""
    raise pickle.UnpicklingError("a parcel of variables can only be opened by kos_kernel.magics.travel")


class Parcel(msgspec.Struct, frozen=True):
    """Packed variables: `data` holds for each name two pickles, the name and the value, after the known objects."""

    data: bytes
    sizes: dict[str, int]
    modules: frozenset[str]  # that objects in it refer to by name, or that functions in it import
    sources: dict[str, str] = {}  # file name -> text of the notebook's cells that functions in it come from


class NamespacePickler(cloudpickle.Pickler):
    """A cloudpickle Pickler for objects of one user namespace. Collects in `wanted` the globals that functions read."""

    def __init__(self, file: Any, namespace: dict[str, Any], buffer_callback: Callable[..., Any] | None = None) -> None:
        super().__init__(file, protocol=_PROTOCOL, buffer_callback=buffer_callback)
        self.namespace = namespace
        self.wanted: dict[str, None] = {}
        self.modules: set[str] = set()
        self.files: set[str] = set()
        self.globals_ref[id(namespace)] = _MARK

    def reducer_override(self, obj: Any) -> Any:
        if obj is _MARK:
            return namespace_of_this_side, ()
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented:
            self._note_module(obj)
        return reduced

    def _note_module(self, obj: Any) -> None:
        if isinstance(obj, types.ModuleType):
            self.modules.add(obj.__name__)
        else:
            kind = obj if isinstance(obj, (type, types.FunctionType)) else type(obj)
            self.modules.add(getattr(kind, "__module__", None) or "builtins")

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(func)
        self.modules.update(modules_imported_by(func.__code__))
        if func.__globals__ is self.namespace:
            self.files.add(func.__code__.co_filename)
            slots = reduced[2][1]
            self.wanted.update(dict.fromkeys(slots["__globals__"]))
            slots["__globals__"] = {}
        return reduced


class _Counting(io.RawIOBase):
    """Keeps what is written up to a limit; beyond it only counts, so that a refusal can still tell all sizes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[bytes] = []
        self.size = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.size += length
        if self.size > self._limit:
            self._kept.clear()
        else:
            self._kept.append(bytes(data))
        return length

    def bytes(self) -> bytes:
        return b"".join(self._kept)


class Packing:
    """One parcel in the making."""

    def __init__(self, namespace: dict[str, Any], known: Sequence[Any] = (), limit: int = LIMIT_BYTES) -> None:
        self._limit = limit
        self._namespace = namespace
        self._file = _Counting(limit)
        self._pickler = NamespacePickler(self._file, namespace)
        self._known = known
        self._file.write(_prelude(len(known)))
        self._pickler.memo = {id(obj): (position, obj) for position, obj in enumerate(known)}
        self.sizes: dict[str, int] = {}
        self._objects: dict[int, Any] | None = None

    def add(self, name: str, value: Any) -> None:
        """Raises NotPicklableError when it can't travel; the packing is then of no further use."""
        before = self._file.size
        try:
            self._pickler.dump(name)
            self._pickler.dump(value)
        except Exception as error:  # whatever an object's own reducer raises
            raise NotPicklableError(
                f"{name!r} ({_type_name(value)}, {_size(value)}) cannot travel: {_reason(error)}.",
                "Make it inside the cell instead, or leave it out.",
            ) from error
        self.sizes[name] = self._file.size - before

    def add_all(self, names: Iterable[str]) -> None:
        """Add the variables of these names, and those that functions among them read. Unknown names are left out."""
        pending = list(names)
        while pending:
            for name in pending:
                if name not in self.sizes and self._travels(name):
                    self.add(name, self._namespace[name])
            pending = [name for name in self._pickler.wanted if name not in self.sizes and self._travels(name)]

    def _travels(self, name: str) -> bool:
        if name in OWN_NAMES or name not in self._namespace:
            return False
        return not (hasattr(builtins, name) and self._namespace[name] is getattr(builtins, name))

    def parcel(self) -> Parcel:
        """Raises LimitError, naming the largest variables, when all together are over the limit."""
        if self._file.size > self._limit:
            largest = sorted(self.sizes.items(), key=lambda item: -item[1])[:NAMED_IN_LIMIT]
            listed = ", ".join(f"{name} {_mib(size)}" for name, size in largest)
            raise LimitError(
                f"The cell reads {_mib(self._file.size)}, over the limit of {_mib(self._limit)}: {listed}.",
                "Make or load the large ones inside the cell.",
            )
        modules = frozenset(self._pickler.modules - {"builtins", "__main__"})
        sources = {name: "".join(lines) for name in self._pickler.files if (lines := linecache.getlines(name))}
        return Parcel(self._file.bytes(), dict(self.sizes), modules, sources)

    @property
    def wanted(self) -> list[str]:
        """The names that functions packed so far read from the namespace."""
        return list(self._pickler.wanted)

    def objects(self) -> dict[int, Any]:
        """Each memo position's object."""
        if self._objects is None:
            self._objects = dict(self._pickler.memo.copy().values())
        return self._objects


class Unpacking:
    """A parcel being opened. After iteration `objects()` maps each memo position to the object there.

    With `lenient`, a class or module that this side lacks does not stop it: the variable is left out, and `missing` has
    the reason. Otherwise the error that names the variable is raised.
    """

    def __init__(self, parcel: Parcel, namespace: dict[str, Any], known: Sequence[Any] = (), lenient: bool = False):
        self._names = len(parcel.sizes)
        self._unpickler = _Unpickler(io.BytesIO(parcel.data), namespace, known, lenient)
        self._namespace = namespace
        self.missing: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        own_builtins = self._namespace.get("__builtins__")
        self._unpickler.load()
        for _ in range(self._names):
            name = self._unpickler.load()
            self._unpickler.absent = ""
            try:
                value = self._unpickler.load()
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(f"{name!r} needs what is not here: {error}", name=error.name) from error
            finally:
                if own_builtins is not None:  # cloudpickle puts its own there
                    self._namespace["__builtins__"] = own_builtins
            if self._unpickler.absent:
                self.missing[name] = self._unpickler.absent
            else:
                yield name, value

    def objects(self) -> dict[int, Any]:
        objects: dict[int, Any] = self._unpickler.memo.copy()
        return objects


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, namespace: dict[str, Any], known: Sequence[Any], lenient: bool) -> None:
        super().__init__(file)
        self._namespace = namespace
        self._known = known
        self._lenient = lenient
        self.absent = ""

    def persistent_load(self, pid: Any) -> Any:
        return self._known[pid]

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if global_name == "namespace_of_this_side" and module_name == __name__:
            return lambda: self._namespace
        if global_name == "subimport" and module_name == "cloudpickle.cloudpickle" and self._lenient:
            return self._import
        try:
            return super().find_class(module_name, global_name)
        except (ImportError, AttributeError) as error:
            if not self._lenient:
                raise
            self.absent = str(error)
            return _StandIn

    def _import(self, name: str) -> Any:
        try:
            return cloudpickle.subimport(name)
        except ImportError as error:
            self.absent = str(error)
            return _StandIn()


class _StandIn:
    """Takes the place of an object whose class is not here, until its whole variable has been read and is dropped."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _StandIn:
        return self

    def append(self, item: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def pack_what_can(
    namespace: dict[str, Any], variables: Mapping[str, Any], known: Sequence[Any]
) -> tuple[Parcel, dict[str, str]]:
    """Pack these variables, leaving out those that cannot travel: returns the parcel, and for each left out the reason.

    A failed pickle spoils the memo, so after each failure the packing starts anew without that variable.
    """
    left_out: dict[str, str] = {}
    while True:
        packing = Packing(namespace, known, limit=1 << 62)
        for name, value in variables.items():
            if name in left_out:
                continue
            try:
                packing.add(name, value)
            except NotPicklableError as error:
                left_out[name] = error.message
                break
        else:
            return packing.parcel(), left_out


def _prelude(count: int) -> bytes:
    """A pickle that puts `count` persistent objects into the unpickler's memo, at the positions the pickler has them.

    An Unpickler's memo cannot be set from Python (CPython loses what is assigned), so it is filled as by any pickle.
    """
    each = (
        b"".join((pickle.BININT, k.to_bytes(4, "little"), pickle.BINPERSID, pickle.MEMOIZE, pickle.POP))
        for k in range(count)
    )
    return b"".join((pickle.PROTO, bytes([_PROTOCOL]), *each, pickle.NONE, pickle.STOP))


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _size(value: Any) -> str:
    """How large an object is by its own account, in words."""
    size_bytes = getattr(value, "nbytes", None)
    if not isinstance(size_bytes, int):
        size_bytes = sys.getsizeof(value, 0)
    return f"{size_bytes} bytes" if size_bytes < 1 << 20 else _mib(size_bytes)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".").splitlines()[0] if str(error).strip() else type(error).__name__


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
