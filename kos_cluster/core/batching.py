"""How many tasks travel together: batches are sized by measured duration (guided self-scheduling).

Source: C. Polychronopoulos, D. Kuck, "Guided Self-Scheduling", IEEE Trans. Computers C-36(12), 1987: a batch is never
more than a share of what remains, so that the last batches are small and the slots end together. On top, a batch aims
at `TARGET_S` of work, so that small tasks pay for one message per many and long ones travel alone.
"""

from __future__ import annotations

TARGET_S = 0.05  # work that one batch should hold
TASKS_LIMIT = 4096  # of one batch
BATCH_LIMIT_BYTES = 4 << 20  # of one batch's payloads, by their mean
GROWTH = 16  # a batch is at most this many times the largest that was measured
SMOOTHING = 0.3  # weight of the newest measurement
PREFETCH_BELOW_S = 0.02  # tasks shorter than this are queued ahead at busy nodes: of longer ones the pause counts less


class Durations:
    """The measured time of one job's tasks, as an exponentially weighted mean. Starts knowing nothing."""

    def __init__(self) -> None:
        self.mean_s: float | None = None
        self._measured = 0  # tasks of the largest batch measured

    def measured(self, tasks: int, elapsed_s: float) -> None:
        """Take in that `tasks` tasks took `elapsed_s` seconds of one worker."""
        if tasks <= 0:
            return
        each_s = elapsed_s / tasks
        self.mean_s = each_s if self.mean_s is None else self.mean_s + SMOOTHING * (each_s - self.mean_s)
        self._measured = max(self._measured, tasks)

    @property
    def short(self) -> bool:
        """Whether the tasks are known to be so short that a node should hold some in advance."""
        return self.mean_s is not None and self.mean_s < PREFETCH_BELOW_S

    def batch_size(self, remaining: int, slots: int, each_bytes: int = 0) -> int:
        """How many of `remaining` tasks, of `each_bytes` each, the next batch should hold for a cluster of `slots`."""
        if self.mean_s is None or remaining <= 1:
            return 1
        by_time = int(TARGET_S / max(self.mean_s, 1e-7))
        by_share = -(-remaining // (2 * max(1, slots)))
        by_bytes = BATCH_LIMIT_BYTES // max(1, each_bytes)
        return max(1, min(by_time, by_share, by_bytes, self._measured * GROWTH, TASKS_LIMIT))
