"""One stream of items as its taker sees it: which are there, which come twice, how far its task may go on.

Theory of operation. Items have positions, from 0. They may come late, twice, or from a second attempt at their task;
each position counts once, in order, whoever brought it. The task may run ahead of its taker by a window: of
`WINDOW_ITEMS`, or of as many items of the mean size so far as `WINDOW_BYTES` hold, but one at least.

Rules: `until` never goes back. Pure: the items themselves are kept elsewhere.
"""

from __future__ import annotations

WINDOW_ITEMS = 64  # that a task is ahead of who takes them, at most
WINDOW_BYTES = 16 << 20  # and of about so many bytes
FIRST_ITEMS = 2  # before the size of any is known


class Reception:
    """The state of one stream."""

    def __init__(self) -> None:
        self.taken = 0  # items that were handed on
        self.complete = 0  # items that are there, without a gap
        self.until = FIRST_ITEMS  # the task may yield up to this position
        self._early: set[int] = set()  # positions after a gap
        self._size_bytes = 0
        self._count = 0

    def arrived(self, position: int, size_bytes: int) -> bool:
        """An item came; False when it had come before, or was never asked for."""
        if position < self.complete or position in self._early or position >= self.until:
            return False
        self._early.add(position)
        while self.complete in self._early:
            self._early.discard(self.complete)
            self.complete += 1
        self._size_bytes += size_bytes
        self._count += 1
        self._widen()
        return True

    def take(self) -> int | None:
        """The position of the next item, which is handed on; None when it has not come."""
        if self.taken == self.complete:
            return None
        self.taken += 1
        self._widen()
        return self.taken - 1

    @property
    def window(self) -> int:
        """How far ahead the task may be now."""
        if not self._count:
            return FIRST_ITEMS
        return max(1, min(WINDOW_ITEMS, WINDOW_BYTES * self._count // max(1, self._size_bytes)))

    def _widen(self) -> None:
        self.until = max(self.until, self.taken + self.window)
