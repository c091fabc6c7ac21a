"""How a function is made ready to travel: its pickle, the local modules it needs, the packages it imports.

Rules. A function that refers to nothing outside of itself is pickled once; any other at each call, since what it
refers to may have changed. Equal pickles have equal hashes, so an unchanged function is not sent again.
"""

from __future__ import annotations

import functools
import re
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kos_cluster.tasks import modules, references, serialise
from kos_cluster.tasks.blocks import named_in
from kos_cluster.tasks.job import part_hash

PATTERNS_KEPT = 16
_GLOBAL = b"\x93"  # the opcode by which a pickle refers to a class or function; other bytes may look like it
_STRING = b"\x8c"  # the opcode in front of a short string, with its length
_BY_VALUE = b"cloudpickle"  # in a pickle that holds a function or class itself
_ATOMS = (int, float, complex, str, bytes, bool, type(None))


@dataclass(frozen=True, eq=False)
class Shipped:
    """A function ready to travel. `key` is equal for equal contents."""

    payload: bytes
    hash: str
    local_modules: dict[str, str]  # name -> part hash
    parts: Mapping[str, bytes]
    modules: tuple[str, ...]  # installed packages that it imports

    @functools.cached_property
    def names_blocks(self) -> bool:
        """Whether it refers to blocks."""
        return bool(named_in(self.payload))

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        return (self.hash, tuple(sorted(self.local_modules.items())))


class Functions:
    """Ships functions; remembers the pickles of those that cannot change."""

    def __init__(self) -> None:
        self._settled: weakref.WeakKeyDictionary[Callable[..., Any], Shipped] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def ship(self, fn: Callable[..., Any]) -> Shipped:
        """Raises NotPicklableError, LimitError."""
        if not _self_contained(fn):
            return ship(serialise.dumps_callable(fn))
        with self._lock:
            known = self._settled.get(fn)
            if known is None:
                known = self._settled[fn] = ship(serialise.dumps_callable(fn))
            return known


def ship(payload: bytes) -> Shipped:
    """A pickled callable with all that has to travel beside it."""
    local, installed = _sorted_out(references.modules_in(payload))
    parts = {part_hash(data): data for data in local.values()}
    names = {name: part_hash(data) for name, data in local.items()}
    return Shipped(payload, part_hash(payload), names, parts, installed)


def with_arguments(shipped: Shipped, payloads: Iterable[bytes]) -> Shipped:
    """The function with what the arguments of its calls refer to: their local modules, and the packages they name."""
    referred = _named_by(payloads)
    if not referred:
        return shipped
    local, installed = _sorted_out(referred)
    names = {name: part_hash(data) for name, data in local.items()}
    return replace(
        shipped,
        local_modules={**shipped.local_modules, **names},
        parts={**shipped.parts, **{names[name]: data for name, data in local.items()}},
        modules=tuple(sorted({*shipped.modules, *installed})),
    )


def _named_by(payloads: Iterable[bytes]) -> set[str]:
    """The modules that pickled arguments refer to, among those that are loaded, as an argument's class is.

    There may be very many, so they are searched for the names that are not known to be needed yet. Only functions that
    travel by value are read, as what they import need not be loaded. A string that is equal to a local module's name
    is taken for it, which sends a module in vain.
    """
    referred: set[str] = set()
    unnamed: _Names | None = None
    for payload in payloads:
        if _GLOBAL not in payload:
            continue
        if _BY_VALUE in payload:
            referred |= references.modules_in(payload)
            continue
        unnamed = unnamed or _Names(modules.loaded())
        referred |= unnamed.taken_from(payload)
    return referred


class _Names:
    """The names of loaded modules that no pickle has named yet."""

    def __init__(self, loaded: modules.Loaded) -> None:
        self._left = _as_pickled(loaded)
        self._pattern = _any_of(self._left)

    def taken_from(self, payload: bytes) -> set[str]:
        """Those that this pickle names; they are not looked for again."""
        found = set(self._pattern.findall(payload))
        if found:
            self._left -= found
            self._pattern = _any_of(self._left)
        return {(name[2:] if name.startswith(_STRING) else name).decode() for name in found}


@functools.lru_cache(1)
def _as_pickled(loaded: modules.Loaded) -> frozenset[bytes]:
    """A local module by its whole name as a pickle writes it; of an installed package only the beginning is known."""
    local = {_STRING + bytes((len(name),)) + name.encode() for name in loaded.local if len(name) < 256}
    return frozenset(local | {name.encode() for name in loaded.installed})


@functools.lru_cache(PATTERNS_KEPT)
def _any_of(names: frozenset[bytes]) -> re.Pattern[bytes]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, longest_first)) or b"(?!)")


def _sorted_out(referred: set[str]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The local modules among these and what they need, with their sources; and the installed packages."""
    local = modules.local_modules(referred)
    tops = {name.partition(".")[0] for name in local}
    return local, modules.third_party(top for name in referred if (top := name.partition(".")[0]) not in tops)


def _self_contained(fn: object) -> bool:
    """Whether a function's pickle depends on nothing that can change: globals, closure, attributes, defaults."""
    return (
        isinstance(fn, types.FunctionType)
        and fn.__module__ == "__main__"
        and fn.__closure__ is None
        and not fn.__dict__
        and not fn.__kwdefaults__
        and (not fn.__defaults__ or all(isinstance(default, _ATOMS) for default in fn.__defaults__))
        and not _names_in(fn.__code__) & fn.__globals__.keys()
    )


def _names_in(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
