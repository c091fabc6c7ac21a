"""How a function is made ready to travel: its pickle, the local modules it needs, the packages it imports.

Rules. A function that refers to nothing outside of itself is pickled once; any other at each call, since what it
refers to may have changed. Equal pickles have equal hashes, so an unchanged function is not sent again.
"""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kos_cluster.tasks import modules, references, serialise
from kos_cluster.tasks.job import part_hash

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
    referred = references.modules_in(payload)
    local = modules.local_modules(referred)
    parts = {part_hash(data): data for data in local.values()}
    names = {name: part_hash(data) for name, data in local.items()}
    local_tops = {name.partition(".")[0] for name in local}
    installed = modules.third_party(top for name in referred if (top := name.partition(".")[0]) not in local_tops)
    return Shipped(payload, part_hash(payload), names, parts, installed)


def _self_contained(fn: object) -> bool:
    """Whether a function's pickle depends on nothing that can change: globals, closure, attributes, defaults."""
    return (
        isinstance(fn, types.FunctionType)
        and fn.__module__ == "__main__"
        and fn.__closure__ is None
        and not fn.__dict__
        and not fn.__kwdefaults__
        and all(isinstance(default, _ATOMS) for default in fn.__defaults__ or ())
        and not _names_in(fn.__code__) & fn.__globals__.keys()
    )


def _names_in(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
