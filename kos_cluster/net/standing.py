"""Why the waiting tasks of a detached job wait: asked of the node that drives it, and what its driver tells.

Rules: only an owner judges where its tasks go, and the owner of a detached job is a driver process (see `net.driven`).
A node passes the question on to the one that it runs; it refuses when it runs none of this epoch, or when that one does
not tell in time.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Needs


class StandingAsked(msgspec.Struct, frozen=True, tag=True):
    """What a detached job needs and why its tasks wait. Reply: Standing. StateError when none is told here."""

    id: str
    epoch: int


class Standing(msgspec.Struct, frozen=True, tag=True):
    """What a job's tasks need, and why the waiting ones wait, or where the next would go."""

    needs: Needs
    reasons: tuple[str, ...]
