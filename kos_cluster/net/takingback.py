"""What an owner and a node say of work that is to move from a busy node to an idle one; see `core.takingback`."""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Runs


class TakeBack(msgspec.Struct, frozen=True, tag="TAKE_BACK"):
    """An owner: others idle, give back what has not begun of these batches. `Returned` answers, or nothing."""

    batches: list[int]


class Returned(msgspec.Struct, frozen=True, tag="RETURNED"):
    """A node: these tasks of a batch have not begun, and will not be run here. Repeated as `wire.Result` is."""

    batch: int
    serial: int
    runs: Runs
