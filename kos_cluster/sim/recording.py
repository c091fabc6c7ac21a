"""A history as it happens: calls and returns, in the order of their times, become operations for the checker.

A call ends in one of four ways:

    ended by       in the history
    ok             with its answer
    failed         not at all: it certainly had no effect
    unknown        as open: a time-out, a lost connection; it may have an effect later, or never
    nothing        as `unknown`

Rules: a process has one call under way. After `unknown` it may call again. Over `OPERATIONS_LIMIT` calls are refused,
since a history with a gap would be checked wrongly.
"""

from __future__ import annotations

from collections.abc import Hashable

from kos_cluster.errors import LimitError, UsageError
from kos_cluster.sim.linearizability import Operation

OPERATIONS_LIMIT = 100_000  # calls in one history


class Recorder:
    """The history of one object, so far."""

    def __init__(self) -> None:
        self._ended: list[Operation] = []
        self._under_way: dict[int | str, tuple[float, Hashable]] = {}

    def call(self, process: int | str, input: Hashable, now: float) -> None:
        """A process calls. Raises UsageError when it has a call under way, LimitError when the history is full."""
        if process in self._under_way:
            raise UsageError(f"Process {process} calls while its last call is under way.", "End that call first.")
        if len(self._ended) + len(self._under_way) >= OPERATIONS_LIMIT:
            raise LimitError(
                f"The history has {OPERATIONS_LIMIT} operations, which is its limit.", "Record a shorter run."
            )
        self._under_way[process] = (now, input)

    def ok(self, process: int | str, output: Hashable, now: float) -> None:
        called, input = self._end(process)
        self._ended.append(Operation(process, called, now, input, output))

    def failed(self, process: int | str) -> None:
        self._end(process)

    def unknown(self, process: int | str) -> None:
        called, input = self._end(process)
        self._ended.append(Operation(process, called, None, input))

    def history(self) -> list[Operation]:
        """All operations so far; those under way as unknown."""
        under_way = [Operation(process, called, None, input) for process, (called, input) in self._under_way.items()]
        return self._ended + under_way

    def _end(self, process: int | str) -> tuple[float, Hashable]:
        if process not in self._under_way:
            raise UsageError(f"A call of process {process} ends, and it has none under way.", "Record its call first.")
        return self._under_way.pop(process)
