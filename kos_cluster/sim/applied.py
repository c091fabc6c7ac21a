"""What committed entries are applied to on one host: the cluster's state, and up to which entry."""

from __future__ import annotations

from kos_cluster.core.raft.values import Entry, Kind
from kos_cluster.core.replicated.replies import Outcome
from kos_cluster.core.replicated.state import ClusterState


class Applied:
    """The applied state of one life of a host."""

    def __init__(self) -> None:
        self.state = ClusterState()
        self.index = 0

    def apply(self, entry: Entry) -> Outcome | None:
        """Raises ValueError for an entry that is not the next one."""
        if entry.index != self.index + 1:
            raise ValueError(f"entry {entry.index} was to be applied after {self.index}")
        self.index = entry.index
        return self.state.apply(entry.index, entry.data) if entry.kind is Kind.COMMAND else None

    def snapshot(self) -> bytes:
        return self.state.snapshot()

    def restore(self, index: int, data: bytes) -> None:
        self.index = index
        self.state = ClusterState.restore(data)
