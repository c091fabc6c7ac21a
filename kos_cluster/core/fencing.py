"""Where a resource is, the check that only the latest holder of its lock may change it.

Theory of operation (Chubby's sequencers: Burrows, 2006, section 2.4). Lock tokens only grow. A resource remembers the
highest token that it was shown and refuses lower ones, so a holder that was stalled past its lease comes too late as
soon as its successor has been here.

Rules: keep `highest` durable with the resource, before what it admits is done. Until the successor's first access the
earlier holder is let in; nobody else has changed anything by then.
"""

from __future__ import annotations

from kos_cluster.errors import StateError


class Fence:
    """The fence of one resource. `highest` is what was kept durable."""

    def __init__(self, highest: int = 0) -> None:
        self.highest = highest

    def admit(self, token: int) -> None:
        """Raises StateError when a later holder was here."""
        if token < self.highest:
            raise StateError(
                f"The lock token {token} is out of date: a later holder, with {self.highest}, was here.",
                "Stop what needs the lock, then acquire it again.",
            )
        self.highest = token
