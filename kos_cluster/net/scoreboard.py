"""What a worker notes in memory that it shares with its daemon: the task it is at, and results not sent yet.

Theory of operation. A message for each tiny task would cost more than the task, so a worker sends outcomes together.
But it cannot know how long the next task lasts, nor do anything while that runs: its one thread may be in C code that
holds the interpreter's lock. So it lays each outcome that it keeps for later into this memory too (a scoreboard, as
that of Apache's httpd). When a worker stays at one task, or has ended, the daemon takes the outcomes from here.

    bytes
    0     word: the batches that this worker was given (48 bits), position of the task that was begun last (16 bits)
    8     word: how often outcomes were sent (48 bits), bytes of those that are kept since (16 bits)
    16    each outcome: u32 position, u32 length, f64 seconds that all until this one took, data

Rules. Only results are kept here that their bytes tell whole; failures and all else are sent at once. Only the worker
writes. A batch goes by its place among those of its worker: its owner's number for it may be another owner's as well.

Why a reader never takes one task's result for another's, and a crash leaves no half of anything. A word is aligned and
stored at once, through a memoryview (struct clears its target before it writes). An outcome is complete before the
second word counts it, and that word alone tells what is kept. Outcomes that were sent are overwritten only after that
word has changed, and it never takes an earlier value again, for it counts (a seqlock). So a reader that saw one
`Glance` before it read, and the same after, has read what was there at the first: nothing was overwritten between. What
is read of a worker that has gone on is thrown away; it sends all that itself. The stores are plain, and keep their
order on x86-64. Where a processor may swap them, a look that lies a tick back, and the system call by which a worker
claims a task before it lays down the next outcome, stand between them.

Nobody can change the size of this memory (a seal): who touches a page that is cut off dies of SIGBUS.

Limits: `SIZE_BYTES` in all; what finds no room is sent at once. 2^16 tasks in a batch, 2^48 batches.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

import msgspec

SIZE_BYTES = 64 << 10  # pages that are never written take no memory
_AT, _KEPT = 0, 1  # the words
_FIRST = 16
_LOW_BITS = 16  # of a word; the high ones count
_LOW = (1 << _LOW_BITS) - 1
_ONE = 1 << _LOW_BITS
_OUTCOME = struct.Struct("<IId")
_OUTCOME_BYTES = _OUTCOME.size
_pack_outcome = _OUTCOME.pack


class Glance(msgspec.Struct, frozen=True):
    """What is cheap to see: the task that was begun last, and what is kept."""

    batch: int  # 1 is the first one that this worker was given
    position: int
    sendings: int
    kept_bytes: int


class Outcome(msgspec.Struct, frozen=True):
    """The result of one task, as a pickle that nobody opens here."""

    position: int
    data: bytes


class Scoreboard:
    """The worker's end."""

    __slots__ = ("_batch", "_end", "_memory", "_sendings", "_words")

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")
        self._batch = self._sendings = 0  # as the high bits of their words
        self._end = _FIRST

    def take(self) -> None:
        """Another batch has come: its first task is about to begin."""
        self._batch += _ONE
        self._words[_AT] = self._batch

    def begin(self, position: int) -> None:
        """This task of the batch is about to begin."""
        self._words[_AT] = self._batch | position

    def keep(self, position: int, data: bytes, elapsed_s: float) -> bool:
        """Lay a result down; False when there is no room. `elapsed_s`: of all that are kept."""
        start = self._end
        end = start + _OUTCOME_BYTES + len(data)
        if end > SIZE_BYTES:
            return False
        self._memory[start:end] = _pack_outcome(position, len(data), elapsed_s) + data
        self._words[_KEPT] = self._sendings | end - _FIRST
        self._end = end
        return True

    def sent(self) -> None:
        """What was kept has been sent."""
        if self._end != _FIRST:
            self._sendings += _ONE
            self._words[_KEPT] = self._sendings
            self._end = _FIRST


def create() -> int:
    """The memory of a new one, empty, as a descriptor."""
    fd = os.memfd_create("kos-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def glance(memory: mmap.mmap) -> Glance:
    """What a worker is at."""
    words = memoryview(memory).cast("Q")
    at, kept = words[_AT], words[_KEPT]
    return Glance(at >> _LOW_BITS, at & _LOW, kept >> _LOW_BITS, kept & _LOW)


def outcomes(memory: mmap.mmap, seen: Glance) -> tuple[list[Outcome], float]:
    """The outcomes that a worker kept when this was seen, and the seconds that they took; none when it has gone on.

    What is damaged ends the list.
    """
    found: list[Outcome] = []
    elapsed_s = 0.0
    at, end = _FIRST, min(_FIRST + seen.kept_bytes, SIZE_BYTES)
    while at + _OUTCOME_BYTES <= end:
        position, length, until_s = _OUTCOME.unpack_from(memory, at)
        at += _OUTCOME_BYTES + length
        if at > end:
            break
        found.append(Outcome(position, memory[at - length : at]))
        elapsed_s = until_s
    if glance(memory) != seen:
        return [], 0.0
    return found, elapsed_s
