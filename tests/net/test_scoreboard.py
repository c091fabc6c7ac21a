"""The memory that a worker shares with its daemon: what is kept is found, whole, and nothing else."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kos_cluster.core.batching import TASKS_LIMIT
from kos_cluster.net.scoreboard import SIZE_BYTES, Glance, Outcome, Scoreboard, create, glance, outcomes

DISCARDED = 30  # reads of a worker that went on meanwhile, in which a torn one would have been seen
CHANGES = 30  # of the task that a worker is at, as another process sees them
LOOKS = 100_000  # meanwhile, of which one in thirty saw no task when a word was not stored at once
PATIENCE_S = 60.0

BOARD = """
import mmap, sys
from kos_cluster.net.scoreboard import SIZE_BYTES, Scoreboard
board = Scoreboard(mmap.mmap(int(sys.argv[1]), SIZE_BYTES))
"""
KEEPS_FOR_EVER = f"""{BOARD}
position = 0
while True:  # as a worker does it: some tiny tasks, then all that is kept is sent
    board.take()
    for position in range(position, position + 20):
        board.begin(position % 4096)
        board.keep(position, b"%08d" % position * 100, 0.1)
    board.begin(0)
    board.sent()
    position += 1
"""
BEGINS_FOR_EVER = f"""{BOARD}
board.take()
while True:
    board.begin(3300)
    board.begin(300)
"""


@pytest.fixture
def shared() -> Iterator[int]:
    fd = create()
    yield fd
    os.close(fd)


@pytest.fixture
def memory(shared: int) -> mmap.mmap:
    return mmap.mmap(shared, SIZE_BYTES)


def test_what_is_kept_is_found_until_it_is_sent(memory: mmap.mmap):
    board = Scoreboard(memory)
    board.take()
    board.begin(2)
    assert board.keep(0, b"zero", 0.1) and board.keep(1, b"", 0.2)
    seen = glance(memory)
    assert seen == Glance(1, 2, 0, 36)
    assert outcomes(memory, seen) == ([Outcome(0, b"zero"), Outcome(1, b"")], 0.2)
    board.sent()
    assert glance(memory) == Glance(1, 2, 1, 0) and outcomes(memory, glance(memory)) == ([], 0.0)
    assert board.keep(2, b"two", 0.3)
    assert outcomes(memory, glance(memory))[0] == [Outcome(2, b"two")]
    board.take()
    assert glance(memory) == Glance(2, 0, 1, 19)


def test_what_has_no_room_is_not_kept_and_harms_nothing(memory: mmap.mmap):
    board = Scoreboard(memory)
    kept = 0
    while board.keep(kept, b"x" * 1000, 0.0):
        kept += 1
    assert kept == (SIZE_BYTES - 16) // 1016
    assert board.keep(kept, b"x" * (SIZE_BYTES - 16 - kept * 1016 - 16), 0.0)  # the last byte is of use
    assert [each.position for each in outcomes(memory, glance(memory))[0]] == list(range(kept + 1))
    assert not board.keep(0, b"x" * SIZE_BYTES, 0.0)


@pytest.mark.parametrize("damage", [b"\xff" * SIZE_BYTES, b"\xff" * 32, b"\1\0\0\0" * (SIZE_BYTES // 4)])
def test_damage_by_user_code_gives_nothing_that_is_out_of_bounds(memory: mmap.mmap, damage: bytes):
    Scoreboard(memory).keep(0, b"good", 0.0)
    memory[: len(damage)] = damage
    found, _ = outcomes(memory, glance(memory))
    assert sum(len(each.data) for each in found) < SIZE_BYTES


def test_nobody_can_cut_off_pages_that_another_will_touch(shared: int):
    for size_bytes in (0, SIZE_BYTES // 2, 2 * SIZE_BYTES):
        with pytest.raises(PermissionError):
            os.ftruncate(shared, size_bytes)
    with pytest.raises(PermissionError):  # nor forbid the daemon or the worker to write
        fcntl.fcntl(shared, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_worker_that_has_gone_on_since_it_was_seen_gives_nothing(memory: mmap.mmap):
    board = Scoreboard(memory)
    board.take()
    board.keep(0, b"zero", 0.1)
    board.begin(1)
    seen = glance(memory)
    board.sent()  # the same bytes are kept at the same task, but of another outcome
    board.keep(1, b"one!", 0.1)
    assert outcomes(memory, seen) == ([], 0.0)


def test_outcomes_of_a_worker_that_goes_on_while_they_are_read_are_its_own_or_none(shared: int):
    memory = mmap.mmap(shared, SIZE_BYTES)
    discarded = 0
    with _program(KEEPS_FOR_EVER, shared):
        deadline = time.monotonic() + PATIENCE_S
        while discarded < DISCARDED:
            assert time.monotonic() < deadline
            seen = glance(memory)
            found, _ = outcomes(memory, seen)
            assert [each for each in found if each.data != b"%08d" % each.position * 100] == []
            discarded += bool(seen.kept_bytes and not found)


def test_a_glance_never_sees_a_task_that_was_not_begun(shared: int):
    memory = mmap.mmap(shared, SIZE_BYTES)
    before, changes, looks = glance(memory), 0, 0
    with _program(BEGINS_FOR_EVER, shared):
        deadline = time.monotonic() + PATIENCE_S
        while changes < CHANGES or looks < LOOKS:
            assert time.monotonic() < deadline
            seen = glance(memory)
            looks += changes > 2  # it goes on
            changes += seen != before
            before = seen
            assert (seen.batch, seen.position) in {(0, 0), (1, 0), (1, 300), (1, 3300)}
            assert changes < 3 or seen.position, "it began neither of the two"


def test_the_last_task_of_the_largest_batch_and_a_full_memory_fit_their_words(memory: mmap.mmap):
    board = Scoreboard(memory)
    board.take()
    board.begin(TASKS_LIMIT - 1)
    while board.keep(0, b"x" * 1024, 0.1):
        pass
    while board.keep(0, b"", 0.1):
        pass
    full_bytes = glance(memory).kept_bytes
    assert full_bytes > SIZE_BYTES - 32
    assert glance(memory) == Glance(1, TASKS_LIMIT - 1, 0, full_bytes)
    board.sent()
    assert glance(memory) == Glance(1, TASKS_LIMIT - 1, 1, 0)


@contextmanager
def _program(code: str, fd: int) -> Iterator[None]:
    """Another process meanwhile, which writes into this memory."""
    program = subprocess.Popen([sys.executable, "-c", code, str(fd)], pass_fds=[fd])
    try:
        yield
    finally:
        program.kill()
        program.wait()
