"""Errors as they travel: (class name in `kos_cluster.errors`, message, hint), raised again at the other side.

Rules: only KOS's own errors travel like this, and a name that is not one of them becomes a plain KosError.
"""

from __future__ import annotations

from kos_cluster import errors
from kos_cluster.errors import KosError

WireError = tuple[str, str, str]


def to_wire(error: KosError) -> WireError:
    """The error as it is sent."""
    return type(error).__name__, error.message, error.hint


def from_wire(error: WireError) -> KosError:
    """The error as it was raised at the other side."""
    name, message, hint = error
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, KosError)):
        kind = KosError
    return kind(message, hint)
