"""What happened, the newest last."""

from __future__ import annotations

from typing import Any

import msgspec

from kos_cluster.services.monitor.model import Model
from kos_kernel.dashboard.panes.desk import Answer

NAME = "events"
ASKED: dict[str, Answer] = {}


class Feed:
    """What the pane is told."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._told = 0  # the number of the last event that was told

    def news(self, full: bool) -> dict[str, Any]:
        fresh = self._model.events_after(0 if full else self._told)
        if fresh:
            self._told = fresh[-1].number
        return {"full": full, "events": msgspec.to_builtins(fresh)}
