"""Load spread beside membership (skeleton of its interface).

Events: `Measured(load)`, `Peers(ids)`, `Reported(sender, report)`; effect: `SendReport(id, report)`; `loads(now)`.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Load


class LoadEntry(msgspec.Struct, frozen=True, array_like=True):
    """A node's load, and how old it is. An age travels, never a time."""

    id: str
    age_s: float
    load: Load


class LoadReport(msgspec.Struct, frozen=True, tag="LOAD"):
    """The sender's own load first, then what it has heard of others."""

    entries: tuple[LoadEntry, ...]


class Measured(msgspec.Struct, frozen=True):
    """This node's own load, measured now."""

    load: Load


class Peers(msgspec.Struct, frozen=True):
    """The ids of the other members that are alive."""

    ids: tuple[str, ...]


class Reported(msgspec.Struct, frozen=True):
    """A report came; `sender` is the authenticated id."""

    sender: str
    report: LoadReport


class SendReport(msgspec.Struct, frozen=True):
    """Effect: send this report to that member. It may get lost."""

    id: str
    report: LoadReport
