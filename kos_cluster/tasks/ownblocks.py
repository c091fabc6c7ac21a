"""The blocks that a process owns: it counts who needs them, and has them dropped when nobody does.

Theory of operation. The process that puts a block **owns** it: it counts its own references to the block and the
payloads of unfinished tasks that name it (found by `blocks.MARK`, without unpickling), and drops the block when there
are none. When the process ends, its nodes drop all that it owned. What its tasks' results refer to is the owner's too,
in place of the worker's.

Rules: counting is done in the mesh thread, from notes that any thread appends, a garbage collector's too. To drop a
block is told to each node that may have it until it has answered, also when it was out of reach meanwhile: what is
there is gone only when its daemon was started anew, or has left. At most `OWED_LIMIT` are remembered for one that is
out of reach; what is beyond goes when this process ends.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import secrets
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import Member, MemberState
from kos_cluster.dmem.attached import attached
from kos_cluster.errors import ArenaFullError, BlockLostError, KosError, UnreachableError, UsageError
from kos_cluster.net.blocks import DROPPED_LIMIT, DropBlocks, KeepBlock, nowhere
from kos_cluster.net.transfers import GetBlock, Outcome, Take, get_block
from kos_cluster.net.transport import Payload
from kos_cluster.tasks import serialise
from kos_cluster.tasks.blocks import BlockRef, counting, mapped, named_in
from kos_cluster.tasks.futures import Outcome as TaskOutcome
from kos_cluster.tasks.futures import StayedOutcome

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh

T = TypeVar("T")
log = logging.getLogger(__name__)

DROP_AFTER_S = 0.02  # so that what is dropped together is told together
OWED_LIMIT = 32_768  # blocks that a node which is out of reach is to drop; twice what one has at most by default


@dataclass(frozen=True)
class Read:
    """The blocks that each task of a job reads, and where they are, as far as this process knows."""

    blocks: tuple[str, ...] = ()
    inputs: Inputs | None = None


_NOTHING = Read()


class OwnBlocks:
    """The blocks that this process owns in one cluster."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._uses: Counter[str] = Counter()
        self._places: dict[str, set[str]] = {}  # block -> ids of nodes that may have it; empty: any
        self._known: dict[str, tuple[int, str]] = {}  # block -> its size, and the node where it was made
        self._notes: deque[tuple[str, int]] = deque()
        self._owed: dict[str, dict[str, None]] = {}  # node id -> blocks that it is to drop, in their order
        self._lives: dict[str, int] = {}  # id of a node that may have blocks -> when its daemon was started
        self._telling: dict[str, asyncio.Task[None]] = {}  # by node id
        self._waking = False
        counting.add(self)

    # ---- for any thread

    def put(self, value: Any, *, pin: bool) -> BlockRef:
        """Make a block of a value. Raises NotPicklableError, ArenaFullError, UnreachableError."""
        self._place()  # before much work is done
        return self.lay(serialise.dumps_block(value), pin=pin)

    def lay(self, pieces: serialise.Segments, *, pin: bool = False) -> BlockRef:
        """Make a block of what is pickled already. Raises as `put` does."""
        member, folder = self._place()
        block = secrets.token_hex(16)
        arena = attached(folder)
        self._with_room(lambda: arena.write(block, pieces))
        ref = BlockRef(block, sum(map(len, pieces)), member.id, member.name)
        try:
            self.take_over(ref, pin=pin)
        finally:
            arena.passed_on(block)
        return ref

    def take_over(self, ref: BlockRef, *, pin: bool = False) -> None:
        """Own a block that its node has, and that whoever wrote it still holds. Raises BlockLostError."""
        self._mesh.request(KeepBlock(self._mesh.instance, ref.id, pin), bool, node=ref.node)
        self._places[ref.id] = {ref.node}
        self._follow(ref)

    def _place(self) -> tuple[Member, Path]:
        place = self._here()
        if place is None:
            raise UsageError(
                "There is no node on this machine to put a block on.",
                "Type 'kos up', or pass the value itself to the task.",
            )
        return place

    def read_by(self, payloads: Sequence[bytes]) -> Read:
        """The blocks that all of these payloads name."""
        if not payloads or not (common := set(named_in(payloads[0]))):
            return _NOTHING
        for payload in payloads[1:]:
            common.intersection_update(named_in(payload))
        at: Counter[str] = Counter()
        for block in common & self._known.keys():
            size_bytes, node = self._known[block]
            at[node] += size_bytes
        return Read(tuple(sorted(common)), Inputs(at.total(), dict(at)) if at else None)

    def returned(self, ref: BlockRef) -> None:
        """A reference has been unpickled here. It counts, as the block may be ours, or may become it."""
        self._follow(ref)

    def adopt(self, node: str, blocks: Sequence[str], outcomes: Collection[TaskOutcome]) -> None:
        """A node keeps these blocks for us, as results of our tasks refer to them: those among them that are taken.

        When none are, what the node made once more of a block that is known elsewhere is dropped there.
        """
        for block in blocks:
            if outcomes:
                self._owed.get(node, {}).pop(block, None)  # what it was to drop was made before
            elif block in self._known and self._known[block][1] != node:
                self._owed.setdefault(node, {})[block] = None
            self._places.setdefault(block, set())
            self._note(block, 1)
        for outcome in outcomes if blocks else ():
            for block in named_in(outcome.payload):
                self._note(block, 1)
                if isinstance(outcome, StayedOutcome):
                    self._known[block] = outcome.size_bytes, outcome.node
                weakref.finalize(outcome, self._note, block, -1).atexit = False
        for block in blocks:
            self._note(block, -1)

    def claim(self, node: str, blocks: Collection[str], outcome: TaskOutcome) -> None:
        """As `adopt`, of a task's result that came by another way: the node of that name is asked to keep the blocks.

        Those that are not there are somebody else's, or lost: who reads them will see. Not in the mesh thread.
        """
        self._mesh.run_there(self._claim(node, blocks, outcome))

    async def _claim(self, node: str, blocks: Collection[str], outcome: TaskOutcome) -> None:
        named = sorted(set(blocks).intersection(named_in(outcome.payload)))
        kept = await asyncio.gather(*(self._kept(block, node) for block in named))
        id_ = next((member.id for member in self._mesh.members if member.name == node), node)
        self.adopt(id_, [block for block, is_kept in zip(named, kept, strict=True) if is_kept], [outcome])

    async def _kept(self, block: str, node: str) -> bool:
        try:
            await self._mesh.ask_node(KeepBlock(self._mesh.instance, block), node)
        except KosError as error:
            log.info("Block %s of a result is not kept on %s: %s", block[:12], node, error)
            return False
        return True

    def drop_elsewhere(self, block: str) -> None:
        """A block is made again: what nodes out of reach may still have of it is not wanted. In the mesh thread."""
        for node in self._lives.keys() - self._mesh.linked():
            self._owed.setdefault(node, {})[block] = None

    def used(self, payload: Payload) -> None:
        """A task that is not done yet has this payload."""
        for block in named_in(payload):
            self._note(block, 1)

    def unused(self, payload: Payload) -> None:
        """See `used`: it is done."""
        for block in named_in(payload):
            self._note(block, -1)

    def _follow(self, ref: BlockRef) -> None:
        self._known[ref.id] = ref.size_bytes, ref.node
        self._note(ref.id, 1)
        weakref.finalize(ref, self._note, ref.id, -1).atexit = False

    def _note(self, block: str, change: int) -> None:
        self._notes.append((block, change))
        if not self._waking and not self._mesh.closed and self._mesh.pid == os.getpid():
            self._waking = True
            self._mesh.wake(self._wait_a_little)

    # ---- in the mesh thread

    def _wait_a_little(self) -> None:
        asyncio.get_running_loop().call_later(DROP_AFTER_S, self._count)

    def _count(self) -> None:
        """Take in what was noted, in its order, and drop what nobody here needs any more."""
        self._waking = False
        gone: set[str] = set()
        while self._notes:
            block, change = self._notes.popleft()
            if change > 0 and self._uses[block] and block in self._places:
                self._places[block] = set()  # it is used twice, so by a task: any node may have it by now
            self._uses[block] += change
            if self._uses[block] <= 0:
                gone.add(block)
        for block in gone:
            if self._uses[block] <= 0:
                del self._uses[block]
                self._known.pop(block, None)
                places = self._places.pop(block, None)  # None: it is another process's
                for node in places or (self._lives if places is not None else ()):
                    self._owed.setdefault(node, {})[block] = None
        self.tell()

    def node_up(self, member: Member) -> None:
        """A node can be reached, perhaps again: it hears what it was to drop meanwhile, unless it has lost all."""
        if self._lives.get(member.id, member.started_ns) != member.started_ns:
            self._owed.pop(member.id, None)
        self._lives[member.id] = member.started_ns
        self.tell()

    def tell(self) -> None:
        """Tell nodes what they may drop; again, if they have not answered."""
        for node in [node for node, owed in self._owed.items() if owed and node not in self._telling]:
            if node in self._mesh.linked():
                self._telling[node] = asyncio.get_running_loop().create_task(self._tell(node), name="drop-blocks")
            else:
                self._remember(node)

    def _remember(self, node: str) -> None:
        """What is owed to a node that is out of reach, within the limit; nothing when it has left for good."""
        member = self._mesh.member(node)
        if member is None or member.state is MemberState.LEFT:
            self._lives.pop(node, None)
            del self._owed[node]
            return
        owed = self._owed[node]
        for block in list(islice(owed, max(0, len(owed) - OWED_LIMIT))):
            del owed[block]

    def _with_room(self, use: Callable[[], T]) -> T:
        """What needs room in this node's arena, where what was dropped just before may still be. Any thread."""
        try:
            return use()
        except ArenaFullError:
            if not self._mesh.run_there(self._tell_now()):
                raise
            return use()

    async def _tell_now(self) -> bool:
        """Have what nobody here needs any more dropped at once, and wait for that; whether there was anything."""
        self._count()
        there_was = bool(self._telling)
        for _ in range(2):  # what is being told already, then what has come since
            await asyncio.gather(*self._telling.values())
            self.tell()
        return there_was

    async def _tell(self, node: str) -> None:
        blocks = list(islice(self._owed[node], DROPPED_LIMIT))
        try:
            await self._mesh.ask_node(DropBlocks(self._mesh.instance, blocks), node)
        except UnreachableError:
            return  # told again with the next beat, or when it is linked again
        except KosError as error:
            log.warning("Blocks could not be dropped: %s", error)
        finally:
            del self._telling[node]
        owed = self._owed.get(node, {})  # none: it was started anew meanwhile
        for block in blocks:
            owed.pop(block, None)
        if not owed:
            self._owed.pop(node, None)

    # ---- where

    def content(self, ref: BlockRef) -> memoryview:
        """What a block holds, where this machine's node has it, or a copy. Raises BlockLostError, ArenaFullError."""
        place = self._here()
        if place is None:
            return self._copied(ref).toreadonly()
        return self._with_room(lambda: mapped(place[1], ref))

    def owns(self, block: str) -> bool:
        """Whether the block is this process's. Any thread."""
        return block in self._places

    def result(self, ref: BlockRef) -> memoryview:
        """What a result that stayed holds, to be changed at will: mapped privately, or where that cannot be, a copy.

        Raises BlockLostError.
        """
        if self._mesh.closed:
            raise BlockLostError(
                f"The result in block {ref.id[:12]} was dropped when the connection was closed.",
                "Take results before you close the connection.",
            )
        place = self._here()
        if place is not None:
            with suppress(ArenaFullError, UnreachableError):  # this machine's node cannot have it: a copy of one's own
                return self._with_room(lambda: mapped(place[1], ref, private=True))
        return self._copied(ref)

    def _copied(self, ref: BlockRef) -> memoryview:
        """A copy from another machine, where the block was made if that lives."""
        failures = []
        request = GetBlock(ref.id, insist=True)
        for member in sorted(self._mesh.members, key=lambda member: member.id != ref.node):
            given: list[mmap.mmap] = []

            def room(outcome: Outcome, given: list[mmap.mmap] = given) -> Take:
                given.append(mmap.mmap(-1, outcome.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
                return given[0].write  # type: ignore[return-value]  # how many that were, nobody asks

            if member.id in self._mesh.linked():
                try:
                    get_block(member.host, member.port, self._mesh.credentials, request, room)
                    return memoryview(given[0])
                except KosError as error:
                    failures.append(error.message.rstrip("."))
        raise nowhere(ref.id, failures)

    def _here(self) -> tuple[Member, Path] | None:
        """The node of this machine whose arena this process uses, first the one under this task; None: none runs."""
        under = os.environ.get("KOS_NODE", "")
        for name in sorted(self._mesh.file.nodes, key=lambda name: name != under):
            folder = self._mesh.home.arena(name)
            member = next((member for member in self._mesh.members if member.name == name), None)
            if member is not None and member.id in self._mesh.linked() and folder.is_dir():
                return member, folder
        return None
