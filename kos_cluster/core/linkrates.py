"""How much the links from other nodes carry, as measured by what came over them.

Theory of operation. Each transfer of a block tells the bytes a second of one link, from the node that sent it to this
one. They are smoothed by an exponentially weighted mean, as in batching. The node tells its rates to owners, which
reckon with them what moving a task's inputs there takes (`placement`); a link that was not measured counts as a fast
one. A node of this machine shares a block without moving it, which takes as long for a large one as for a small one; so
that is not measured, but its link counts as one of `SHARED_BYTES_S` until something is sent over it.

Rules. A transfer under `LEAST_BYTES` says more of the delay than of the rate, and is not counted. Several transfers
over one link at once measure a share each, which is what the next one gets, too.

Limits: `LINKS_LIMIT` links, those that were measured last.
"""

from __future__ import annotations

from collections import OrderedDict

LEAST_BYTES = 1 << 20
LINKS_LIMIT = 64
SMOOTHING = 0.3  # weight of the newest transfer
LEAST_S = 1e-4  # no transfer is taken to be shorter
SHARED_BYTES_S = 1e10  # of a link over which a block was shared: about what memory carries


class LinkRates:
    """Of one node."""

    def __init__(self) -> None:
        self._rates: OrderedDict[str, float] = OrderedDict()  # id of the sender -> bytes a second

    def measured(self, sender: str, size_bytes: int, elapsed_s: float) -> None:
        """A transfer from this node is complete."""
        if size_bytes < LEAST_BYTES:
            return
        rate = size_bytes / max(elapsed_s, LEAST_S)
        known = self._rates.get(sender)
        self._now(sender, rate if known is None else known + SMOOTHING * (rate - known))

    def shared(self, sender: str) -> None:
        """This node has shared a block."""
        self._now(sender, SHARED_BYTES_S)

    def told(self) -> dict[str, float]:
        """Bytes a second by the id of the sender."""
        return dict(self._rates)

    def _now(self, sender: str, rate: float) -> None:
        self._rates[sender] = rate
        self._rates.move_to_end(sender)
        if len(self._rates) > LINKS_LIMIT:
            self._rates.popitem(last=False)
