"""The memory that a worker shares with its daemon: what is kept is found, whole, and nothing else."""

from __future__ import annotations

import mmap

import pytest

from kos_cluster.net.scoreboard import SIZE_BYTES, Glance, Outcome, Scoreboard, glance, outcomes


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, SIZE_BYTES)


def test_what_is_kept_is_found_until_it_is_sent(memory: mmap.mmap):
    board = Scoreboard(memory)
    board.begin(7, 2)
    assert board.keep(0, b"zero", 0.1) and board.keep(1, b"", 0.2)
    assert glance(memory) == Glance(7, 2, 2)
    assert outcomes(memory) == ([Outcome(0, b"zero"), Outcome(1, b"")], 0.2)
    board.sent()
    assert glance(memory) == Glance(7, 2, 0) and outcomes(memory) == ([], 0.0)
    assert board.keep(2, b"two", 0.3)
    assert outcomes(memory)[0] == [Outcome(2, b"two")]


def test_what_has_no_room_is_not_kept_and_harms_nothing(memory: mmap.mmap):
    board = Scoreboard(memory)
    kept = 0
    while board.keep(kept, b"x" * 1000, 0.0):
        kept += 1
    assert kept == (SIZE_BYTES - 32) // 1008
    assert [each.position for each in outcomes(memory)[0]] == list(range(kept))
    assert not board.keep(0, b"x" * SIZE_BYTES, 0.0)


@pytest.mark.parametrize("damage", [b"\xff" * SIZE_BYTES, b"\xff" * 32, b"\1\0\0\0" * (SIZE_BYTES // 4)])
def test_damage_by_user_code_gives_nothing_that_is_out_of_bounds(memory: mmap.mmap, damage: bytes):
    Scoreboard(memory).keep(0, b"good", 0.0)
    memory[: len(damage)] = damage
    found, _ = outcomes(memory)
    assert sum(len(each.data) for each in found) < SIZE_BYTES
