"""Rows by their keys, of which a front end is told only what has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = list[Any]


class Rows:
    """What the front end was told last."""

    def __init__(self) -> None:
        self._told: dict[str, Row] = {}

    def news(self, rows: Mapping[str, Row], full: bool) -> dict[str, Any]:
        """The rows that are new or changed, and the keys that are gone; with `full` all of them."""
        before = {} if full else self._told
        self._told = dict(rows)
        return {
            "full": full,
            "changed": {key: row for key, row in rows.items() if before.get(key) != row},
            "removed": [key for key in before if key not in rows],
        }
