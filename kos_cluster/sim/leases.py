"""Leases of the lock, judged from the log: none ends long before its time, wherever a wall clock jumps to.

Theory of operation. The replicated clock shows what was stamped at a true time that the world knows. So a lease lasts,
in true time, from when the clock that it began by was stamped until the clock that ended it was. A coordinator's
monotonic clock is fast by `DRIFT_MOST` at most, and the replicated clock runs `RATE_MOST` times as fast at most.

    what            must hold
    a lease ends    no sooner than its time divided by both factors

Rules: until somebody has applied a first command there is no clock to hold on to: stamps from then are not judged.
"""

from __future__ import annotations

from kos_cluster.core.replicated import replies
from kos_cluster.core.replicated.stamp import RATE_MOST
from kos_cluster.sim.clocks import DRIFT_MOST
from kos_cluster.sim.invariants import Violation

SLACK_S = 0.001  # for the rounding of times that count from 1970


class Judge:
    """What the log says of leases that all have one length."""

    def __init__(self, lease_s: float) -> None:
        self.given = 0
        self._least_s = lease_s / (RATE_MOST * (1 + DRIFT_MOST)) - SLACK_S
        self._stamped: dict[float, float] = {}  # a stamp -> the true time that it was made at
        self._clock_s = 0.0  # the replicated clock
        self._moved_s = 0.0  # the true time at which it was stamped
        self._known_s = 0.0  # the true time at which it was first applied anywhere
        self._began: dict[int, float] = {}  # token of a lease -> `_moved_s` of then

    def stamped(self, stamp_s: float, true_s: float) -> None:
        """A host has stamped something."""
        self._stamped.setdefault(stamp_s, true_s)

    def see(self, stamp_s: float, outcome: replies.Outcome, true_s: float) -> None:
        """A command was applied, first of all hosts."""
        if not self._clock_s:
            self._known_s = true_s
        if stamp_s > self._clock_s:
            self._clock_s, self._moved_s = stamp_s, self._stamped[stamp_s]
            if self._moved_s <= self._known_s:
                self._began.clear()
        for change in outcome.changes:
            if isinstance(change, replies.LeaseEnded):
                self._ended(change.token)
        if isinstance(outcome.reply, replies.LockGranted) and not outcome.repeated:
            self.given += 1
            self._began[outcome.reply.token] = self._moved_s

    def _ended(self, token: int) -> None:
        began_s = self._began.pop(token, None)
        if began_s is not None and self._moved_s - began_s < self._least_s:
            raise Violation(
                "leases", f"the lease with token {token} ended after {self._moved_s - began_s:.3f} s of true time"
            )
