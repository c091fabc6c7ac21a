"""Whether the cluster has turned this node away: it was removed, and is the last to learn it.

Theory of operation. A removed node is told nothing any more; that it was removed it sees from the refusals of its
certificate. A refusal as revoked is authentic: only a node of this cluster can say it. But one node may be wrong, or in
wrong hands, and must not stop another alone. So the refusals of several are wanted, a majority of the members that are
known or `ENOUGH` of them. Where fewer can be reached, one is believed when it is all that can be heard for `ALONE_S`.

What each node said last counts, a word or a refusal. Nodes that were removed together go on speaking with each other;
so a word voids its speaker's refusal alone, and those that refuse must outnumber those that speak. In a cluster where
this node belongs nearly all do, so a few liars are not enough. A word or refusal counts for `COUNTS_S`: both come again
and again while a node is there.

Rules: a refusal counts once it has stood for `STANDS_S`. It is counted by the address in the member's own signed
record; those from other addresses count when no member is known. Of two removed nodes that hear each other and are
refused by one other only, neither is sure: both go on, and do no harm, as nobody else listens.
"""

from __future__ import annotations

from collections.abc import Set

from kos_cluster.errors import RevokedError

ENOUGH = 3  # members whose refusals are believed, in a cluster of any size
STANDS_S = 2.0  # for which a refusal must have stood
COUNTS_S = 10.0  # for which a word or refusal counts; members speak with each other, and try again, more often
ALONE_S = 15.0  # from the first refusal, when the others cannot be reached


class TurnedAway:
    """What each node has said last to this one, by its address. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.met = False  # any node has spoken with this one, or refused it
        self._heard_s: dict[str, float] = {}  # when it has spoken last
        self._refused_s: dict[str, tuple[float, float]] = {}  # when it has refused first since then, and last

    def heard(self, address: str, now: float) -> None:
        """The node at this address has spoken with this one."""
        self.met = True
        self._heard_s[address] = now
        self._refused_s.pop(address, None)

    def refuse(self, address: str, now: float) -> None:
        """The node at this address has refused this one's certificate as revoked."""
        self.met = True
        self._heard_s.pop(address, None)
        self._refused_s[address] = (self._refused_s.get(address, (now, now))[0], now)

    def doubted(self, now: float) -> bool:
        """Whether more nodes refuse this one than speak with it."""
        self._heard_s = {address: at for address, at in self._heard_s.items() if now - at < COUNTS_S}
        self._refused_s = {address: at for address, at in self._refused_s.items() if now - at[1] < COUNTS_S}
        return len(self._refused_s) > len(self._heard_s)

    def held(self, members: Set[str], now: float) -> bool:
        """Whether this node is to be held removed; `members` are the addresses of the others."""
        doubted = self.doubted(now)
        standing = {address: first for address, (first, _) in self._refused_s.items() if now - first >= STANDS_S}
        if not doubted or not standing:
            return False
        wanted = min(ENOUGH, len(members) // 2 + 1)
        return len(standing.keys() & members) >= wanted or not members or now - min(standing.values()) >= ALONE_S


def removed(node: str, cluster: str) -> RevokedError:
    """What is said of a node that was removed, and on its machine."""
    return RevokedError(
        f"This node, {node}, was removed from cluster {cluster!r}: the nodes that answer refuse its certificate.",
        f"Type 'kos cluster leave --cluster {cluster}' here; to come back, join again with a new token.",
    )
