"""References to blocks, in a client and in a task: a task that is given one reads it where it is.

Theory of operation. A reference is a name and where the block was made; it travels in pickles as such. `Cluster.put`
and, in a task, `stay` make one. A task's argument that is a reference is resolved in the worker, before the function is
called; one that is inside of another argument stays a reference. Who drops a block, and when: `tasks.ownblocks`.

A large result becomes a block of its worker's node by itself (`result_stays`). What travels in its place is a pickle of
a few bytes that names the block and unpickles to the value, in the client and in a task that takes the result. The
value is the reader's own: its arrays can be written to, and nobody else sees that.

Rules: workers import this, so it stays small. Nothing here counts; references that arrive are told to `counting`.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import secrets
import time
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from kos_cluster.dmem.attached import attached
from kos_cluster.errors import BlockLostError, KosError, UnreachableError, UsageError
from kos_cluster.tasks import serialise
from kos_cluster.tasks.context import here

log = logging.getLogger(__name__)

MARK = "kos-block:"  # in front of a block's name in a pickle
_NAMED = re.compile(rb"kos-block:([0-9a-f]{32})")


class BlockRef:
    """A reference to a block. Made by `Cluster.put`; pass it to tasks, or `get` what it refers to."""

    __slots__ = ("__weakref__", "id", "node", "node_name", "size_bytes")

    def __init__(self, id_: str, size_bytes: int, node: str, node_name: str) -> None:
        self.id = id_
        self.size_bytes = size_bytes
        self.node = node  # the id of the node where it was made
        self.node_name = node_name

    def get(self) -> Any:
        """The value. Its arrays are views of the block, and read-only. Raises BlockLostError, ArenaFullError."""
        folder = arena_beneath()
        if folder is not None:
            return serialise.loads_block(mapped(folder, self))
        from kos_cluster.tasks.cluster import connect  # here, for it imports this module

        return serialise.loads_block(connect()._mesh.blocks.content(self))

    def __reduce__(self) -> tuple[Any, ...]:
        if here.arena is not None:
            departed[self.id] = None
        return _arrived, (MARK + self.id, self.size_bytes, self.node, self.node_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockRef) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<kos BlockRef {self.id[:8]}, {self.size_bytes / (1 << 20):,.1f} MiB on {self.node_name}>"


class Arrivals:
    """Whether references have been unpickled in this process since somebody looked; see `resolved`."""

    __slots__ = ("any",)

    def __init__(self) -> None:
        self.any = False


class Counting(Protocol):
    """Who counts the references in this process."""

    def returned(self, ref: BlockRef, /) -> None:
        """A reference has been unpickled here."""

    def owns(self, block: str, /) -> bool:
        """Whether the block is this process's."""

    def result(self, ref: BlockRef, /) -> memoryview:
        """What a block of this process's holds, to be changed at will. Raises BlockLostError, StateError."""


arrivals = Arrivals()
counting: weakref.WeakSet[Counting] = weakref.WeakSet()
departed: dict[str, None] = {}  # the blocks whose references a task of this worker has pickled, since the last result
_staying: dict[str, float] = {}  # blocks that this worker has written and holds, and when it did; see `let_go`


def arena_beneath() -> Path | None:
    """The arena of the node that this process works on: a worker, or what one has started. None elsewhere."""
    if here.arena is not None:
        return here.arena
    node = os.environ.get("KOS_NODE")
    if not node:
        return None
    from kos_cluster.home import Home  # no worker needs it

    folder = Home().cluster().arena(node)
    return folder if folder.is_dir() else None


def stay(value: Any) -> BlockRef:
    """In a task: lay a value into the shared memory of the node that the task runs on. Return the reference.

    The value stays there; whoever submitted the task owns the block, and drops it with its last reference. Raises
    ArenaFullError, NotPicklableError.
    """
    if here.arena is None:
        raise UsageError("stay() was called outside of a task.", "Use cluster.put(value) there.")
    return _laid(secrets.token_hex(16), serialise.dumps_block(value))


