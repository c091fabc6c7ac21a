"""What will happen next: a heap of actions by true time, and ties in the order in which they were entered.

Rules: `now_s` is the time of the action that runs. An action may enter others, never in the past.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Action = Callable[..., object]


class Agenda:
    """Virtual time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._entered = 0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []

    def at(self, at_s: float, action: Action, *values: Any) -> None:
        """Run `action(*values)` at this time, or now if that is past."""
        self._entered += 1
        heappush(self._heap, (at_s if at_s > self.now_s else self.now_s, self._entered, action, values))

    def after(self, delay_s: float, action: Action, *values: Any) -> None:
        self.at(self.now_s + delay_s, action, *values)

    def step(self, until_s: float) -> bool:
        """Run the next action, if one is due by `until_s`; else move time there and say so."""
        heap = self._heap
        if not heap or heap[0][0] > until_s:
            self.now_s = until_s
            return False
        self.now_s, _, action, values = heappop(heap)
        action(*values)
        return True
