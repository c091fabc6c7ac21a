"""Errors that a supervisor goes on with, as the log of its job is told of them.

Rules: an error is printed when it comes, and not again while it lasts, as it is met with each look. Any thread.
"""

from __future__ import annotations


class Troubles:
    """Of one engine."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._lasting: dict[str, str] = {}  # by what has it

    def came(self, what: str, message: str) -> None:
        """What was looked at, or tried, is in trouble."""
        if self._lasting.get(what) != message:
            self._lasting[what] = message
            print(f"Engine {self._engine} has trouble, and goes on: {message}", flush=True)

    def over(self, what: str) -> None:
        """It is in none."""
        self._lasting.pop(what, None)
