"""Segments: really allocated, sealed by the kernel, closed only when nobody looks."""

from __future__ import annotations

import mmap
import os

import pytest

from kos_cluster.dmem.segments import Segment, write_all
from kos_cluster.errors import ArenaFullError


def test_its_pages_are_there_before_anybody_touches_them() -> None:
    segment = Segment.allocate(3 << 20)
    assert os.fstat(segment.fd).st_blocks * 512 == 3 << 20
    segment.close()


def test_a_machine_without_that_memory_raises_instead_of_killing() -> None:
    with pytest.raises(ArenaFullError, match="bytes of memory left"):
        Segment.allocate(1 << 50)


def test_a_system_that_gives_no_more_raises_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("kos_cluster.dmem.segments.os.posix_fallocate", refuse)
    with pytest.raises(ArenaFullError, match="No space left on device"):
        Segment.allocate(1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_sealed_cannot_change_whoever_has_a_descriptor() -> None:
    segment = Segment.allocate(100)
    write_all(segment.fd, [b"some", memoryview(b" bytes")])
    segment.seal()
    other = os.dup(segment.fd)
    for change in (
        lambda: os.write(other, b"x"),
        lambda: os.ftruncate(other, 10),
        lambda: os.ftruncate(other, 1000),
        lambda: mmap.mmap(other, 0, access=mmap.ACCESS_WRITE),
    ):
        with pytest.raises(OSError, match=r"not permitted|denied"):
            change()
    with segment.map() as mapping:
        assert mapping[:10] == b"some bytes"
    os.close(other)
    segment.close()


def test_a_writer_that_still_has_it_mapped_cannot_seal_it() -> None:
    segment = Segment.allocate(100)
    mapping = segment.map(access=mmap.ACCESS_WRITE)
    with pytest.raises(BlockingIOError, match="still mapped"):
        segment.seal()
    mapping.close()
    segment.seal()
    segment.close()


def test_closing_under_a_live_view_raises_and_the_view_goes_on() -> None:
    segment = Segment.allocate(100)
    write_all(segment.fd, [b"content"])
    mapping = segment.map()
    view = memoryview(mapping)
    segment.close()
    with pytest.raises(BufferError):
        mapping.close()
    assert view[:7] == b"content"
