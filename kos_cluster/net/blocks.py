"""What is asked of a node's arena over its control link, and answered (see `wire`). Blocks themselves never go there.

Rules: an owner is the authenticated identity that asks, with the instance that it said hello with.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kos_cluster.errors import BlockLostError

DROPPED_LIMIT = 4096  # blocks in one message


class KeepBlock(msgspec.Struct, frozen=True, tag=True):
    """The block belongs to the owner that asks, until it drops it or ends; its writer need not hold it any more.

    Reply: bool. BlockLostError: not here.
    """

    instance: str
    block: str
    pin: bool = False


class DropBlocks(msgspec.Struct, frozen=True, tag=True):
    """The owner that asks needs these no more. Reply: bool."""

    instance: str
    blocks: list[str]


class MemoryAsked(msgspec.Struct, frozen=True, tag=True):
    """What the arena holds. Reply: core.arena.Usage."""


def nowhere(block: str, failures: Iterable[str]) -> BlockLostError:
    """No node has given a block; what each has said."""
    said = "; ".join(dict.fromkeys(failures)) or "no other node is alive"
    return BlockLostError(
        f"The block {block[:12]} could not be got from any node: {said}.",
        "What was put cannot be made again: put it again, or run the task again that made it.",
    )
