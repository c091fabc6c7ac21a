"""The authority's key, replicated: a sealed copy for each voter, which only that voter can open.

Theory of operation. The coordinator, being a voter, opens its own copy, seals the key anew for each voter when the
voters change, and proposes all copies at once. What is here is opaque; `net.sealing` makes and opens it.

Rules: there is always at least one copy, as without any no machine could join again. A removed node's copy is
dropped. It has seen the key, though: who removes a node because its disk was stolen forms a new cluster.
"""

from __future__ import annotations

from collections.abc import Collection

from kos_cluster.errors import LimitError, NoSuchNodeError, StateError, UsageError

SEALS_LIMIT = 16  # nodes with a copy: voters, and those that become voters
SEAL_LIMIT_BYTES = 4096  # of one copy


class Seals:
    """Node id -> its sealed copy."""

    def __init__(self, restored: dict[str, bytes]) -> None:
        self._seals = dict(restored)

    def snapshot(self) -> dict[str, bytes]:
        return dict(self._seals)

    def get(self, node: str) -> bytes | None:
        return self._seals.get(node)

    def replace(self, seals: dict[str, bytes], nodes: Collection[str]) -> None:
        """Raises UsageError, LimitError or NoSuchNodeError, and then nothing changed."""
        if not seals:
            raise UsageError("At least one node must keep the authority's key.")
        if len(seals) > SEALS_LIMIT:
            raise LimitError(f"{len(seals)} nodes would keep the authority's key; the limit is {SEALS_LIMIT}.")
        for node, seal in seals.items():
            if node not in nodes:
                raise NoSuchNodeError(f"The authority's key cannot be sealed to {node[:64]}, which is no node.")
            if not 0 < len(seal) <= SEAL_LIMIT_BYTES:
                raise LimitError(f"A sealed key of {len(seal)} bytes; the limit is {SEAL_LIMIT_BYTES}.")
        self._seals = dict(sorted(seals.items()))

    def check_drop(self, node: str) -> None:
        """Raises StateError when this node has the only copy."""
        if list(self._seals) == [node]:
            raise StateError(
                "This node has the only copy of the authority's key; without it no machine could join any more.",
                "Let another node join first, and wait until 'kos cluster status' shows it as a voter.",
            )

    def drop(self, node: str) -> bool:
        """Whether it had a copy. `check_drop` must have passed."""
        return self._seals.pop(node, None) is not None
