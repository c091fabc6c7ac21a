"""The parts that a node keeps for detached jobs: across restarts, whole or not at all, and within bounds."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from kos_cluster.errors import LimitError, StateError
from kos_cluster.node import keeping
from kos_cluster.node.keeping import UNNAMED_S, Kept

DATA = b"the work of a job"
HASH = hashlib.sha256(DATA).hexdigest()


def put(kept: Kept, data: bytes = DATA) -> str:
    path = kept.incoming(len(data))
    path.write_bytes(data)
    hash_ = hashlib.sha256(data).hexdigest()
    kept.add(hash_, path)
    return hash_


def test_a_kept_part_outlives_the_daemon(tmp_path: Path):
    put(Kept(tmp_path / "kept"))
    again = Kept(tmp_path / "kept")
    assert HASH in again
    assert again.intact(HASH)
    assert again.path(HASH).read_bytes() == DATA
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700


def test_what_was_being_written_when_the_daemon_died_is_gone(tmp_path: Path):
    Kept(tmp_path / "kept").incoming(10).write_bytes(b"half")
    Kept(tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_damaged_part_is_found_and_dropped(tmp_path: Path):
    kept = Kept(tmp_path / "kept")
    put(kept)
    kept.path(HASH).write_bytes(DATA[:-1])
    assert not kept.intact(HASH)
    assert HASH not in kept


def test_too_much_is_refused_and_nothing_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keeping, "KEPT_LIMIT_BYTES", 20)
    kept = Kept(tmp_path / "kept")
    put(kept)
    with pytest.raises(LimitError, match="17 in use"):
        kept.incoming(4)
    assert HASH in kept


def test_a_part_that_cannot_be_written_is_refused_with_the_reason(tmp_path: Path):
    kept = Kept(tmp_path / "kept")
    with pytest.raises(StateError, match="could not be kept"):
        kept.add(HASH, tmp_path / "kept" / "in-nothing")


def test_only_what_no_job_names_for_long_is_dropped(tmp_path: Path):
    kept = Kept(tmp_path / "kept")
    put(kept)
    other = put(kept, b"of no job")
    kept.tidy({HASH}, 1000.0)
    kept.tidy({HASH}, 1000.0 + UNNAMED_S - 1)
    assert other in kept
    kept.tidy({HASH}, 1000.0 + UNNAMED_S)
    assert other not in kept
    assert HASH in kept


def test_a_part_that_is_named_again_is_kept_anew(tmp_path: Path):
    kept = Kept(tmp_path / "kept")
    put(kept)
    for named, now in ((set(), 0.0), ({HASH}, UNNAMED_S - 1), (set(), UNNAMED_S), (set(), 2 * UNNAMED_S - 1)):
        kept.tidy(named, now)
    assert HASH in kept
