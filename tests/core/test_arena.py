"""The books of the arena: every block in its state, and what holds whatever happens in whichever order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kos_cluster.core import arena
from kos_cluster.core.arena import PAGE_BYTES, Arena, BlockState

ALICE, BOB = ("alice", "1"), ("bob", "1")


class Node:
    """A machine with a runtime that does at once, or when told, what it is asked."""

    def __init__(self, limit: int = 4, spill: int = 4, blocks: int = 100) -> None:
        self.arena = Arena(limit * PAGE_BYTES, spill * PAGE_BYTES, blocks)
        self.granted: list[tuple[str, int]] = []
        self.refused: list[arena.Refused] = []
        self.spilling: list[str] = []
        self.freed: list[str] = []

    def do(self, event: arena.Event) -> None:
        for effect in self.arena.handle(event):
            match effect:
                case arena.Allocate(block):
                    self.do(arena.Allocated(block))
                case arena.Granted(block, holder):
                    self.granted.append((block, holder))
                case arena.Refused():
                    self.refused.append(effect)
                case arena.Spill(block):
                    self.spilling.append(block)
                case arena.FreeMemory(block):
                    self.freed.append(block)

    def put(self, block: str, pages: int = 1, *, pin: bool = False) -> None:
        """A block of Alice's that nobody holds."""
        self.do(arena.Create(block, pages * PAGE_BYTES, 1))
        self.do(arena.Seal(block, 1))
        self.do(arena.Keep(block, ALICE, pin))
        self.do(arena.PassedOn(block))

    def spilled(self) -> None:
        """The disk has taken what it was given."""
        while self.spilling:
            self.do(arena.Spilled(self.spilling.pop(0)))

    @property
    def used_pages(self) -> int:
        return self.arena.usage().used_bytes // PAGE_BYTES


def test_a_block_is_written_sealed_kept_held_and_goes_with_the_last_who_needs_it() -> None:
    node = Node()
    node.do(arena.Create("a", 5000, 1))
    assert node.granted == [("a", 1)] and node.used_pages == 2
    node.do(arena.Hold("a", 2))
    assert node.refused[-1].absent, "what is not sealed is not there"
    node.do(arena.Seal("a", 1))
    node.do(arena.Keep("a", ALICE))
    node.do(arena.Hold("a", 2))
    node.do(arena.Release("a", 1))
    node.do(arena.Drop(("a",), ALICE))
    assert node.arena.state("a") is BlockState.SEALED, "it is held"
    node.do(arena.Hold("a", 3))
    node.do(arena.Release("a", 2))
    node.do(arena.HolderGone(3))
    assert node.arena.state("a") is None and node.freed == ["a"] and node.used_pages == 0


def test_to_pass_a_block_on_releases_what_its_writer_held_and_not_what_it_reads() -> None:
    node = Node()
    node.put("a")
    node.do(arena.Hold("a", 1))
    node.do(arena.PassedOn("a"))
    assert node.arena.usage().held_bytes == PAGE_BYTES, "the writer reads it"
    node.do(arena.Release("a", 1))
    assert node.arena.usage().held_bytes == 0


def test_only_its_writer_seals_a_block_and_one_that_ends_or_gives_up_leaves_nothing() -> None:
    node = Node()
    for end in (arena.HolderGone(1), arena.Release("a", 1)):
        node.do(arena.Create("a", 1, 1))
        node.do(arena.Seal("a", 2))
        assert node.arena.state("a") is BlockState.WRITING
        node.do(end)
        assert node.arena.state("a") is None and node.used_pages == 0


def test_the_one_used_longest_ago_is_spilled_and_comes_back() -> None:
    node = Node(limit=3)
    for name in "abc":
        node.put(name)
    node.do(arena.Hold("a", 2))
    node.do(arena.Release("a", 2))
    node.put("d")  # waits for room
    assert node.spilling == ["b"]
    assert node.arena.state("d") is BlockState.WAITING
    node.spilled()
    assert node.arena.state("b") is BlockState.SPILLED and node.used_pages == 3
    node.do(arena.Hold("b", 2))
    assert node.arena.state("b") is BlockState.WANTED and node.spilling == ["c"]
    node.spilled()
    assert ("b", 2) in node.granted and node.arena.state("b") is BlockState.SEALED
    assert node.arena.usage().spilled_bytes == PAGE_BYTES, "c alone"


