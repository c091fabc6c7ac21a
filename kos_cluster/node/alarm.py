"""A timer of the loop for a machine with a deadline that moves with almost every event.

The loop's timers go by whole milliseconds, to the nearest one, so half of them ring too early; a machine that is not
due yet would then be asked again and again until it is. `EARLY_S` later none does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EARLY_S = 0.001  # the most by which a timer rings too early


class Alarm:
    """Calls `ring` once when the time that was set last has come. `ring` sets the next one."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = float("inf")

    def set(self, at_s: float) -> None:
        """By the loop's clock; infinite: never."""
        if at_s == self._at_s:
            return
        self.cancel()
        self._at_s = at_s
        if at_s != float("inf"):
            self._timer = self._loop.call_at(at_s + EARLY_S, self._rang)

    def cancel(self) -> None:
        """Never, until it is set again."""
        self._at_s = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rang(self) -> None:
        self._timer, self._at_s = None, float("inf")
        self._ring()
