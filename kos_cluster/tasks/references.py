"""Which modules a payload needs where it is unpickled, found without unpickling it.

Theory of operation. The pickle is read by an unpickler that resolves every name to a stand-in, so nothing is
imported, called or built, except code objects, whose import statements are read. What counts: modules that classes
and functions are looked up in, modules that are pickled as such, and modules that functions sent by value import when
they run.

Rules: relative imports are left out (they need the module's package, which is named by other references). The
standard library is included; callers that look for installed packages or local modules filter by their own lists.
"""

from __future__ import annotations

import dis
import io
import pickle
import types
from collections.abc import Callable, Iterable
from typing import Any

from kos_cluster.tasks.framing import split

_PICKLING = frozenset({"builtins", "copyreg", "types", "_codecs", "cloudpickle", "cloudpickle.cloudpickle"})


def modules_in(payload: bytes | bytearray | memoryview) -> set[str]:
    """The names, such as "numpy.random", that a payload refers to by reference. Executes nothing."""
    pickled, buffers = split(payload)
    reader = _Reader(io.BytesIO(pickled), buffers=buffers)
    try:
        reader.load()
    except Exception:
        # Somebody's own way of pickling wants more than a stand-in gives. What was found until then is still true, and
        # what is missed is only a preference of placement, or is named by the worker that lacks it.
        return reader.modules - _PICKLING
    return reader.modules - _PICKLING


class _StandIns(type):
    """The type of the stand-in, which is a class that behaves like an instance too: a pickle may use it as either."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls

    def __setitem__(cls, key: Any, value: Any) -> None: ...


class _StandIn(metaclass=_StandIns):
    """Takes every step that unpickling an object may take, and does nothing. Methods work on the class itself too."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return object.__new__(cls)

    def __setstate__(*_: Any) -> None: ...

    def __setitem__(*_: Any) -> None: ...

    def append(*_: Any) -> None: ...

    def extend(*_: Any) -> None: ...

    def add(*_: Any) -> None: ...


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, *, buffers: Iterable[memoryview]) -> None:
        super().__init__(file, buffers=buffers)
        self.modules: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("cloudpickle"):
            if name == "subimport":
                return self._module
            if name == "_builtin_type":
                return self._builtin_type
        self.modules.add(module)
        return _StandIn

    def _module(self, name: str) -> type[_StandIn]:
        self.modules.add(name)
        return _StandIn

    def _builtin_type(self, name: str) -> Callable[..., Any]:
        return self._code if name == "CodeType" else _StandIn

    def _code(self, *arguments: Any) -> types.CodeType:
        code = types.CodeType(*arguments)
        self.modules |= _imports_of(code)
        return code


def _imports_of(code: types.CodeType) -> set[str]:
    """What a code object's own import statements name; `from a import b` may mean the module a.b, but a is enough."""
    found = set()
    levels: list[Any] = []  # constants loaded so far; an import is preceded by its level and its list of names
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            levels.append(instruction.argval)
        elif instruction.opname == "IMPORT_NAME" and len(levels) >= 2 and levels[-2] == 0:
            found.add(instruction.argval)
    return found
