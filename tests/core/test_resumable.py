"""A stream over links that break anywhere: what is read at one end is what was written at the other."""

from __future__ import annotations

import random
import struct

import pytest

from kos_cluster.core.resumable import ACKNOWLEDGED_EVERY_BYTES, WINDOW_BYTES, Resumable
from kos_cluster.errors import ProtocolError


class Side:
    """One end, with what it wants to say, what it has read, and what is on its way to the other."""

    def __init__(self, says: bytes) -> None:
        self.stream = Resumable()
        self.says = says
        self.said = 0
        self.reads = bytearray()
        self.untaken = 0
        self.way = bytearray()

    def write(self, size: int) -> None:
        chunk = self.says[self.said : self.said + min(size, self.stream.room)]
        if chunk:
            self.said += len(chunk)
            self.way += self.stream.send(chunk)

    def read(self, data: bytes) -> None:
        got = self.stream.receive(data)
        self.reads += got
        self.untaken += len(got)

    def take(self, size: int) -> None:
        size = min(size, self.untaken)
        self.untaken -= size
        self.stream.taken(size)
        if self.stream.acknowledgement_due:
            self.way += self.stream.acknowledge()


def relink(a: Side, b: Side) -> None:
    """What was on its way is lost; each end tells how much it has."""
    a.way.clear()
    b.way.clear()
    to_b, to_a = a.stream.resume(b.stream.received), b.stream.resume(a.stream.received)
    a.way += to_b
    b.way += to_a


@pytest.mark.parametrize("seed", range(10))
def test_no_byte_is_lost_or_doubled_when_links_break(seed: int) -> None:
    rng = random.Random(seed)
    a, b = Side(rng.randbytes(3 * WINDOW_BYTES // 2)), Side(rng.randbytes(5000))
    for _ in range(1000):
        for one, other in ((a, b), (b, a)):
            one.write(rng.choice((1, 700, 90_000, WINDOW_BYTES)))
            arrived = bytes(one.way[: rng.randrange(200_000)])
            del one.way[: len(arrived)]
            other.read(arrived)
            other.take(rng.randrange(150_000))
        if rng.random() < 0.1:
            relink(a, b)
    for _ in range(20):  # and at last a link that holds
        relink(a, b)
        for one, other in ((a, b), (b, a)):
            one.write(WINDOW_BYTES)
            other.read(bytes(one.way))
            one.way.clear()
            other.take(WINDOW_BYTES)
    assert bytes(b.reads) == a.says and bytes(a.reads) == b.says


def test_a_sender_waits_for_a_reader_that_does_not_take() -> None:
    a, b = Side(bytes(2 * WINDOW_BYTES)), Side(b"")
    a.write(2 * WINDOW_BYTES)
    b.read(bytes(a.way))
    assert a.stream.room == 0 and len(b.reads) == WINDOW_BYTES
    b.take(ACKNOWLEDGED_EVERY_BYTES)
    a.read(bytes(b.way))
    assert a.stream.room == ACKNOWLEDGED_EVERY_BYTES
    with pytest.raises(ValueError, match="can take"):
        a.stream.send(bytes(ACKNOWLEDGED_EVERY_BYTES + 1))


def test_the_end_comes_after_all_bytes() -> None:
    a, b = Resumable(), Resumable()
    data = a.send(b"last words") + a.end()
    assert b.receive(data[:15]) == b"" and not b.ended
    assert b.receive(data[15:]) == b"last words" and b.ended


@pytest.mark.parametrize(
    "frame", [struct.pack("!QI", 1, 0), struct.pack("!QI", 0, WINDOW_BYTES + 1)], ids=["too much taken", "too large"]
)
def test_impossible_frames_are_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        Resumable().receive(frame)


def test_an_end_that_has_more_than_was_sent_is_refused() -> None:
    with pytest.raises(ProtocolError, match="0 to 0 are kept"):
        Resumable().resume(1)
