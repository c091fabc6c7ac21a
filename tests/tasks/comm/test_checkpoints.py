"""A rank's checkpoints against its owner, over a way that answers late; and what the owner does not hear."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from kos_cluster.core.gang import checkpoints as core
from kos_cluster.core.gang.checkpoints import PIECE_LIMIT_BYTES, Checkpoints, Piece
from kos_cluster.core.gang.epochs import Cancelled
from kos_cluster.errors import ProtocolError
from kos_cluster.tasks.comm.checkpoints import MARK, Checkpointer
from kos_cluster.tasks.gangs import Gang, _RankSaid


class Owner:
    """Answers the one rank of a gang. Each answer comes after a stale one: the table, or the answer before it."""

    def __init__(self) -> None:
        self.made = Checkpoints(1)
        self._before = msgspec.msgpack.encode({"gang": "j", "epoch": 1})
        self._stale = True

    def meet(self, said: bytes) -> bytes:
        assert said.startswith(MARK)
        self._stale = not self._stale
        if not self._stale:
            return self._before
        answer = self.made.handle(0, msgspec.msgpack.decode(said[len(MARK) :], type=core.Ask))
        self._before = msgspec.msgpack.encode(answer)
        return self._before

    def rank(self) -> Checkpointer:
        comm: Any = SimpleNamespace(allgather=lambda value: [value])
        return Checkpointer(comm, self.made.step, self.meet)


def test_a_state_of_many_pieces_comes_back_in_the_next_epoch() -> None:
    owner = Owner()
    first = owner.rank()
    assert first.restored() is None
    state = {"x": np.arange(PIECE_LIMIT_BYTES // 4, dtype=np.float64), "step": 7}
    assert (first.checkpoint("before"), first.checkpoint(state)) == (1, 2)
    owner.made.begin()
    second = owner.rank()
    restored = second.restored()
    np.testing.assert_array_equal(restored["x"], state["x"])
    assert restored["step"] == 7
    assert second.checkpoint("after") == 3
    assert owner.made.step == 3


def heard(said: _RankSaid) -> tuple[Gang, list[tuple[tuple[int, ...], int]], Any]:
    """A gang in its second epoch that hears this; what it answers, and what that means to it."""
    told: list[tuple[tuple[int, ...], int]] = []
    gang = Gang.__new__(Gang)
    gang._machine = SimpleNamespace(epoch=2)  # type: ignore[assignment]
    gang._checkpoints = Checkpoints(1)
    gang._job = None  # type: ignore[assignment]
    tell = SimpleNamespace(tell_ranks=lambda job, ranks, serial, answer: told.append((ranks, serial)))
    gang._mesh = tell  # type: ignore[assignment]
    return gang, told, gang._answer(said)


def test_what_a_rank_of_a_former_epoch_hands_in_is_refused() -> None:
    piece = MARK + msgspec.msgpack.encode(Piece(1, 0, 1, b"x"))
    former, told, event = heard(_RankSaid(1, 0, 4, piece))
    assert (former._checkpoints.step, told, event) == (0, [], None)
    current, told, event = heard(_RankSaid(2, 0, 4, piece))
    assert (current._checkpoints.step, told, event) == (1, [((0,), 4)], None)


def test_words_that_the_owner_does_not_know_end_the_gang() -> None:
    _, told, event = heard(_RankSaid(2, 0, 4, MARK + b"\xff"))
    assert isinstance(event, Cancelled) and isinstance(event.error, ProtocolError)
    assert told == []