def test_a_block_that_is_asked_for_while_it_is_spilled_stays() -> None:
    node = Node(limit=1)
    node.put("a")
    node.do(arena.Create("b", 1, 1))
    assert node.spilling == ["a"]
    node.do(arena.Hold("a", 2))
    node.spilled()
    assert node.arena.state("a") is BlockState.SEALED and node.granted[-1] == ("a", 2)
    assert [refused.block for refused in node.refused] == ["b"], "there is no other to make room"
    assert node.arena.usage().spilled_bytes == 0


def test_what_is_held_or_pinned_is_not_spilled() -> None:
    node = Node(limit=4)
    node.put("pinned", 2, pin=True)
    node.put("held")
    node.do(arena.Hold("held", 2))
    node.put("idle")
    node.do(arena.Create("large", 2 * PAGE_BYTES, 1))
    assert [refused.block for refused in node.refused] == ["large"]
    assert node.spilling == [] and node.arena.state("large") is None
    usage = node.arena.usage()
    assert (usage.held_bytes, usage.pinned_bytes, usage.blocks) == (PAGE_BYTES, 2 * PAGE_BYTES, 3)


def test_a_refusal_has_the_sum() -> None:
    node = Node(limit=256 * 100, spill=256 * 10)
    node.put("a", 256 * 90)
    node.do(arena.Create("b", 20 << 20, 1))
    assert node.refused[0].reason == (
        "20.0 MiB are wanted and 10.0 MiB of 100.0 MiB are free; of the 90.0 MiB in use 90.0 MiB could be moved to the "
        "disk, where there is room for 10.0 MiB"
    )


def test_a_disk_that_takes_nothing_refuses_who_waits_and_loses_nothing() -> None:
    node = Node(limit=1)
    node.put("a")
    node.do(arena.Create("b", 1, 1))
    node.do(arena.SpillFailed(node.spilling.pop()))
    assert [refused.block for refused in node.refused] == ["b"]
    assert node.arena.state("a") is BlockState.SEALED and node.arena.usage().spilled_bytes == 0
    node.do(arena.Hold("a", 2))  # it is used, so the disk is tried again
    node.do(arena.Release("a", 2))
    node.do(arena.Create("b", 1, 1))
    assert node.spilling == ["a"]


def test_memory_that_the_system_does_not_give_refuses_the_writer() -> None:
    books = Arena(4 * PAGE_BYTES, 0, 10)
    (wanted,) = books.handle(arena.Create("a", 1, 1))
    assert wanted == arena.Allocate("a", 1, False, 1)
    assert books.handle(arena.AllocationFailed("a", "none is left")) == [arena.Refused("a", 1, "none is left")]
    assert books.usage().used_bytes == 0 and books.state("a") is None


def test_what_cannot_be_read_back_stays_on_the_disk_and_its_reader_is_told() -> None:
    node = Node(limit=1)
    node.put("a")
    node.put("b")
    node.spilled()
    node.do(arena.Release("b", 1))
    (wanted,) = node.arena.handle(arena.Hold("a", 2))
    assert wanted == arena.Allocate("a", PAGE_BYTES, True, 1)
    node.do(arena.AllocationFailed("a", "the disk is broken"))
    assert node.refused[-1].holder == 2 and node.arena.state("a") is BlockState.SPILLED and node.used_pages == 0


def test_an_owner_that_ends_keeps_nothing_and_others_keep_theirs() -> None:
    node = Node()
    node.put("a")
    node.put("b")
    node.do(arena.Keep("b", BOB))
    node.do(arena.OwnerEnded(ALICE))
    assert node.arena.state("a") is None and node.arena.state("b") is BlockState.SEALED


def test_blocks_are_counted_and_a_name_is_taken_once() -> None:
    node = Node(blocks=1)
    node.put("a")
    node.do(arena.Create("a", 1, 1))
    node.do(arena.Create("b", 1, 1))
    assert "already" in node.refused[0].reason and "1 blocks, which is the limit" in node.refused[1].reason


def test_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "WAITING_LIMIT", 1)
    node = Node(limit=1)
    node.put("a")
    node.do(arena.Create("b", 1, 1))
    node.do(arena.Create("c", 1, 1))
    assert "1 blocks wait for room already" in node.refused[0].reason


ALL_NAMES = "abcdef"
NAMES = st.sampled_from(ALL_NAMES)
HOLDERS = st.integers(1, 3)
OWNERS = st.sampled_from([ALICE, BOB])


