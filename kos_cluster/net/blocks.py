"""What is asked of a node's arena over its control link, and answered (see `wire`). Blocks themselves never go there.

Rules: an owner is the authenticated identity that asks, with the instance that it said hello with.
"""

from __future__ import annotations

import msgspec

DROPPED_LIMIT = 4096  # blocks in one message


class KeepBlock(msgspec.Struct, frozen=True, tag=True):
    """The block belongs to the owner that asks, until it drops it or ends. Reply: bool. BlockLostError: not here."""

    instance: str
    block: str
    pin: bool = False


class DropBlocks(msgspec.Struct, frozen=True, tag=True):
    """The owner that asks needs these no more. Reply: bool."""

    instance: str
    blocks: list[str]


class MemoryAsked(msgspec.Struct, frozen=True, tag=True):
    """What the arena holds. Reply: core.arena.Usage."""
