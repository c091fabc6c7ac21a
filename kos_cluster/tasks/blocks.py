"""References to blocks: `cluster.put` and, in a task, `stay` make one; a task that is given one reads it where it is.

Theory of operation. A reference is a name and where the block was made; it travels in pickles as such. The process
that puts a block **owns** it: it counts its own references to the block and the payloads of unfinished tasks that name
it (found by `MARK`, without unpickling), and drops the block when there are none. When the process ends, its nodes drop
all that it owned. What its tasks' results refer to is the owner's too, in place of the worker's. A task's argument
that is a reference is resolved in the worker, before the function is called; one that is inside of another argument
stays a reference.

Rules: counting is done in the mesh thread, from notes that any thread appends, a garbage collector's too. To drop a
block is told to each node that may have it until it has answered, also when it was out of reach meanwhile: what is
there is gone only when its daemon was started anew, or has left. At most `OWED_LIMIT` are remembered for one that is
out of reach; what is beyond goes when this process ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import Member, MemberState
from kos_cluster.dmem.attached import attached
from kos_cluster.errors import KosError, UnreachableError, UsageError
from kos_cluster.net.blocks import DROPPED_LIMIT, DropBlocks, KeepBlock, nowhere
from kos_cluster.net.transfers import GetBlock, Outcome, get_block
from kos_cluster.net.transport import Payload
from kos_cluster.tasks import serialise
from kos_cluster.tasks.context import here

if TYPE_CHECKING:
    from kos_cluster.tasks.futures import Outcome as TaskOutcome
    from kos_cluster.tasks.mesh import Mesh

log = logging.getLogger(__name__)

MARK = "kos-block:"  # in front of a block's name in a pickle
DROP_AFTER_S = 0.02  # so that what is dropped together is told together
OWED_LIMIT = 32_768  # blocks that a node which is out of reach is to drop; twice what one has at most by default
_MARK = MARK.encode()
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
        if here.arena is not None:
            return serialise.loads_block(_mapped(here.arena, self))
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


@dataclass(frozen=True)
class Read:
    """The blocks that each task of a job reads, and where they are, as far as this process knows."""

    blocks: tuple[str, ...] = ()
    inputs: Inputs | None = None


_NOTHING = Read()


class Arrivals:
    """Whether references have been unpickled in this process since somebody looked; see `resolved`."""

    __slots__ = ("any",)

    def __init__(self) -> None:
        self.any = False


arrivals = Arrivals()
departed: dict[str, None] = {}  # the blocks whose references a task of this worker has pickled, since the last result
_staying: list[str] = []  # blocks that this worker has written, and holds until it is given more work


def stay(value: Any) -> BlockRef:
    """In a task: lay a value into the shared memory of the node that the task runs on. Return the reference.

    The value stays there; whoever submitted the task owns the block, and drops it with its last reference. Raises
    ArenaFullError, NotPicklableError.
    """
    if here.arena is None:
        raise UsageError("stay() was called outside of a task.", "Use cluster.put(value) there.")
    pieces = serialise.dumps_block(value)
    block = secrets.token_hex(16)
    node = attached(here.arena).write(block, pieces)
    _staying.append(block)
    return BlockRef(block, sum(map(len, pieces)), node, here.node)


def take_departed() -> list[str]:
    """The blocks that the results since the last call refer to."""
    names = list(departed)
    departed.clear()
    return names


def let_go() -> None:
    """The node has taken the results before: whose they are keeps what they refer to."""
    blocks = _staying.copy()
    _staying.clear()
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
    for owned in list(_owners):
        owned.returned(ref)
    return ref


def named_in(payload: Payload) -> list[str]:
    """The blocks that a pickle refers to. Nothing is unpickled."""
    return [name.decode() for name in _NAMED.findall(payload)]


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
        _owners.add(self)

    # ---- for any thread

    def put(self, value: Any, *, pin: bool) -> BlockRef:
        """Make a block of a value. Raises NotPicklableError, ArenaFullError, UnreachableError."""
        place = self._here()
        if place is None:
            raise UsageError(
                "There is no node on this machine to put a block on.",
                "Type 'kos up', or pass the value itself to the task.",
            )
        member, folder = place
        pieces = serialise.dumps_block(value)
        size_bytes = sum(map(len, pieces))
        block = secrets.token_hex(16)
        arena = attached(folder)
        arena.write(block, pieces)
        try:
            self._mesh.request(KeepBlock(self._mesh.instance, block, pin), bool, node=member.id)
        finally:
            arena.passed_on(block)
        ref = BlockRef(block, size_bytes, member.id, member.name)
        self._places[block] = {member.id}
        self._follow(ref)
        return ref

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

    def adopt(self, blocks: Sequence[str], outcomes: Iterable[TaskOutcome]) -> None:
        """A node keeps these blocks for us, as results of our tasks refer to them: those among them that are taken."""
        for block in blocks:
            self._places.setdefault(block, set())
            self._note(block, 1)
        for outcome in outcomes if blocks else ():
            for block in named_in(outcome.payload):
                self._note(block, 1)
                weakref.finalize(outcome, self._note, block, -1).atexit = False
        for block in blocks:
            self._note(block, -1)

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
        for node in [node for node in self._owed if node not in self._telling]:
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
        return _mapped(place[1], ref) if place is not None else self._copied(ref)

    def _copied(self, ref: BlockRef) -> memoryview:
        """A copy from another machine, where the block was made if that lives."""
        failures = []
        request = GetBlock(ref.id, insist=True)
        for member in sorted(self._mesh.members, key=lambda member: member.id != ref.node):
            data = bytearray()

            def room(outcome: Outcome, data: bytearray = data) -> memoryview:
                data.extend(bytes(outcome.size))
                return memoryview(data)

            if member.id in self._mesh.linked():
                try:
                    get_block(member.host, member.port, self._mesh.credentials, request, room, lambda _: None)
                    return memoryview(data).toreadonly()
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


def _mapped(arena: Path, ref: BlockRef) -> memoryview:
    return memoryview(attached(arena).read(ref.id, ref.node))


_owners: weakref.WeakSet[OwnBlocks] = weakref.WeakSet()
