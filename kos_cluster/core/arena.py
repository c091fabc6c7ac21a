"""The books of a node's arena: which sealed blocks are in memory, who holds them, which go to the disk when it is full.

Theory of operation. A block is written once, then sealed, and never changes again. It lives while somebody **keeps**
it (the client that it belongs to) or **holds** it (a process that has it mapped, a transfer that reads it). What is
held or pinned stays in memory; of the rest the block that was used longest ago is spilled when room is wanted, and
comes back when it is asked for. Who wants room waits in one line, so that a large block is not starved by small ones;
who cannot have it even if all were spilled that can be is refused at once, with the sum.

    block       event                                     next
    -           somebody creates it                       waiting
    waiting     there is room                             allocating
    waiting     there will be none                        gone; its writer is refused
    allocating  its memory is there                       writing
    allocating  the system has none                       gone; its writer is refused
    writing     its writer seals it                       sealed
    writing     its writer gives it up, or ends           gone
    sealed      room is wanted, it is idle and the oldest  spilling
    spilling    it is on the disk                         spilled; sealed, if somebody asked for it meanwhile
    spilling    the disk does not take it                 sealed, and not tried again before it was used
    spilled     somebody asks for it                      wanted
    wanted      there is room                             returning
    wanted      there will be none                        spilled; who asked is refused
    wanted      who asked has ended                       spilled
    returning   it is in memory                           sealed, held by who asked
    returning   it cannot be read, or memory is not there  spilled; who asked is refused
    any         nobody keeps, holds or wants it           gone

Rules: what is in memory never exceeds `limit_bytes`, what is on the disk never `spill_limit_bytes`; both count whole
pages. Nothing that is held or pinned is spilled. Nothing that is held is freed. A holder that ends has released all; an
owner that ends keeps nothing. The machine knows no time: order is all that counts.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

import msgspec

PAGE_BYTES = 4096  # what memory comes in
WAITING_LIMIT = 256  # blocks that wait for room at once

Owner = tuple[str, str]  # (authenticated identity, instance of the client)


class BlockState(enum.StrEnum):
    """Where a block is in its life."""

    WAITING = "waiting"
    ALLOCATING = "allocating"
    WRITING = "writing"
    SEALED = "sealed"
    SPILLING = "spilling"
    SPILLED = "spilled"
    WANTED = "wanted"
    RETURNING = "returning"


# ---- events


class Create(msgspec.Struct, frozen=True):
    """`holder` wants to write a block of this name. Answered by `Granted` or `Refused`."""

    block: str
    size_bytes: int
    holder: int


class Allocated(msgspec.Struct, frozen=True):
    """What `Allocate` asked for is there; if it was spilled, with its content."""

    block: str


class AllocationFailed(msgspec.Struct, frozen=True):
    """What `Allocate` asked for cannot be had."""

    block: str
    reason: str


class Seal(msgspec.Struct, frozen=True):
    """Its writer has written it. The writer goes on to hold it until it is passed on."""

    block: str
    holder: int


class Hold(msgspec.Struct, frozen=True):
    """`holder` wants to read a block. Answered by `Granted` or `Refused`."""

    block: str
    holder: int


class Release(msgspec.Struct, frozen=True):
    """`holder` has given back what it was granted once; or gives up a block that it writes."""

    block: str
    holder: int


class PassedOn(msgspec.Struct, frozen=True):
    """The writer need not hold what it has written any more: somebody else keeps it. Told twice it changes nothing."""

    block: str


class HolderGone(msgspec.Struct, frozen=True):
    """The process that held blocks has ended."""

    holder: int


class Keep(msgspec.Struct, frozen=True):
    """The block belongs to this owner (too). With `pin` it stays in memory."""

    block: str
    owner: Owner
    pin: bool = False


class Drop(msgspec.Struct, frozen=True):
    """The owner needs these no more."""

    blocks: tuple[str, ...]
    owner: Owner


class OwnerEnded(msgspec.Struct, frozen=True):
    """The owner needs nothing any more."""

    owner: Owner


class Spilled(msgspec.Struct, frozen=True):
    """What `Spill` asked for is on the disk."""

    block: str


class SpillFailed(msgspec.Struct, frozen=True):
    """The disk did not take it."""

    block: str


# ---- effects


class Allocate(msgspec.Struct, frozen=True):
    """Get memory for a block, and its content if it was `spilled`. Answer with `Allocated` or `AllocationFailed`."""

    block: str
    size_bytes: int
    spilled: bool
    writer: int  # the holder that has it created, or had


class Granted(msgspec.Struct, frozen=True):
    """Give the block to a holder: to be written, if it is not sealed."""

    block: str
    holder: int


class Refused(msgspec.Struct, frozen=True):
    """Tell a holder that it cannot have the block. `absent`: there is none of this name here."""

    block: str
    holder: int
    reason: str
    absent: bool = False


class Spill(msgspec.Struct, frozen=True):
    """Write a block to the disk. Answer with `Spilled` or `SpillFailed`."""

    block: str


class FreeMemory(msgspec.Struct, frozen=True):
    """A block is no longer in memory."""

    block: str


class FreeDisk(msgspec.Struct, frozen=True):
    """A block is no longer on the disk."""

    block: str


Event = (
    Create
    | Allocated
    | AllocationFailed
    | Seal
    | Hold
    | Release
    | PassedOn
    | HolderGone
    | Keep
    | Drop
    | OwnerEnded
    | Spilled
    | SpillFailed
)
Effect = Allocate | Granted | Refused | Spill | FreeMemory | FreeDisk


class Usage(msgspec.Struct, frozen=True):
    """An arena in figures, all of whole pages."""

    limit_bytes: int
    used_bytes: int  # in memory
    held_bytes: int  # of these: held or being written, so that they cannot be spilled
    pinned_bytes: int  # of these: kept in memory because their owner wants it
    spilled_bytes: int  # on the disk
    spill_limit_bytes: int
    blocks: int


# ---- the machine

_IN_MEMORY = frozenset(
    {BlockState.ALLOCATING, BlockState.WRITING, BlockState.SEALED, BlockState.SPILLING, BlockState.RETURNING}
)
_ON_DISK = frozenset({BlockState.SPILLING, BlockState.SPILLED, BlockState.WANTED, BlockState.RETURNING})
_UNSEALED = frozenset({BlockState.WAITING, BlockState.ALLOCATING, BlockState.WRITING})


@dataclass(slots=True)
class _Block:
    name: str
    size_bytes: int  # in whole pages
    wanted_bytes: int
    writer: int
    state: BlockState = BlockState.WAITING
    holders: Counter[int] = field(default_factory=Counter)
    asking: list[int] = field(default_factory=list)  # holders that wait to be granted it
    keepers: set[Owner] = field(default_factory=set)
    pinned: bool = False
    written: bool = False  # and not passed on yet, so that its writer holds it
    refused_by_disk: bool = False

    @property
    def idle(self) -> bool:
        """Whether it may be spilled."""
        sealed = self.state is BlockState.SEALED
        return sealed and not (self.holders or self.asking or self.pinned or self.refused_by_disk)

    @property
    def needed(self) -> bool:
        return bool(self.holders or self.asking or self.keepers)


class Arena:
    """One node's. `blocks_limit`: how many there may be, since each takes a descriptor."""

    def __init__(self, limit_bytes: int, spill_limit_bytes: int, blocks_limit: int) -> None:
        self._limit_bytes = limit_bytes
        self._spill_limit_bytes = spill_limit_bytes
        self._blocks_limit = blocks_limit
        self._blocks: dict[str, _Block] = {}
        self._idle: OrderedDict[str, _Block] = OrderedDict()  # the one used longest ago first
        self._line: deque[str] = deque()  # blocks that want room
        self._used_bytes = 0
        self._disk_bytes = 0
        self._spilling_bytes = 0

    # ---- what is known

    def state(self, block: str) -> BlockState | None:
        """None: there is no such block."""
        found = self._blocks.get(block)
        return found.state if found is not None else None

    def sealed(self, block: str) -> bool:
        """Whether there is such a block, with its content, in memory or on the disk."""
        found = self._blocks.get(block)
        return found is not None and found.state not in _UNSEALED

    def keepers(self, block: str) -> list[Owner]:
        """The owners that keep a block."""
        found = self._blocks.get(block)
        return sorted(found.keepers) if found is not None else []

    def usage(self) -> Usage:
        """The figures."""
        inside = [block for block in self._blocks.values() if block.state in _IN_MEMORY]
        held = sum(block.size_bytes for block in inside if block.holders or block.state in _UNSEALED)
        pinned = sum(block.size_bytes for block in inside if block.pinned)
        return Usage(
            limit_bytes=self._limit_bytes,
            used_bytes=self._used_bytes,
            held_bytes=held,
            pinned_bytes=pinned,
            spilled_bytes=self._disk_bytes,
            spill_limit_bytes=self._spill_limit_bytes,
            blocks=len(self._blocks),
        )

    # ---- events

    def handle(self, event: Event) -> list[Effect]:
        """Take an event in; what is to be done now, in this order."""
        effects: list[Effect] = []
        match event:
            case Create():
                self._create(event, effects)
            case Allocated(name):
                self._allocated(name, effects)
            case AllocationFailed(name, reason):
                self._allocation_failed(name, reason, effects)
            case Seal(name, holder):
                self._seal(name, holder)
            case Hold(name, holder):
                self._hold(name, holder, effects)
            case Release(name, holder):
                self._release(name, holder, effects)
            case PassedOn(name):
                self._passed_on(name, effects)
            case HolderGone(holder):
                self._holder_gone(holder, effects)
            case Keep(name, owner, pin):
                self._keep(name, owner, pin)
            case Drop(names, owner):
                self._drop(names, owner, effects)
            case OwnerEnded(owner):
                kept = [name for name, block in self._blocks.items() if owner in block.keepers]
                self._drop(kept, owner, effects)
            case Spilled(name):
                self._spilled(name, effects)
            case SpillFailed(name):
                self._spill_failed(name, effects)
        self._make_room(effects)
        return effects

    # ---- writing

    def _create(self, event: Create, effects: list[Effect]) -> None:
        reason = ""
        if event.block in self._blocks:
            reason = f"there is a block {event.block[:12]} already"
        elif len(self._blocks) >= self._blocks_limit:
            reason = f"it has {self._blocks_limit:,} blocks, which is the limit"
        elif len(self._line) >= WAITING_LIMIT:
            reason = f"{WAITING_LIMIT} blocks wait for room already"
        if reason:
            effects.append(Refused(event.block, event.holder, reason))
            return
        block = _Block(event.block, _in_pages(event.size_bytes), event.size_bytes, event.holder)
        block.asking.append(event.holder)
        self._blocks[event.block] = block
        self._line.append(event.block)

    def _allocated(self, name: str, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is None:
            return
        if block.state is BlockState.ALLOCATING:
            block.state = BlockState.WRITING
        elif block.state is BlockState.RETURNING:
            block.state = BlockState.SEALED
            self._off_disk(block, effects)
        else:
            return
        self._grant(block, effects)

    def _allocation_failed(self, name: str, reason: str, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is None or block.state not in (BlockState.ALLOCATING, BlockState.RETURNING):
            return
        self._used_bytes -= block.size_bytes
        block.state = BlockState.WAITING if block.state is BlockState.ALLOCATING else BlockState.SPILLED
        self._refuse(block, reason, effects)

    def _seal(self, name: str, holder: int) -> None:
        block = self._blocks.get(name)
        if block is not None and block.state is BlockState.WRITING and block.writer == holder:
            block.state = BlockState.SEALED
            block.written = True

    def _passed_on(self, name: str, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is not None and block.written:
            block.written = False
            self._release(name, block.writer, effects)

    # ---- holding

    def _hold(self, name: str, holder: int, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is None or block.state in _UNSEALED:
            effects.append(Refused(name, holder, f"it has no block {name[:12]}", absent=True))
            return
        block.asking.append(holder)
        if block.state is BlockState.SEALED:
            self._grant(block, effects)
        elif block.state is BlockState.SPILLED:
            block.state = BlockState.WANTED
            self._line.append(name)

    def _release(self, name: str, holder: int, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is not None and block.holders[holder] > 0:
            block.holders[holder] -= 1
            self._let_go(block, effects)

    def _holder_gone(self, holder: int, effects: list[Effect]) -> None:
        for block in list(self._blocks.values()):
            if holder in block.holders or holder in block.asking:
                del block.holders[holder]
                block.asking = [other for other in block.asking if other != holder]
                self._let_go(block, effects)

    def _let_go(self, block: _Block, effects: list[Effect]) -> None:
        """A hold of the block has ended."""
        block.holders = +block.holders
        self._settle(block, effects)

    # ---- keeping

    def _keep(self, name: str, owner: Owner, pin: bool) -> None:
        block = self._blocks.get(name)
        if block is not None and block.state not in _UNSEALED:
            block.keepers.add(owner)
            block.pinned = block.pinned or pin
            self._idle_or_not(block)

    def _drop(self, names: tuple[str, ...] | list[str], owner: Owner, effects: list[Effect]) -> None:
        for name in names:
            block = self._blocks.get(name)
            if block is not None and owner in block.keepers:
                block.keepers.discard(owner)
                block.pinned = block.pinned and bool(block.keepers)
                self._settle(block, effects)

    # ---- spilling

    def _spilled(self, name: str, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is None or block.state is not BlockState.SPILLING:
            return
        self._spilling_bytes -= block.size_bytes
        if block.asking or block.pinned:
            block.state = BlockState.SEALED
            self._off_disk(block, effects)
            self._grant(block, effects)
            return
        block.state = BlockState.SPILLED
        self._off_memory(block, effects)
        self._settle(block, effects)

    def _spill_failed(self, name: str, effects: list[Effect]) -> None:
        block = self._blocks.get(name)
        if block is None or block.state is not BlockState.SPILLING:
            return
        self._spilling_bytes -= block.size_bytes
        block.state = BlockState.SEALED
        block.refused_by_disk = True
        self._off_disk(block, effects)
        self._grant(block, effects)

    # ---- room

    def _make_room(self, effects: list[Effect]) -> None:
        """Serve the line from its front as far as there is room, or will be when what is being spilled is gone."""
        while self._line:
            block = self._blocks[self._line[0]]
            lacking = block.size_bytes - (self._limit_bytes - self._used_bytes)
            if lacking <= 0:
                self._line.popleft()
                self._used_bytes += block.size_bytes
                spilled = block.state is BlockState.WANTED
                block.state = BlockState.RETURNING if spilled else BlockState.ALLOCATING
                effects.append(Allocate(block.name, block.wanted_bytes, spilled, block.writer))
                continue
            if lacking <= self._spilling_bytes:
                return
            victims = self._victims(lacking - self._spilling_bytes)
            if not victims:
                self._line.popleft()
                why = self._full(block)
                if block.state is BlockState.WANTED:
                    block.state = BlockState.SPILLED
                self._refuse(block, why, effects)
                continue
            for victim in victims:
                self._spill(victim, effects)

    def _victims(self, lacking_bytes: int) -> list[_Block]:
        """The idle blocks, oldest first, that make up for so much; none if they do not."""
        victims: list[_Block] = []
        room_bytes = self._spill_limit_bytes - self._disk_bytes
        for block in self._idle.values():
            if lacking_bytes <= 0:
                break
            if block.size_bytes <= room_bytes:
                victims.append(block)
                room_bytes -= block.size_bytes
                lacking_bytes -= block.size_bytes
        return victims if lacking_bytes <= 0 else []

    def _spill(self, block: _Block, effects: list[Effect]) -> None:
        block.state = BlockState.SPILLING
        del self._idle[block.name]
        self._disk_bytes += block.size_bytes
        self._spilling_bytes += block.size_bytes
        effects.append(Spill(block.name))

    def _full(self, block: _Block) -> str:
        """Why there is no room, as a sum."""
        idle = sum(other.size_bytes for other in self._idle.values())
        disk = self._spill_limit_bytes - self._disk_bytes
        return (
            f"{_mib(block.size_bytes)} are wanted and {_mib(self._limit_bytes - self._used_bytes)} of "
            f"{_mib(self._limit_bytes)} are free; of the {_mib(self._used_bytes)} in use {_mib(idle)} could be moved "
            f"to the disk, where there is room for {_mib(disk)}"
        )

    # ---- ends

    def _grant(self, block: _Block, effects: list[Effect]) -> None:
        """Give the block to those who wait for it."""
        asking, block.asking = block.asking, []
        for holder in asking:
            block.holders[holder] += 1
            effects.append(Granted(block.name, holder))
        if asking:
            block.refused_by_disk = False
        self._settle(block, effects)

    def _refuse(self, block: _Block, reason: str, effects: list[Effect]) -> None:
        asking, block.asking = block.asking, []
        effects.extend(Refused(block.name, holder, reason) for holder in asking)
        self._settle(block, effects)

    def _settle(self, block: _Block, effects: list[Effect]) -> None:
        """After a change: a block that nobody needs goes, unless something is being done with it."""
        if block.state is BlockState.WANTED and not block.asking:
            block.state = BlockState.SPILLED
            self._line.remove(block.name)
        given_up = block.state is BlockState.WRITING and not block.holders[block.writer]
        busy = block.state in (BlockState.ALLOCATING, BlockState.SPILLING, BlockState.RETURNING)
        if not busy and (given_up or not block.needed):
            self._remove(block, effects)
        else:
            self._idle_or_not(block)

    def _remove(self, block: _Block, effects: list[Effect]) -> None:
        del self._blocks[block.name]
        self._idle.pop(block.name, None)
        if block.state is BlockState.WAITING and block.name in self._line:
            self._line.remove(block.name)
        if block.state in _IN_MEMORY:
            self._off_memory(block, effects)
        if block.state in _ON_DISK:
            self._off_disk(block, effects)

    def _idle_or_not(self, block: _Block) -> None:
        if block.idle:
            self._idle.setdefault(block.name, block)
        else:
            self._idle.pop(block.name, None)

    def _off_memory(self, block: _Block, effects: list[Effect]) -> None:
        self._used_bytes -= block.size_bytes
        effects.append(FreeMemory(block.name))

    def _off_disk(self, block: _Block, effects: list[Effect]) -> None:
        self._disk_bytes -= block.size_bytes
        effects.append(FreeDisk(block.name))


def _in_pages(size_bytes: int) -> int:
    return max(1, -(-size_bytes // PAGE_BYTES)) * PAGE_BYTES


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"
