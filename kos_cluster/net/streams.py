"""What owners and nodes say of tasks that yield: items as they come, and how many more are wanted.

Rules: positions are counted from 0 in each attempt, and an item's position says which it is, whichever attempt brings
it. `ItemsWanted` is a level, not a step: hearing it twice, or an older one late, changes nothing.
"""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, frozen=True, tag="ITEM"):
    """Something that a task has yielded: the payload, or, when it is large, a file of that name and size in the spool.

    Repeated until the owner releases `serial`, as results are.
    """

    batch: int
    serial: int
    position: int
    large: tuple[str, int] | None = None


class ItemsWanted(msgspec.Struct, frozen=True, tag="ITEMS_WANTED"):
    """An owner to the node of a batch: its task may yield up to this position."""

    batch: int
    until: int
