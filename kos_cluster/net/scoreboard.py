"""What a worker notes in memory that it shares with its daemon: the task it is at, and results not sent yet.

Theory of operation. A message for each tiny task would cost more than the task, so a worker sends outcomes together.
But it cannot know how long the next task lasts, nor do anything while that runs: its one thread may be in C code that
holds the interpreter's lock. So it lays each outcome that it keeps for later into this memory too (a scoreboard, as
that of Apache's httpd). When a worker stays at one task, or has ended, the daemon takes the outcomes from here.

    bytes (little-endian)
    0     u64 batch, u64 position of the task that was begun last
    16    u32 outcomes kept, u32 bytes of them, f64 seconds that they took
    32    each outcome: u32 position, u32 length, data

Rules. Only results are kept here that their bytes tell whole; failures and all else are sent at once. Only the worker
writes. An outcome is complete before it is counted, and stays until all of them are sent. So a reader may take them of
a worker that has ended, or that was at the same task the last time it looked.

Limits: `SIZE_BYTES` in all; what finds no room is sent at once.
"""

from __future__ import annotations

import mmap
import struct

import msgspec

SIZE_BYTES = 64 << 10  # pages that are never written take no memory
_PROGRESS = struct.Struct("<QQ")
_KEPT = struct.Struct("<IId")
_OUTCOME = struct.Struct("<II")
_KEPT_AT = _PROGRESS.size
_FIRST = _KEPT_AT + _KEPT.size
_OUTCOME_BYTES = _OUTCOME.size
_pack_progress, _pack_kept, _pack_outcome = _PROGRESS.pack_into, _KEPT.pack_into, _OUTCOME.pack


class Glance(msgspec.Struct, frozen=True):
    """What is cheap to see: the task that was begun last, and how many outcomes are kept."""

    batch: int
    position: int
    kept: int


class Outcome(msgspec.Struct, frozen=True):
    """The result of one task, as a pickle that nobody opens here."""

    position: int
    data: bytes


class Scoreboard:
    """The worker's end."""

    __slots__ = ("_count", "_end", "_memory")

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._count, self._end = 0, _FIRST

    def begin(self, batch: int, position: int) -> None:
        """This task is about to begin."""
        _pack_progress(self._memory, 0, batch, position)

    def keep(self, position: int, data: bytes, elapsed_s: float) -> bool:
        """Lay a result down; False when there is no room. `elapsed_s`: of all that are kept."""
        start = self._end
        self._end = end = start + _OUTCOME_BYTES + len(data)
        if end > SIZE_BYTES:
            self._end = start
            return False
        self._memory[start:end] = _pack_outcome(position, len(data)) + data
        self._count = count = self._count + 1
        _pack_kept(self._memory, _KEPT_AT, count, end - _FIRST, elapsed_s)
        return True

    def sent(self) -> None:
        """What was kept has been sent."""
        if self._count:
            self._count, self._end = 0, _FIRST
            _pack_kept(self._memory, _KEPT_AT, 0, 0, 0.0)


def glance(memory: mmap.mmap) -> Glance:
    """What a worker is at."""
    batch, position = _PROGRESS.unpack_from(memory)
    return Glance(batch, position, _KEPT.unpack_from(memory, _KEPT_AT)[0])


def outcomes(memory: mmap.mmap) -> tuple[list[Outcome], float]:
    """The outcomes that a worker keeps, and the seconds that they took. What is damaged ends the list."""
    count, size_bytes, elapsed_s = _KEPT.unpack_from(memory, _KEPT_AT)
    found: list[Outcome] = []
    at, end = _FIRST, min(_FIRST + size_bytes, SIZE_BYTES)
    while len(found) < count and at + _OUTCOME_BYTES <= end:
        position, length = _OUTCOME.unpack_from(memory, at)
        at += _OUTCOME_BYTES + length
        if at > end:
            break
        found.append(Outcome(position, memory[at - length : at]))
    return found, elapsed_s
