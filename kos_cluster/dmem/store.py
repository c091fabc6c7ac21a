"""A node's blocks: carries out in memory and on the disk what `core.arena` decides.

Rules: used in the daemon's loop; what takes long (allocating, encrypting, the disk) runs in `THREADS` threads. What is
refused is refused with the reason, the sum and what to do. A hold that is granted to whoever waits no more is released.
Whatever fails in a thread is told to the books, so that nobody waits for what does not come. After `close` nothing
changes.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from kos_cluster.core import arena
from kos_cluster.core.arena import Arena, Owner, Usage
from kos_cluster.dmem.segments import Segment
from kos_cluster.dmem.spill import Spill
from kos_cluster.errors import ArenaFullError, BlockLostError, KosError, StateError, UsageError
from kos_cluster.home import private_folder

log = logging.getLogger(__name__)

THREADS = 2  # that allocate, spill and read back

Waiting = asyncio.Future[Segment]


class BlockStore:
    """The arena of one node. `folder` is its own: what lies there of an earlier run is removed."""

    def __init__(self, node: str, folder: Path, limit_bytes: int, spill_limit_bytes: int, blocks_limit: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = private_folder(folder)
        self._node = node
        self._books = Arena(limit_bytes, spill_limit_bytes, blocks_limit)
        self._spill = Spill(folder / "spill")
        self._segments: dict[str, Segment] = {}
        self._adopted: dict[tuple[str, int], Segment] = {}  # with their holder; the books have no room for them yet
        self._waiting: defaultdict[tuple[str, int], deque[Waiting]] = defaultdict(deque)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="arena")
        self._loop = asyncio.get_running_loop()
        self._next_holder = 1
        self._closed = False

    def new_holder(self) -> int:
        """A number for somebody who is going to hold blocks."""
        number, self._next_holder = self._next_holder, self._next_holder + 1
        return number

    # ---- for holders

    async def create(self, block: str, size_bytes: int, holder: int) -> Segment:
        """Memory for a block that `holder` is going to write. Raises ArenaFullError, UsageError."""
        self._check_new(block, size_bytes)
        return await self._wait(arena.Create(block, size_bytes, holder), block, holder)

    async def adopt(self, block: str, segment: Segment, holder: int) -> None:
        """Have a block that another node's arena shares, as if `holder` had written it: it counts in full here, too.

        The segment is this store's to close from here on. Raises ArenaFullError, UsageError.
        """
        try:
            self._check_new(block, segment.size_bytes)
        except UsageError:
            segment.close()
            raise
        self._adopted[block, holder] = segment
        try:
            await self._wait(arena.Create(block, segment.size_bytes, holder), block, holder)
        finally:
            if self._adopted.pop((block, holder), None) is not None:
                segment.close()

    def seal(self, block: str, holder: int) -> None:
        """The block is written. Raises UsageError when it is not this holder's to seal, or still mapped."""
        if self._books.state(block) is not arena.BlockState.WRITING:
            raise UsageError(f"There is no block {block[:12]} being written.")
        try:
            self._segments[block].seal()
        except BlockingIOError as error:
            raise UsageError(f"The block {block[:12]} cannot be sealed: {error.strerror}.", "Close it first.") from None
        self._feed(arena.Seal(block, holder))

    async def hold(self, block: str, holder: int) -> Segment:
        """A sealed block, in memory until it is released as often. Raises BlockLostError, ArenaFullError."""
        return await self._wait(arena.Hold(block, holder), block, holder)

    def release(self, block: str, holder: int) -> None:
        self._feed(arena.Release(block, holder))

    def holder_gone(self, holder: int) -> None:
        """A holder has ended; it has released all."""
        for (block, other), waiting in list(self._waiting.items()):
            if other == holder:
                del self._waiting[block, other]
                for answer in waiting:
                    answer.cancel()
        self._feed(arena.HolderGone(holder))

    # ---- for owners

    def keep(self, block: str, owner: Owner, *, pin: bool = False) -> None:
        """The block is this owner's. Raises BlockLostError when it is not here."""
        if not self._books.sealed(block):
            raise self._absent(block)
        self._feed(arena.Keep(block, owner, pin))

    def passed_on(self, block: str) -> None:
        """Whoever wrote it need not hold it any more."""
        self._feed(arena.PassedOn(block))

    def drop(self, blocks: Sequence[str], owner: Owner) -> None:
        self._feed(arena.Drop(tuple(blocks), owner))

    def owner_ended(self, owner: Owner) -> None:
        self._feed(arena.OwnerEnded(owner))

    # ---- for everybody

    def has(self, block: str) -> bool:
        """Whether it is here, sealed, in memory or on the disk."""
        return self._books.sealed(block)

    def keepers(self, block: str) -> list[Owner]:
        """Who keeps a block."""
        return self._books.keepers(block)

    def usage(self) -> Usage:
        return self._books.usage()

    def close(self) -> None:
        """The node stops. Who has a block mapped goes on to see it."""
        self._closed = True
        self._threads.shutdown()
        for segment in self._segments.values():
            segment.close()
        self._spill.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the machine and its effects

    def _check_new(self, block: str, size_bytes: int) -> None:
        if size_bytes <= 0 or not (len(block) == 32 and block.isalnum()):
            raise UsageError("A block has a name of 32 hex digits, and at least one byte.")
        if self._books.state(block) is not None:
            raise UsageError(f"There is a block {block[:12]} on node {self._node} already.")

    async def _wait(self, event: arena.Create | arena.Hold, block: str, holder: int) -> Segment:
        if self._closed:
            raise StateError(f"The arena of node {self._node} is closed.", "Type 'kos up' to start the node again.")
        answer: Waiting = self._loop.create_future()
        self._waiting[block, holder].append(answer)
        self._feed(event)
        return await answer

    def _feed(self, event: arena.Event) -> None:
        if self._closed:  # its segments are
            return
        for effect in self._books.handle(event):
            match effect:
                case arena.Allocate(block, size_bytes, spilled, writer):
                    if (adopted := self._adopted.pop((block, writer), None)) is not None:
                        self._segments[block] = adopted
                        self._loop.call_soon(self._feed, arena.Allocated(block))
                    else:
                        self._in_thread(partial(self._allocate, block, size_bytes, spilled))
                case arena.Spill(block):
                    self._in_thread(partial(self._to_disk, block, self._segments[block]))
                case arena.Granted(block, holder):
                    self._granted(block, holder)
                case arena.Refused():
                    self._refused(effect)
                case arena.FreeMemory(block):
                    self._segments.pop(block).close()
                case arena.FreeDisk(block):
                    self._spill.drop(block)

    def _granted(self, block: str, holder: int) -> None:
        answer = self._answer(block, holder)
        if answer is None or answer.done():
            self._loop.call_soon(self.release, block, holder)
        else:
            answer.set_result(self._segments[block])

    def _refused(self, refused: arena.Refused) -> None:
        answer = self._answer(refused.block, refused.holder)
        if answer is None or answer.done():
            return
        if refused.absent:
            answer.set_exception(self._absent(refused.block))
        else:
            answer.set_exception(self._full(refused.reason))

    def _answer(self, block: str, holder: int) -> Waiting | None:
        waiting = self._waiting.get((block, holder))
        if not waiting:
            return None
        answer = waiting.popleft()
        if not waiting:
            del self._waiting[block, holder]
        return answer

    def _absent(self, block: str) -> BlockLostError:
        return BlockLostError(
            f"Node {self._node} has no block {block[:12]}.",
            "It was dropped by its owner, or its owner has ended: put it again.",
        )

    def _full(self, reason: str) -> ArenaFullError:
        return ArenaFullError(
            f"The arena of node {self._node} has no room: {reason}.",
            "Drop references that nobody needs ('kos mem status'), or start the node with a larger KOS_ARENA.",
        )

    # ---- in threads; each returns what the books are told then

    def _in_thread(self, work: Callable[[], arena.Event]) -> None:
        running = self._loop.run_in_executor(self._threads, work)
        running.add_done_callback(self._thread_ended)

    def _thread_ended(self, running: asyncio.Future[arena.Event]) -> None:
        if not running.cancelled():
            self._feed(running.result())

    def _allocate(self, block: str, size_bytes: int, spilled: bool) -> arena.Event:
        try:
            segment = Segment.allocate(size_bytes)
            if spilled:
                self._read_back(block, segment)
        except Exception as error:
            log.warning(
                "A block of %d bytes could not be brought into memory: %s",
                size_bytes,
                error,
                exc_info=_surprising(error),
            )
            return arena.AllocationFailed(block, error.message if isinstance(error, KosError) else str(error))
        self._segments[block] = segment
        return arena.Allocated(block)

    def _read_back(self, block: str, segment: Segment) -> None:
        try:
            with segment.map(access=mmap.ACCESS_WRITE) as mapping, memoryview(mapping) as view:
                self._spill.read(block, view)
            segment.seal()
        except BaseException:
            segment.close()
            raise

    def _to_disk(self, block: str, segment: Segment) -> arena.Event:
        try:
            with segment.map() as mapping:
                self._spill.write(block, mapping)
        except Exception as error:
            log.warning(
                "A block of %d bytes could not be spilled: %s", segment.size_bytes, error, exc_info=_surprising(error)
            )
            return arena.SpillFailed(block)
        return arena.Spilled(block)


def _surprising(error: Exception) -> bool:
    """Whether it is neither the machine's nor the disk's fault, so that a developer wants to know where it arose."""
    return not isinstance(error, KosError | OSError)