class Anything(RuleBasedStateMachine):
    """Events in any order, against a runtime that notes what it was told; disk and memory answer when they like."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(8 * PAGE_BYTES, 6 * PAGE_BYTES, 5)
        self.memory: dict[str, int] = {}
        self.disk: dict[str, int] = {}
        self.held: Counter[tuple[str, int]] = Counter()
        self.pinned: set[str] = set()
        self.allocating: list[str] = []
        self.spilling: list[str] = []
        self.asked: Counter[tuple[str, int]] = Counter()

    def feed(self, event: arena.Event) -> None:
        for effect in self.arena.handle(event):
            match effect:
                case arena.Allocate(block, size, spilled):
                    assert spilled == (block in self.disk)
                    self.memory[block] = -(-size // PAGE_BYTES) * PAGE_BYTES
                    self.allocating.append(block)
                case arena.Granted(block, holder):
                    assert block in self.memory
                    self.asked[block, holder] -= 1
                    self.held[block, holder] += 1
                case arena.Refused(block, holder):
                    self.asked[block, holder] -= 1
                case arena.Spill(block):
                    assert not self.holders(block), "it is held"
                    assert block not in self.pinned
                    self.disk[block] = self.memory[block]
                    self.spilling.append(block)
                case arena.FreeMemory(block):
                    assert not self.holders(block), "it is held"
                    del self.memory[block]
                    if block not in self.disk:
                        self.pinned.discard(block)
                case arena.FreeDisk(block):
                    del self.disk[block]

    def blocks(self) -> list[str]:
        return [name for name in ALL_NAMES if self.arena.state(name) is not None]

    def holders(self, block: str) -> list[int]:
        return [holder for (name, holder), count in self.held.items() if name == block and count > 0]

    @rule(block=NAMES, pages=st.integers(1, 9), holder=HOLDERS)
    def create(self, block: str, pages: int, holder: int) -> None:
        self.asked[block, holder] += 1
        self.feed(arena.Create(block, pages * PAGE_BYTES, holder))

    @rule(block=NAMES, holder=HOLDERS)
    def seal(self, block: str, holder: int) -> None:
        self.feed(arena.Seal(block, holder))

    @rule(block=NAMES, holder=HOLDERS)
    def hold(self, block: str, holder: int) -> None:
        self.asked[block, holder] += 1
        self.feed(arena.Hold(block, holder))

    @rule(block=NAMES, holder=HOLDERS)
    def release(self, block: str, holder: int) -> None:
        self.held[block, holder] = max(0, self.held[block, holder] - 1)
        self.feed(arena.Release(block, holder))

    @rule(holder=HOLDERS)
    def holder_gone(self, holder: int) -> None:
        for counts in (self.held, self.asked):
            for name, other in [key for key in counts if key[1] == holder]:
                del counts[name, other]
        self.feed(arena.HolderGone(holder))

    @rule(block=NAMES, owner=OWNERS, pin=st.booleans())
    def keep(self, block: str, owner: arena.Owner, pin: bool) -> None:
        if pin and self.arena.sealed(block):
            self.pinned.add(block)
        self.feed(arena.Keep(block, owner, pin))

    @rule(block=NAMES, owner=OWNERS)
    def drop(self, block: str, owner: arena.Owner) -> None:
        if self.arena.keepers(block) == [owner]:
            self.pinned.discard(block)
        self.feed(arena.Drop((block,), owner))

    @rule(owner=OWNERS)
    def owner_ended(self, owner: arena.Owner) -> None:
        for name in self.blocks():
            if self.arena.keepers(name) == [owner]:
                self.pinned.discard(name)
        self.feed(arena.OwnerEnded(owner))

    @rule(works=st.booleans())
    def memory_answers(self, works: bool) -> None:
        if self.allocating:
            block = self.allocating.pop(0)
            if not works:
                del self.memory[block]
            self.feed(arena.Allocated(block) if works else arena.AllocationFailed(block, "none"))

    @rule(works=st.booleans())
    def disk_answers(self, works: bool) -> None:
        if self.spilling:
            block = self.spilling.pop(0)
            self.feed(arena.Spilled(block) if works else arena.SpillFailed(block))

    @invariant()
    def the_books_are_true_and_within_their_limits(self) -> None:
        usage = self.arena.usage()
        assert usage.used_bytes == sum(self.memory.values()) <= usage.limit_bytes
        assert usage.spilled_bytes == sum(self.disk.values()) <= usage.spill_limit_bytes

    @invariant()
    def nothing_is_left_that_nobody_needs(self) -> None:
        for name in self.blocks():
            wanted = any(count > 0 for (block, _), count in self.asked.items() if block == name)
            busy = name in self.allocating or name in self.spilling
            assert self.arena.keepers(name) or wanted or busy or self.holders(name)

    @invariant()
    def who_waits_waits_for_memory_or_disk(self) -> None:
        if not self.allocating and not self.spilling:
            assert not +self.asked, "nobody would ever answer"


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