def result_stays(pieces: serialise.Segments, block: str = "") -> bytes:
    """In a worker: let a task's pickled result stay here, as a block of that name if it has one. The pickle for it.

    Raises ArenaFullError, UsageError when there is such a block, UnreachableError.
    """
    ref = _laid(block or secrets.token_hex(16), pieces)
    departed[ref.id] = None
    return stand_in(ref)


def _laid(block: str, pieces: serialise.Segments) -> BlockRef:
    assert here.arena is not None
    node = attached(here.arena).write(block, pieces)
    _staying[block] = time.monotonic()
    return BlockRef(block, sum(map(len, pieces)), node, here.node)


def stand_in(ref: BlockRef) -> bytes:
    """A pickle of a few bytes that unpickles to what the pickle in that block does."""
    return pickle.dumps(_Stayed(ref), serialise.PROTOCOL)


class _Stayed:
    """Unpickles to the result that the block holds."""

    def __init__(self, ref: BlockRef) -> None:
        self._ref = ref

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self._ref
        return _result, (MARK + ref.id, ref.size_bytes, ref.node, ref.node_name)


def _result(marked: str, size_bytes: int, node: str, node_name: str) -> Any:
    ref = BlockRef(marked.removeprefix(MARK), size_bytes, node, node_name)
    return serialise.loads(_own_view(ref))


def _own_view(ref: BlockRef) -> memoryview:
    if here.arena is not None:
        return mapped(here.arena, ref, private=True)
    for each in list(counting):
        if each.owns(ref.id):
            return each.result(ref)
    raise BlockLostError(
        f"The result in block {ref.id[:12]} of node {ref.node_name} is kept for nobody any more.",
        "Keep its future while you need it, or run its task again.",
    )


def take_departed() -> list[str]:
    """The blocks that the results since the last call refer to."""
    names = list(departed)
    departed.clear()
    return names


def let_go(hold_s: float = 0.0) -> None:
    """More work has come: whose the results before are keeps what they refer to, as the node has seen to that.

    Where no node does, as the work is an engine's, each block is held for `hold_s` after it was written.
    """
    before_s = time.monotonic() - hold_s
    _pass_on([block for block, written_s in _staying.items() if written_s <= before_s])


def let_go_unnamed(named: Collection[str], since_s: float) -> None:
    """The work is over that has begun then (monotonic), and whose results name these: what else was laid in it is of no
    use to anybody, as what a task laid that failed."""
    if _staying:
        _pass_on([block for block, written_s in _staying.items() if written_s >= since_s and block not in named])


def _pass_on(blocks: Sequence[str]) -> None:
    for block in blocks:
        del _staying[block]
    try:
        for block in blocks:
            assert here.arena is not None
            attached(here.arena).passed_on(block)
    except UnreachableError as error:  # its arena is gone, and all holds with it
        log.warning("Blocks that stay could not be passed on: %s", error)


def resolved(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with each that is a reference replaced by what it refers to."""
    arrivals.any = False
    return tuple(map(_value, args)), {name: _value(item) for name, item in kwargs.items()}


def _value(argument: Any) -> Any:
    return argument.get() if type(argument) is BlockRef else argument


def _arrived(marked: str, size_bytes: int, node: str, node_name: str) -> BlockRef:
    arrivals.any = True
    ref = BlockRef(marked.removeprefix(MARK), size_bytes, node, node_name)
    for each in list(counting):
        each.returned(ref)
    return ref


def named_in(payload: bytes | bytearray | memoryview) -> list[str]:
    """The blocks that a pickle refers to. Nothing is unpickled."""
    found = _NAMED.findall(payload)
    return [name.decode() for name in found] if found else []


def lost_of(payload: bytes | bytearray | memoryview) -> list[str]:
    """In a worker: those of the blocks that a pickle refers to which no node has."""
    assert here.arena is not None
    lost = []
    for block in named_in(payload):
        try:
            attached(here.arena).read(block)
        except BlockLostError:
            lost.append(block)
        except KosError:  # it is there, or not known to be lost
            continue
    return lost


def mapped(arena: Path, ref: BlockRef, *, private: bool = False) -> memoryview:
    """What a block holds, from the arena in that folder. Raises BlockLostError, ArenaFullError, UnreachableError."""
    return memoryview(attached(arena).read(ref.id, ref.node, private=private))
