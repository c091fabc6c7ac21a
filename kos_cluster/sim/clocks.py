"""A host's clocks: one that only runs on, at its own rate, and one that people set.

Theory of operation. The world has one true time, in seconds, which no machine sees. A host's monotonic clock starts at
some number of its own at each boot and runs `rate` times as fast as true time; its wall clock is true time plus an
offset, which jumps when somebody or NTP sets it. A change of rate starts a new straight line at the present point, so
the monotonic clock never steps and never runs backwards.

Rules: machines are given `local_s()` and nothing else. Wall time goes only into commands, as the daemon does it.
"""

from __future__ import annotations

DRIFT_MOST = 0.2  # by which share of its pace a monotonic clock is fast or slow, in any world
WALL_EPOCH_S = 1_700_000_000.0  # what the wall clocks show when a world begins


class HostClock:
    """The two clocks of one host."""

    def __init__(self) -> None:
        self.rate = 1.0
        self._true_s = 0.0
        self._local_s = 0.0
        self._offset_s = 0.0

    def boot(self, true_s: float, local_s: float) -> None:
        """The host starts: its monotonic clock shows `local_s`."""
        self._true_s, self._local_s = true_s, local_s

    def drift(self, true_s: float, rate: float) -> None:
        """From now on the monotonic clock runs `rate` times as fast as true time."""
        self._local_s, self._true_s = self.local_s(true_s), true_s
        self.rate = rate

    def jump(self, by_s: float) -> None:
        """Somebody sets the wall clock."""
        self._offset_s += by_s

    def local_s(self, true_s: float) -> float:
        return self._local_s + (true_s - self._true_s) * self.rate

    def true_s(self, local_s: float) -> float:
        """When the monotonic clock will show `local_s`, if its rate stays."""
        return self._true_s + (local_s - self._local_s) / self.rate

    def wall_s(self, true_s: float) -> float:
        return WALL_EPOCH_S + true_s + self._offset_s
