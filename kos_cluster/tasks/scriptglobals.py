"""The globals of a script that its pools' processes would inherit from it.

Theory of operation. A child of `fork` has the script's globals as they were when it was forked. A worker loads the
script instead, which gives it functions, classes, and what the top of the script makes; what was bound since, under
the `__main__` guard or by a function, has to be sent: the globals that functions of the script use
(`scriptnames`), and of its classes and modules the attributes that may have been set since.

    a global                                        a worker gets
    function, class, module that loading binds      what loading gives it
    what can be pickled, by reference               that; in place of an equal one it has nothing new
    what cannot, and loading binds it alone         what loading gives it: its own open file, its own thread's lock
    what cannot, bound since; what refers to        nothing: a call that reaches it runs in a process of the machine
    a function or class that was defined since      itself (`ForkedGlobals.check`)

Rules. Each is pickled by itself, at the moment of `taken`. What only processes of one machine can share, wherever it
hangs, and more than `GLOBALS_LIMIT_BYTES` together, keep the whole pool on its machine (`obstacle`).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kos_cluster.tasks import modules, scriptnames, sharedobjects
from kos_cluster.tasks.scriptnames import ScriptNames

GLOBALS_LIMIT_BYTES = 256 << 20  # of a script's globals, pickled, that travel with a pool

_LOADED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)  # a worker has them by loading
_ATOMS = (int, float, complex, str, bytes, type(None))  # cannot change, only be replaced
_LOOK_UP_ANY = frozenset({"globals", "vars", "eval", "exec"})  # who uses these may use every global
_NOT_LOADED = "is defined where loading the script does not come by: move it out of the __main__ guard"


class UnsentGlobalError(Exception):
    """A call uses what only a child of `fork` has; the text is a clause that says what."""


@dataclass(frozen=True)
class ForkedGlobals:
    """What a child of `fork` would find."""

    pickled: dict[str, bytes]  # by NAME or NAME.ATTRIBUTE, names first
    obstacle: str = ""  # why it has to be such a child, as a clause; empty: a worker will do, for most calls
    missing: dict[str, str] = field(default_factory=dict)  # globals that no worker gets, and why as a clause
    names: ScriptNames | None = None

    def check(self, referred: Collection[str]) -> None:
        """Raises UnsentGlobalError when a call that refers to these functions and classes uses what is missing."""
        if self.names is None:
            return
        for name in sorted(referred):
            if not self.names.comes_by_loading(name):
                raise UnsentGlobalError(f"a call uses {name!r}, which {_NOT_LOADED}")
        if self.missing:
            for name in sorted(self.names.reached(referred) & self.missing.keys()):
                raise UnsentGlobalError(f"a call uses {name!r}, which {self.missing[name]}")


NONE = ForkedGlobals({})  # of a pool whose processes are not forked: they load the script, as workers do


def taken(script: str, folder: Path) -> ForkedGlobals:
    """Of the running `__main__`, whose file is `script`, and of the modules in `folder`."""
    names = scriptnames.read(Path(script).read_bytes(), script)
    main = vars(sys.modules["__main__"])
    taking = _Taking(main, names)
    try:
        taking.take_globals()
        taking.take_attributes(folder)
        _find_shared(main, folder)
    except _ShareError as found:
        return ForkedGlobals({}, str(found))
    names = replace(names, uses={**names.uses, **taking.referred})
    return ForkedGlobals(taking.pickled, _too_large(taking.pickled), taking.missing, names)


class _ShareError(Exception):
    """Its text is the obstacle."""

    def __init__(self, kind: object, where: str) -> None:
        super().__init__(f"its processes share the {kind} in {where!r}")


class _Taking:
    """What travels. Its methods raise _ShareError."""

    def __init__(self, main: dict[str, Any], names: ScriptNames) -> None:
        self._main = main
        self._names = names
        self.pickled: dict[str, bytes] = {}
        self.missing: dict[str, str] = {}
        self.referred: dict[str, frozenset[str]] = {}  # global -> the functions and classes that its value refers to

    def take_globals(self) -> None:
        """What functions of the script use, but for what loading it binds to a function, a class or a module."""
        used = self._names.used
        for name in sorted(self._main.keys() if used & _LOOK_UP_ANY else used & self._main.keys()):
            value = self._main[name]
            by_loading = self._names.comes_by_loading(name)
            if name.startswith("__") or (by_loading and isinstance(value, _LOADED)):
                continue
            self._take(name, value, by_loading=by_loading)

    def take_attributes(self, folder: Path) -> None:
        """Of the script's classes what may have changed; of the folder's modules what the script sets."""
        set_since = {attribute for _, attribute in self._names.set_later}
        for name, value in self._main.items():
            if isinstance(value, type) and value.__module__ == "__main__" and self._names.comes_by_loading(name):
                for attribute, item in list(vars(value).items()):
                    if _is_data(attribute, item) and (attribute in set_since or not isinstance(item, _ATOMS)):
                        self._take(f"{name}.{attribute}", item, by_loading=True)
        for name, attribute in sorted(self._names.set_later):
            module = self._main.get(name)
            if isinstance(module, types.ModuleType) and _is_in(module, folder) and attribute in vars(module):
                if not self._names.comes_by_loading(name):
                    self._take(name, module, by_loading=False)
                self._take(f"{name}.{attribute}", vars(module)[attribute], by_loading=True)

    def _take(self, path: str, value: Any, *, by_loading: bool) -> None:
        referred: set[str] = set()
        try:
            data = sharedobjects.dumps(value, referred)
        except sharedobjects.SharedObjectError as found:
            raise _ShareError(found, path) from None
        except Exception as error:  # whatever pickling raises: it cannot travel
            kind = sharedobjects.held_by(value)
            if kind is not None:
                raise _ShareError(kind, path) from None
            if not by_loading:
                self.missing[path] = f"cannot be sent to a worker ({error})"
            return
        unloaded = sorted(name for name in referred if not self._names.comes_by_loading(name))
        if not unloaded:
            self.pickled[path] = data
            self.referred[path] = frozenset(referred)
        elif path in unloaded:
            self.missing[path] = _NOT_LOADED
        else:
            self.missing[path] = f"refers to {unloaded[0]!r}, which {_NOT_LOADED}"


def _find_shared(main: dict[str, Any], folder: Path) -> None:
    """Raises _ShareError when what is defined in the script, or what its own modules hold, holds a shared object."""
    for name, value in list(main.items()):
        if isinstance(value, (types.FunctionType, type)) and value.__module__ == "__main__":
            _look_into(name, value)
    for module_name, module in list(sys.modules.items()):
        if module_name not in ("__main__", "__mp_main__") and _is_in(module, folder):
            for name, value in list(vars(module).items()):
                if not isinstance(value, _LOADED) or getattr(value, "__module__", None) == module_name:
                    _look_into(f"{module_name}.{name}", value)


def _look_into(where: str, value: object) -> None:
    kind = sharedobjects.held_by(value)
    if kind is not None:
        raise _ShareError(kind, where)


def _is_data(attribute: str, value: object) -> bool:
    """Whether an attribute of a class is neither of Python's making nor code."""
    return not (attribute.startswith("__") or isinstance(value, _LOADED) or hasattr(type(value), "__get__"))


def _is_in(module: types.ModuleType, folder: Path) -> bool:
    """Whether a module is one of the script's own."""
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(folder) and not modules.is_installed(file)


def _too_large(pickled: dict[str, bytes]) -> str:
    size_bytes = sum(map(len, pickled.values()))
    if size_bytes <= GLOBALS_LIMIT_BYTES:
        return ""
    largest = max(pickled, key=lambda name: len(pickled[name]))
    return (
        f"the globals that its functions name take {size_bytes >> 20:,} MiB, of which {largest!r} takes "
        f"{len(pickled[largest]) >> 20:,}; {GLOBALS_LIMIT_BYTES >> 20} may travel"
    )
