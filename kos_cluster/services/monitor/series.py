"""Bounded histories of figures, one value a sample.

Rules: all series of one `History` share its clock, so the values of one sample stand at one place. A series that begins
later has no values before. Limits: `SAMPLES_LIMIT` samples; the oldest go first.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

SAMPLES_LIMIT = 600  # ten minutes of one sample a second
_NOTHING = float("nan")


class History:
    """Series by their keys."""

    def __init__(self, limit: int = SAMPLES_LIMIT) -> None:
        self._limit = limit
        self._times: array[float] = array("d")
        self._series: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self._times)

    def add(self, at_s: float, values: Mapping[str, float]) -> None:
        """One sample. A series that is not in it gets no value; one without any value left is forgotten."""
        self._times.append(at_s)
        length = len(self._times)
        for key, value in values.items():
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = array("f", [_NOTHING]) * (length - 1)
            series.append(value)
        for series in self._series.values():
            if len(series) < length:
                series.append(_NOTHING)
        if length >= 2 * self._limit:  # cut now and then, not at each sample
            self._cut(length - self._limit)

    def times(self, count: int = SAMPLES_LIMIT) -> list[float]:
        """When the last `count` samples were taken, Unix seconds."""
        return self._times[-min(count, self._limit) :].tolist() if self._times else []

    def last(self, key: str, count: int = SAMPLES_LIMIT) -> list[float | None]:
        """The last `count` values of a series, oldest first; None where there is none."""
        series = self._series.get(key)
        if series is None:
            return []
        return [None if value != value else value for value in series[-min(count, self._limit) :]]

    def _cut(self, count: int) -> None:
        del self._times[:count]
        for series in self._series.values():
            del series[:count]
        for key in [key for key, series in self._series.items() if all(value != value for value in series)]:
            del self._series[key]
