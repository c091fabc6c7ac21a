"""The checkpoints of one gang, at its owner: what all ranks have handed in together, and nothing less.

Theory of operation. Each rank hands in its state of a step in pieces, in order; when every rank's is whole, the step is
committed: it takes the place of the one before, in one assignment. Ranks meet before each step, so none hands in step
n + 1 before all have handed in step n: there are at most two sets, the committed one and the one that is being made. A
new epoch begins with the committed one, which each of its ranks fetches in pieces.

Rules. What was handed in by an epoch that ended before its step was whole is forgotten (`begin`). Messages may come
twice, and are answered twice; what fits nowhere is not answered, and its sender says it again. The sizes are bounded by
the ranks, which know them all before they begin (`tasks.comm.checkpoints`); here a piece that would exceed what its
rank has announced is refused.
"""

from __future__ import annotations

import msgspec

PIECE_LIMIT_BYTES = 960 << 10  # of a state in one message, whose payload is to be below `net.sizes.BULK_BYTES`


class Piece(msgspec.Struct, frozen=True, tag=True):
    """A rank hands in a part of its state of `size` bytes."""

    step: int
    offset: int
    size: int
    data: bytes


class PieceTaken(msgspec.Struct, frozen=True, tag=True):
    """The owner has it."""

    step: int
    offset: int


class PieceWanted(msgspec.Struct, frozen=True, tag=True):
    """A rank fetches a part of its committed state."""

    step: int
    offset: int


class PieceGiven(msgspec.Struct, frozen=True, tag=True):
    """That part, of a state of `size` bytes."""

    step: int
    offset: int
    size: int
    data: bytes


Ask = Piece | PieceWanted
Answer = PieceTaken | PieceGiven


class Checkpoints:
    """Of one gang, over all its epochs."""

    def __init__(self, ranks: int) -> None:
        self.step = 0  # the last that was committed; 0: none
        self._ranks = ranks
        self._states: tuple[bytes, ...] = ()  # of that step, by rank
        self._parts: dict[int, bytearray] = {}  # of the next step, by rank
        self._whole: set[int] = set()

    def begin(self) -> None:
        """A new epoch: what the last one has not made whole is gone."""
        self._parts, self._whole = {}, set()

    def handle(self, rank: int, ask: Ask) -> Answer | None:
        """What a rank of the current epoch says."""
        return self._take(rank, ask) if isinstance(ask, Piece) else self._give(rank, ask)

    def _take(self, rank: int, piece: Piece) -> PieceTaken | None:
        if piece.step == self.step + 1:
            part = self._parts.setdefault(rank, bytearray())
            end = piece.offset + len(piece.data)
            if piece.offset > len(part) or end > piece.size:
                return None
            if end > len(part):
                part += piece.data[len(part) - piece.offset :]
            if len(part) == piece.size:
                self._whole.add(rank)
                self._commit_if_whole(piece.step)
        elif piece.step > self.step:
            return None
        return PieceTaken(piece.step, piece.offset)

    def _commit_if_whole(self, step: int) -> None:
        if len(self._whole) == self._ranks:
            states = tuple(bytes(self._parts[rank]) for rank in range(self._ranks))
            self.step, self._states, self._parts, self._whole = step, states, {}, set()

    def _give(self, rank: int, wanted: PieceWanted) -> PieceGiven | None:
        if wanted.step != self.step or not self._states:
            return None
        state = self._states[rank]
        data = state[wanted.offset : wanted.offset + PIECE_LIMIT_BYTES]
        return PieceGiven(wanted.step, wanted.offset, len(state), data)
