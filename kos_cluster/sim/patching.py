"""Attributes of the product's modules and classes, replaced for a while and put back.

Two things need it: bounds made small, so that short runs reach them, and the planted defects of `mutants`. Both are
kept out of the product's code, which has no switch for either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kos_cluster.core.raft import config, log, progress, replication

Patch = tuple[Any, str, Any]  # what has the attribute, its name, and what replaces it

# The least that make a run of seconds see snapshots in several parts, full windows and learners that lag.
SMALL_BOUNDS: tuple[Patch, ...] = (
    (log, "TAIL_ENTRIES", 8),
    (replication, "SNAPSHOT_CHUNK_BYTES", 600),
    (replication, "APPEND_ENTRIES", 8),
    (progress, "INFLIGHT_LIMIT", 4),
    (config, "CAUGHT_UP_ENTRIES", 8),
)


@contextmanager
def patched(patches: Sequence[Patch]) -> Iterator[None]:
    """The attributes are replaced within the block."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in patches]
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, original in reversed(before):
            setattr(owner, name, original)
