"""The cluster as a whole, with the history of its figures."""

from __future__ import annotations

from typing import Any

import msgspec

from kos_cluster.services.monitor.model import Model
from kos_kernel.dashboard.panes.desk import Answer

NAME = "summary"
SERIES = ("busy", "cpu", "memory", "network", "ended")
SHOWN_SAMPLES = 120
ASKED: dict[str, Answer] = {}


class Feed:
    """What the pane is told."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def news(self, full: bool) -> dict[str, Any]:
        history = self._model.history
        told = {
            "totals": msgspec.to_builtins(self._model.totals),
            "now": {key: values[-1] for key in SERIES if (values := rounded(history.last(key, 1)))},
        }
        if full:
            told["history"] = {key: rounded(history.last(key, SHOWN_SAMPLES)) for key in SERIES}
        return told


def rounded(values: list[float | None]) -> list[float | None]:
    """Three digits are more than a line shows."""
    return [value if value is None else float(f"{value:.3g}") for value in values]
