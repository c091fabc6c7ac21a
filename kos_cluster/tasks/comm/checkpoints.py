"""`kos.checkpoint(state)` and `kos.restored()`: a rank's side of its gang's checkpoints (see `core.gang.checkpoints`).

Theory of operation. The owner keeps them: it is there as long as the gang is, and no node's death takes it away. A rank
speaks with it by the way on which it has told where it listens (`Here.meet`): one message and its answer at a time,
through its node, which repeats the message until the answer comes (`core.gang.stopandwait`). An owner of an older
version does not number its answers, so one to an earlier message may come; then the message is said again.

Rules. All ranks call `checkpoint` equally often: they meet in it, and tell each other their sizes, so all of them
refuse a checkpoint that is too large. When it returns, this rank's state is with the owner; it counts once all ranks'
are, which is so before any rank is through its next one. `restored` comes before an epoch's first checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from kos_cluster.core.gang.checkpoints import (
    PIECE_LIMIT_BYTES,
    Answer,
    Ask,
    Piece,
    PieceGiven,
    PieceTaken,
    PieceWanted,
)
from kos_cluster.errors import LimitError, UsageError
from kos_cluster.tasks import serialise

if TYPE_CHECKING:
    from kos_cluster.tasks.comm.communicator import Communicator

CHECKPOINT_LIMIT_BYTES = 512 << 20  # of all ranks' states of one step, pickled; the owner holds two steps at most
MARK = b"\xc1"  # before what a rank says of checkpoints; MessagePack never begins with it

Meet = Callable[[bytes], bytes]  # what this rank says -> what its owner answers


class Checkpointer:
    """Of one rank in one epoch. `step`: the one that its gang has made before."""

    def __init__(self, comm: Communicator, step: int, meet: Meet) -> None:
        self._comm = comm
        self._began = self._step = step
        self._meet = meet

    def checkpoint(self, state: Any) -> int:
        """Hand in this rank's state. Returns the number of the checkpoint, from 1."""
        pickled = serialise.dumps_result(state)
        data = memoryview(pickled if isinstance(pickled, bytes) else b"".join(pickled))
        sizes = self._comm.allgather(len(data))
        if sum(sizes) > CHECKPOINT_LIMIT_BYTES:
            largest = max(range(len(sizes)), key=sizes.__getitem__)
            raise LimitError(
                f"A checkpoint of {sum(sizes) >> 20:,} MiB is over the limit of {CHECKPOINT_LIMIT_BYTES >> 20}; rank "
                f"{largest} has the most of it, {sizes[largest] >> 20:,} MiB.",
                "Write large states to files that all nodes reach, and hand in their names.",
            )
        self._step += 1
        for offset in range(0, len(data), PIECE_LIMIT_BYTES):
            piece = bytes(data[offset : offset + PIECE_LIMIT_BYTES])
            self._exchange(Piece(self._step, offset, len(data), piece), PieceTaken(self._step, offset))
        return self._step

    def restored(self) -> Any:
        """What this rank handed in for the last checkpoint of the epochs before; None where there was none."""
        if self._step != self._began:
            raise UsageError(
                "kos.restored() was called after kos.checkpoint().", "Call it first, where the work begins."
            )
        if not self._began:
            return None
        data = bytearray()
        while True:
            wanted = PieceWanted(self._began, len(data))
            given = self._exchange(wanted, None)
            assert isinstance(given, PieceGiven)
            data += given.data
            if len(data) == given.size:
                return serialise.loads(data)

    def _exchange(self, ask: Ask, expected: PieceTaken | None) -> Answer:
        """Say it until this is answered, and not what was said before."""
        said = MARK + msgspec.msgpack.encode(ask)
        while True:
            answer = _understood(self._meet(said))
            if answer is not None and (answer == expected or (expected is None and _fits(answer, ask))):
                return answer


def _fits(answer: Answer, ask: Ask) -> bool:
    return isinstance(answer, PieceGiven) and (answer.step, answer.offset) == (ask.step, ask.offset)


def _understood(answer: bytes) -> Answer | None:
    """None for an answer to another question, such as a second table."""
    try:
        return msgspec.msgpack.decode(answer, type=Answer)  # type: ignore[no-any-return]  # a union
    except msgspec.DecodeError:
        return None
