"""Checkpoints at a gang's owner: a set of all ranks of one step, or the one before."""

from __future__ import annotations

from kos_cluster.core.gang.checkpoints import (
    PIECE_LIMIT_BYTES,
    Checkpoints,
    Piece,
    PieceGiven,
    PieceTaken,
    PieceWanted,
)


def hand_in(made: Checkpoints, rank: int, step: int, state: bytes) -> None:
    assert made.handle(rank, Piece(step, 0, len(state), state)) == PieceTaken(step, 0)


def fetched(made: Checkpoints, rank: int) -> bytes:
    data = b""
    while True:
        given = made.handle(rank, PieceWanted(made.step, len(data)))
        assert isinstance(given, PieceGiven)
        data += given.data
        if len(data) == given.size:
            return data


def test_a_step_counts_when_the_last_rank_has_handed_in_its_state() -> None:
    made = Checkpoints(3)
    assert made.handle(0, PieceWanted(0, 0)) is None
    for rank in (2, 0):
        hand_in(made, rank, 1, b"first%d" % rank)
        assert made.step == 0
    hand_in(made, 1, 1, b"first1")
    assert made.step == 1
    hand_in(made, 0, 2, b"second0")
    assert (made.step, fetched(made, 0), fetched(made, 2)) == (1, b"first0", b"first2")


def test_what_an_epoch_has_not_made_whole_is_gone_with_it() -> None:
    made = Checkpoints(2)
    hand_in(made, 0, 1, b"a0")
    hand_in(made, 1, 1, b"a1")
    hand_in(made, 0, 2, b"b0 of the first epoch")
    made.begin()
    hand_in(made, 1, 2, b"b1")
    assert (made.step, fetched(made, 0)) == (1, b"a0")
    hand_in(made, 0, 2, b"b0")
    assert (made.step, fetched(made, 0), fetched(made, 1)) == (2, b"b0", b"b1")


def test_large_states_come_and_go_in_pieces_that_may_come_twice_and_not_out_of_turn() -> None:
    made = Checkpoints(1)
    state = bytes(range(256)) * (PIECE_LIMIT_BYTES // 256) + b"the rest"
    first = Piece(1, 0, len(state), state[:PIECE_LIMIT_BYTES])
    rest = Piece(1, PIECE_LIMIT_BYTES, len(state), state[PIECE_LIMIT_BYTES:])
    assert made.handle(0, rest) is None
    for _ in range(2):
        assert made.handle(0, first) == PieceTaken(1, 0)
    assert made.step == 0
    for _ in range(2):
        assert made.handle(0, rest) == PieceTaken(1, PIECE_LIMIT_BYTES)
    assert (made.step, fetched(made, 0)) == (1, state)


def test_what_fits_nowhere_is_not_answered() -> None:
    made = Checkpoints(1)
    assert made.handle(0, Piece(2, 0, 1, b"x")) is None
    assert made.handle(0, Piece(1, 0, 1, b"xy")) is None
    hand_in(made, 0, 1, b"x")
    assert made.handle(0, PieceWanted(2, 0)) is None
