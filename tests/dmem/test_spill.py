"""Spilled blocks: what was written comes back; nobody else can read it; nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kos_cluster.dmem.segments import Segment, write_all
from kos_cluster.dmem.spill import CHUNK_BYTES, Spill
from kos_cluster.errors import StateError

CONTENT = os.urandom(2 * CHUNK_BYTES + 77)


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Spill]:
    spill = Spill(tmp_path / "spill")
    segment = Segment.allocate(len(CONTENT))
    write_all(segment.fd, [CONTENT])
    with segment.map() as mapping:
        spill.write("a", mapping)
    segment.close()
    yield spill
    spill.close()


def raw(spill: Spill) -> int:
    return spill._files["a"][0]


def test_it_comes_back_as_often_as_it_is_wanted(spill: Spill) -> None:
    for _ in range(2):
        back = bytearray(len(CONTENT))
        spill.read("a", memoryview(back))
        assert back == CONTENT


def test_it_has_no_name_and_no_byte_of_it_is_on_the_disk(spill: Spill, tmp_path: Path) -> None:
    assert list((tmp_path / "spill").iterdir()) == []
    written = os.pread(raw(spill), 10 * CHUNK_BYTES, 0)
    assert len(written) > len(CONTENT)
    assert not any(CONTENT[start : start + 16] in written for start in range(0, len(CONTENT), 4096))


@pytest.mark.parametrize("change", [b"x", b""])
def test_a_byte_that_changed_or_is_missing_is_an_error(spill: Spill, change: bytes) -> None:
    if change:
        before = os.pread(raw(spill), 1, CHUNK_BYTES)
        os.pwrite(raw(spill), bytes([before[0] ^ 1]), CHUNK_BYTES)
    else:
        os.ftruncate(raw(spill), CHUNK_BYTES)
    with pytest.raises(StateError, match="cannot be read back"):
        spill.read("a", memoryview(bytearray(len(CONTENT))))


def test_a_disk_that_takes_nothing_leaves_nothing(
    spill: Spill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kos_cluster.dmem.spill.os.write", full)
    segment = Segment.allocate(10)
    before = len(os.listdir("/proc/self/fd"))
    with segment.map() as mapping, pytest.raises(OSError, match="No space"):
        spill.write("b", mapping)
    assert len(os.listdir("/proc/self/fd")) == before
    segment.close()
