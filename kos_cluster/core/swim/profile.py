"""How fast failures are detected: the times of a SWIM machine as one frozen value, and the two that KOS offers.

A crash is seen after the wait for somebody's probe, one failed probe (`probe_s`), and the shortest suspicion. All of a
cluster should use one profile; nodes that differ work together, but each accuses at its own pace.
"""

from __future__ import annotations

import math

import msgspec

MEMBERS_LIMIT = 1024  # members that are alive or suspected


class Profile(msgspec.Struct, frozen=True):
    """Times in seconds; the three that depend on the cluster's size are methods."""

    probe_s: float  # from one probe to the next, when this node is in good health
    probe_timeout_s: float  # for a direct answer; then others are asked until `probe_s` is over
    gossip_s: float  # from one round of gossip to the next
    suspicion_factor: float  # the shortest suspicion in probes, at up to ten members
    suspicion_stretch: float = 6.0  # the longest suspicion in shortest ones
    sync_s: float = 30.0  # from one anti-entropy to the next, up to 32 members
    reconnect_s: float = 10.0  # from one attempt at some dead member to the next, up to 32 members
    members_limit: int = MEMBERS_LIMIT

    @property
    def late_s(self) -> float:
        """A machine that runs so late was stalled itself and has no right to accuse."""
        return self.probe_timeout_s / 2

    @property
    def relay_s(self) -> float:
        """A helper answers `Nack` after this time, early enough to be heard before the probe is over."""
        return 0.6 * (self.probe_s - self.probe_timeout_s)

    def suspicion_s(self, members: int) -> tuple[float, float]:
        """The shortest and the longest suspicion; they grow with the logarithm of the members, as gossip does."""
        shortest_s = self.suspicion_factor * max(1.0, math.log10(max(1, members))) * self.probe_s
        return shortest_s, shortest_s * self.suspicion_stretch

    def growth(self, members: int) -> float:
        """By what `sync_s` and `reconnect_s` are multiplied."""
        return 1.0 + max(0.0, math.log2(max(1, members) / 32))


LAN = Profile(probe_s=1.0, probe_timeout_s=0.4, gossip_s=0.2, suspicion_factor=2.5)
FAST = Profile(probe_s=0.2, probe_timeout_s=0.1, gossip_s=0.05, suspicion_factor=3.0)
