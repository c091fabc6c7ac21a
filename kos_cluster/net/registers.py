"""What is asked of the cluster's registers, on the wire (see `wire`)."""

from __future__ import annotations

import msgspec


class RegistersAsked(msgspec.Struct, frozen=True, tag=True):
    """What does this register hold, or (no name) each that is set? Reply: dict[str, str | None], by name.

    The answer holds everything that was decided before it was asked.
    """

    name: str = ""


class RegisterWritten(msgspec.Struct, frozen=True, tag=True):
    """Write a register; with `compare`, only if it holds `expected`. None: not set. Reply: bool, whether it did."""

    name: str
    value: str | None
    compare: bool = False
    expected: str | None = None
