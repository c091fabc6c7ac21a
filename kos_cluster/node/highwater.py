"""The mark above which a machine's memory is too full for more work.

Rules: what the whole machine uses counts, whoever uses it. Work is taken again only when it is well below the mark, so
that one task more or less does not switch it to and fro.
"""

from __future__ import annotations

HIGH_WATER_PERCENT = 95.0  # of the machine's memory in use, from which no more work is taken
LOW_WATER_PERCENT = 92.0  # below which it is taken again


class HighWater:
    """One node's mark."""

    def __init__(self) -> None:
        self.why = ""  # no more work is taken; empty: it is

    def measured(self, memory_percent: float) -> bool:
        """Take in how full the memory is. Whether `why` is now, or no longer, empty."""
        over = memory_percent >= (LOW_WATER_PERCENT if self.why else HIGH_WATER_PERCENT)
        changed = over != bool(self.why)
        if changed:
            self.why = over_memory(memory_percent) if over else ""
        return changed


def over_memory(memory_percent: float) -> str:
    """Why a node takes no more work, in words."""
    return f"its memory is {memory_percent:.0f}% full, and it takes no more work from {HIGH_WATER_PERCENT:.0f}%"
