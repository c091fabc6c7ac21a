"""The time that a proposer puts on its commands, so that the replicated clock goes on whatever wall clocks do.

Theory of operation. The replicated clock is the latest stamp that was applied. If stamps were wall clocks alone, one
proposer whose clock is an hour ahead would stop it for an hour: every other stamp is older, and no lease ends. So a
stamp is never less than what the replicated clock would show by now, had it run on since it last moved by the
proposer's own monotonic clock. Then time passes at its own pace for leases, also after a wall clock was set back.

Rules: `now` is the proposer's monotonic clock. A wall clock that is ahead still moves the replicated clock ahead, which
ends leases early; fences make that harmless.
"""

from __future__ import annotations


class Stamp:
    """One node's idea of the replicated time."""

    def __init__(self) -> None:
        self._clock_s = 0.0
        self._at_s = 0.0

    def applied(self, clock_s: float, now: float) -> None:
        """Entries were applied, and the replicated clock shows this."""
        if clock_s > self._clock_s:
            self._clock_s, self._at_s = clock_s, now

    def now_s(self, wall_s: float, now: float) -> float:
        """The stamp of a command that is proposed now."""
        return max(wall_s, self._clock_s + (now - self._at_s)) if self._clock_s else wall_s
