"""Digests of variables, to tell which ones a cell has changed in place.

Rules: a digest is of the pickle, so equal digests mean nothing that could travel has changed. Large buffers are
hashed where they lie, not copied. A digest never raises: what cannot be pickled has the digest None.
"""

from __future__ import annotations

import hashlib
import pickle
import types
from collections.abc import Iterable
from typing import Any

from kos_kernel.magics.travel import NamespacePickler

_UNCHANGEABLE = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    range,
    types.ModuleType,
    types.BuiltinFunctionType,
)


class _Hashing:
    def __init__(self) -> None:
        # The fastest strong one where the processor has instructions for it: twice BLAKE2's rate.
        self.hash = hashlib.sha256(usedforsecurity=False)

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return memoryview(data).nbytes

    def take_buffer(self, buffer: pickle.PickleBuffer) -> None:
        self.hash.update(buffer.raw())  # returning None keeps it out of the pickle


def digest(value: Any, namespace: dict[str, Any]) -> bytes | None:
    """The digest of one variable: the same for the same object until something reachable from it changes."""
    if type(value) in _UNCHANGEABLE:
        return b""
    into = _Hashing()
    try:
        NamespacePickler(into, namespace, buffer_callback=into.take_buffer).dump(value)
    except Exception:  # whatever an object's own reducer raises: the answer is "cannot tell"
        return None
    return into.hash.digest()


def digests(namespace: dict[str, Any], names: Iterable[str]) -> dict[str, bytes | None]:
    return {name: digest(namespace[name], namespace) for name in names if name in namespace}
