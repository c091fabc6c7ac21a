"""The time that a coordinator puts on commands, so that the replicated clock goes on whatever wall clocks do.

Theory of operation. The replicated clock is the latest stamp that was applied. If stamps were wall clocks alone, one
coordinator whose clock is an hour ahead would end every lease at once, and then stop the clock for an hour: every other
stamp is older, and no lease ends. So a stamp follows the wall clock only between two lines, both drawn from when the
replicated clock last moved, by this node's own monotonic clock: one at its pace, one at `RATE_MOST` times its pace.
Then a wall clock that was set back, or forward, changes how fast a lease ends by that factor at most, and the
replicated clock comes up with a wall clock that is ahead by and by: with one that is an hour ahead in four hours.

    wall clock is           stamp
    behind the lower line   the lower line
    between the lines       the wall clock
    beyond the upper line   the upper line

Rules: `now` is the monotonic clock. A node stamps only when it `knows` the replicated clock: when it has applied an
entry of the term in which it coordinates, and so all entries before. A clock that was never stamped takes the wall
clock as it is. While all nodes are down the replicated clock stands still, so leases outlive that.
"""

from __future__ import annotations

RATE_MOST = 1.25  # of the replicated clock, to a node's monotonic one


class Stamp:
    """One node's idea of the replicated time."""

    def __init__(self) -> None:
        self._clock_s = 0.0
        self._at_s = 0.0
        self._term = 0

    def applied(self, clock_s: float, term: int, now: float) -> None:
        """Entries were applied, the last of this term, and the replicated clock shows this."""
        self._term = term
        if clock_s > self._clock_s:
            self._clock_s, self._at_s = clock_s, now

    def knows(self, term: int) -> bool:
        """Whether this node may stamp in a term."""
        return self._term == term

    def now_s(self, wall_s: float, now: float) -> float:
        """The replicated time as it is now: the stamp of a command."""
        if not self._clock_s:
            return wall_s
        passed_s = now - self._at_s
        return min(max(wall_s, self._clock_s + passed_s), self._clock_s + passed_s * RATE_MOST)
