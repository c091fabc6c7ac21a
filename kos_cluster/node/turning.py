"""Whether the cluster has turned this node away: it was removed, and is the last to learn it.

Theory of operation. A removed node is told nothing any more; that it was removed it sees from the refusals of its
certificate. A refusal as revoked is authentic: only a node of this cluster can say it. But one node may be wrong, or in
wrong hands, and must not stop another alone. So the refusals of several are wanted, a majority of the members that are
known or `ENOUGH` of them. Where fewer can be reached, one is believed when it is all that can be heard for `ALONE_S`.

Rules: a word from any node of the cluster makes all refusals void. A refusal is counted by the address in the member's
own signed record; those from other addresses count when no member is known.
"""

from __future__ import annotations

from collections.abc import Set

from kos_cluster.errors import RevokedError

ENOUGH = 3  # members whose refusals are believed, in a cluster of any size
SILENCE_S = 2.0  # for which no node has spoken with this one
ALONE_S = 15.0  # from the first refusal, when the others cannot be reached


class TurnedAway:
    """What one node has heard, and who has refused it since. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.met = False  # any node has spoken with this one, or refused it
        self._heard_s = now
        self._refused_s: dict[str, float] = {}  # address -> when it has refused first

    @property
    def refused(self) -> bool:
        """Whether any node has refused this one since one has spoken with it."""
        return bool(self._refused_s)

    def heard(self, now: float) -> None:
        """A node of the cluster has spoken with this one."""
        self.met, self._heard_s = True, now
        self._refused_s.clear()

    def refuse(self, address: str, now: float) -> None:
        """The node at this address has refused this one's certificate as revoked."""
        self.met = True
        self._refused_s.setdefault(address, now)

    def held(self, members: Set[str], now: float) -> bool:
        """Whether this node is to be held removed; `members` are the addresses of the others."""
        if not self._refused_s or now - self._heard_s < SILENCE_S:
            return False
        by_members = sum(address in members for address in self._refused_s)
        wanted = min(ENOUGH, len(members) // 2 + 1)
        return by_members >= wanted or not members or now - min(self._refused_s.values()) >= ALONE_S


def removed(node: str, cluster: str) -> RevokedError:
    """What is said of a node that was removed, and on its machine."""
    return RevokedError(
        f"This node, {node}, was removed from cluster {cluster!r}: the nodes that answer refuse its certificate.",
        f"Type 'kos cluster leave --cluster {cluster}' here; to come back, join again with a new token.",
    )
