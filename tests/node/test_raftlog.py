"""Raft's log on the disk: what was written is there after a restart, and nothing damaged is believed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core.ordering import Action, Ordering, Write
from kos_cluster.core.raft import (
    Apply,
    Entry,
    HardState,
    Kind,
    Membership,
    Persist,
    Persisted,
    Propose,
    Raft,
    Restored,
    Role,
    Snapshot,
    WriteFailed,
    founding,
)
from kos_cluster.errors import StateError
from kos_cluster.node.raftlog import RaftLog
from tests.core.raft.network import Disk
from tests.core.test_ordering import some_writes

GROUP = "cluster-a"


def entry(index: int, term: int = 1) -> Entry:
    return Entry(index, term, Kind.COMMAND, b"command %d of term %d" % (index, term))


def append(number: int, *entries: Entry, term: int = 1) -> Persist:
    return Persist(number, HardState(term, "a", entries[0].index - 1), 1, entries)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raft.sqlite"


@pytest.fixture
def filled(path: Path) -> Path:
    """A log of entries 1 to 40, left as by kill -9: nothing closed, the WAL still there."""
    log = RaftLog.create(path, GROUP, founding(("a",)))
    for index in range(2, 41):
        log.write(append(index, entry(index)))
    killed = path.with_name("killed")
    killed.mkdir()
    for file in path.parent.glob("raft.sqlite*"):
        shutil.copy(file, killed / file.name)
    log.close()
    return killed / path.name


def test_every_commit_is_synced_to_the_disk(path: Path) -> None:
    log = RaftLog.create(path, GROUP, founding(("a",)))
    try:
        assert log._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert log._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: SQLite's own number for it
    finally:
        log.close()


def reopened(path: Path) -> Restored:
    log = RaftLog(path, GROUP)
    try:
        return log.load()
    finally:
        log.close()


def refusal(path: Path) -> StateError:
    with pytest.raises(StateError) as caught:
        reopened(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_what_was_written_is_there_after_a_restart(path: Path) -> None:
    RaftLog.create(path, GROUP, Restored()).close()
    assert reopened(path) == Restored()
    log = RaftLog(path, GROUP)
    log.write(append(1, entry(1), entry(2), entry(3)))
    log.write(append(2, entry(3, 2), entry(4, 2), term=2))
    log.close()
    assert reopened(path) == Restored(HardState(2, "a", 2), None, (entry(1), entry(2), entry(3, 2), entry(4, 2)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_killed_daemon_lost_nothing(filled: Path) -> None:
    assert (filled.parent / "raft.sqlite-wal").stat().st_size > 0
    assert [e.index for e in reopened(filled).entries] == list(range(1, 41))


def test_a_snapshot_replaces_what_is_before_it(path: Path) -> None:
    log = RaftLog.create(path, GROUP, founding(("a",)))
    log.write(append(1, *(entry(index) for index in range(2, 11))))
    snapshot = Snapshot(8, 1, Membership(("a",), ("b",)), b"state")
    log.write(Persist(2, HardState(1, None, 10), 6, (), snapshot))
    log.write(Persist(3, HardState(2, None, 10), 6, (entry(10, 2),)))
    log.close()
    restored = reopened(path)
    assert restored.snapshot == snapshot
    assert [(e.index, e.term) for e in restored.entries] == [(6, 1), (7, 1), (8, 1), (9, 1), (10, 2)]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_disk_holds_what_the_writes_come_to(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path, disk = tmp_path_factory.mktemp("log") / "raft.sqlite", Disk.empty()
    log = RaftLog.create(path, GROUP, Restored())
    for number, batch in enumerate(some_writes(Random(seed))):
        log.write(batch)
        disk.write(batch)
        if number % 3 == 2:
            log.close()
            log = RaftLog(path, GROUP)
    assert log.load() == disk.restored()
    log.close()


# ---- refusals


def test_a_missing_file_is_refused_and_an_existing_one_not_replaced(path: Path) -> None:
    assert "is missing" in str(refusal(path))
    RaftLog.create(path, GROUP, Restored()).close()
    with pytest.raises(StateError, match="There is a log of the replicated state"):
        RaftLog.create(path, GROUP, Restored())


def test_a_creation_that_was_cut_short_is_begun_anew(path: Path) -> None:
    path.with_name("raft.sqlite.new").write_bytes(b"half")
    path.with_name("raft.sqlite.new-wal").write_bytes(b"half")
    RaftLog.create(path, GROUP, founding(("a",))).close()
    assert reopened(path) == founding(("a",))
    assert sorted(file.name for file in path.parent.iterdir()) == ["raft.sqlite", "raft.sqlite.writes"]


def test_the_log_of_another_group_is_refused(path: Path) -> None:
    RaftLog.create(path, "cluster-b", Restored()).close()
    assert "of the group 'cluster-b', not of 'cluster-a'" in str(refusal(path))


def test_a_second_process_is_refused(path: Path) -> None:
    log = RaftLog.create(path, GROUP, Restored())
    script = (
        f"from pathlib import Path; from kos_cluster.node.raftlog import RaftLog; RaftLog(Path({str(path)!r}), 'g')"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=os.getcwd())
    assert "is in use by another process" in run.stderr
    log.close()


def change(path: Path, sql: str, *arguments: object) -> None:
    db = sqlite3.connect(path)
    db.execute(sql, arguments)
    db.commit()
    db.close()


DAMAGE = {
    "a command is changed": ("UPDATE entries SET data = 'other' WHERE idx = 17", "entry 17 that is not the one"),
    "a term is changed": ("UPDATE entries SET term = 2 WHERE idx = 17", "entry 17 that is not the one"),
    "an entry is missing": ("DELETE FROM entries WHERE idx = 17", "has no entry 17"),
    "the end is missing": ("DELETE FROM entries WHERE idx > 30", "ends at entry 30, but was written up to entry 40"),
    "the beginning is missing": ("DELETE FROM entries WHERE idx < 5", "has no entry 1"),
    "all entries are missing": ("DELETE FROM entries", "ends at entry 0, but was written up to entry 40"),
    "a checksum is changed": ("UPDATE entries SET checksum = X'00' WHERE idx = 9", "entry 9 that is not the one"),
    "the hard state is missing": ("DELETE FROM mark", "has lost its hard state"),
    "the hard state is changed": ("UPDATE mark SET mark = X'90'", "has lost its hard state"),
    "a table is missing": ("DROP TABLE entries", "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_refused(filled: Path, damage: str) -> None:
    sql, expected = DAMAGE[damage]
    change(filled, sql.replace("'other'", "X'6f74686572'"))
    error = refusal(filled)
    assert expected in error.message
    assert "join again" in error.hint


def test_exchanged_entries_are_refused(filled: Path) -> None:
    change(filled, "UPDATE entries SET idx = -1 WHERE idx = 20")
    change(filled, "UPDATE entries SET idx = 20 WHERE idx = 21")
    change(filled, "UPDATE entries SET idx = 21 WHERE idx = -1")
    assert "entry 20 that is not the one" in str(refusal(filled))


def test_a_damaged_or_missing_snapshot_is_refused(path: Path) -> None:
    log = RaftLog.create(path, GROUP, founding(("a",)))
    log.write(append(1, *(entry(index) for index in range(2, 11))))
    log.write(Persist(2, HardState(1, None, 10), 8, (), Snapshot(8, 1, Membership(("a",)), b"state")))
    log.close()
    change(path, "UPDATE snapshot SET data = X'00'")
    assert "snapshot at entry 8 that is not the one" in str(refusal(path))
    change(path, "DELETE FROM snapshot")
    assert "begins at entry 8, but has no snapshot" in str(refusal(path))


def test_a_flipped_byte_anywhere_in_the_entries_is_refused(filled: Path) -> None:
    change(filled, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole = filled.read_bytes()
    for index in (2, 17, 40):
        place = whole.rindex(b"command %d of term 1" % index)
        damaged = bytearray(whole)
        damaged[place + 8] ^= 1
        filled.write_bytes(damaged)
        assert f"holds an entry {index} that is not the one" in str(refusal(filled))
    filled.write_bytes(whole)
    assert len(reopened(filled).entries) == 40


def test_any_flipped_byte_is_refused_or_without_effect(filled: Path) -> None:
    """Never is anything loaded that was not written."""
    change(filled, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole, good, refused = filled.read_bytes(), reopened(filled), 0
    seed = 7
    random = Random(seed)
    for _ in range(150):
        damaged = bytearray(whole)
        place = random.randrange(len(damaged))
        damaged[place] ^= 1 << random.randrange(8)
        filled.write_bytes(damaged)
        filled.with_name(filled.name + "-wal").unlink(missing_ok=True)
        try:
            assert reopened(filled) == good, f"seed {seed}, byte {place}"
        except StateError:
            refused += 1
    assert refused > 20


def test_a_cut_off_database_is_refused(filled: Path) -> None:
    change(filled, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = filled.stat().st_size
    for kept in (0, 100, size // 2, size - 4096):
        shutil.copy(filled, filled.with_name("cut"))
        shutil.copy(filled.with_name(filled.name + ".writes"), filled.with_name("cut.writes"))
        os.truncate(filled.with_name("cut"), kept)
        refusal(filled.with_name("cut"))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_a_torn_or_missing_wal_is_refused(filled: Path, kept: float) -> None:
    """SQLite itself would go on with the writes before the tear, as if the later ones had never been made."""
    wal = filled.with_name(filled.name + "-wal")
    os.truncate(wal, int(wal.stat().st_size * kept))
    assert "writes were made" in str(refusal(filled))


def test_an_older_copy_is_refused(filled: Path) -> None:
    log = RaftLog(filled, GROUP)
    log.close()
    older = filled.read_bytes()
    log = RaftLog(filled, GROUP)
    log.write(append(41, entry(41)))
    log.close()
    filled.write_bytes(older)
    assert "ends at write 40 (entry 40), but 41 writes were made" in str(refusal(filled))


def test_a_witness_that_is_behind_is_believed_and_a_missing_one_not(filled: Path) -> None:
    witness = filled.with_name(filled.name + ".writes")
    RaftLog(filled, GROUP).close()
    older = witness.read_bytes()
    log = RaftLog(filled, GROUP)
    log.write(append(41, entry(41)))
    log.close()
    witness.write_bytes(older)  # a power cut before it was written out
    assert len(reopened(filled).entries) == 41
    witness.unlink()
    assert "lacks the file raft.sqlite.writes" in str(refusal(filled))


# ---- disks that take no more


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(log: RaftLog, size_bytes: int) -> int:
    """Write until the disk is full; returns the last index that was written."""
    index, refused = 1, None
    while refused is None:
        try:
            log.write(append(index, Entry(index + 1, 1, Kind.COMMAND, bytes(size_bytes))))
            index += 1
        except StateError as error:
            refused = error
    assert "could not be written" in refused.message and "Make room" in refused.hint
    with pytest.raises(StateError, match="An earlier write"):
        log.write(append(index, entry(index + 1)))
    log.close()
    return index


def test_a_full_disk_loses_and_invents_nothing(small_disk: Path) -> None:
    path = small_disk / "raft.sqlite"
    last = fill(RaftLog.create(path, GROUP, founding(("a",))), 5000)
    assert last > 5
    assert [e.index for e in reopened(path).entries] == list(range(1, last + 1))


def test_a_database_at_its_limit_loses_and_invents_nothing(path: Path) -> None:
    log = RaftLog.create(path, GROUP, founding(("a",)))
    log._db.execute("PRAGMA max_page_count = 60")
    last = fill(log, 5000)
    assert last > 5
    assert [e.index for e in reopened(path).entries] == list(range(1, last + 1))
    log = RaftLog(path, GROUP)
    log.write(append(1, entry(last + 1)))
    log.close()
    assert reopened(path).entries[-1] == entry(last + 1)


def test_a_node_whose_disk_fills_up_halts_and_comes_back_with_all_it_has_applied(path: Path) -> None:
    """Machine, ordering and disk together, as in the daemon."""

    def carry_out(raft: Raft, ordering: Ordering, log: RaftLog, actions: list[Action], applied: list[Entry]) -> None:
        while actions:
            action = actions.pop(0)
            if isinstance(action, Apply):
                applied += action.entries
            elif isinstance(action, Write):
                try:
                    log.write(action.batch)
                except StateError as error:
                    actions += ordering.take(raft.handle(WriteFailed(str(error)), 0.0))
                    continue
                actions += ordering.written(action.batch.number)
                actions += ordering.take(raft.handle(Persisted(action.batch.number), 0.0))

    def started(log: RaftLog, applied: list[Entry]) -> tuple[Raft, Ordering]:
        raft, ordering = Raft("a", GROUP, log.load(), Random(1), 0.0), Ordering()
        carry_out(raft, ordering, log, ordering.take(raft.start()), applied)
        carry_out(raft, ordering, log, ordering.take(raft.tick(2.0)), applied)
        return raft, ordering

    log, before, after = RaftLog.create(path, GROUP, founding(("a",))), [], []  # type: RaftLog, list[Entry], list[Entry]
    log._db.execute("PRAGMA max_page_count = 60")
    raft, ordering = started(log, before)
    for number in range(100):
        carry_out(raft, ordering, log, ordering.take(raft.handle(Propose(number, bytes(5000)), 2.0)), before)
    assert "could not be written" in raft.halted
    assert 5 < len(before) < 100
    log.close()
    log = RaftLog(path, GROUP)
    raft, ordering = started(log, after)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1  # the empty entry of the new term
    assert raft.role is Role.LEADER
    log.close()


BAD_WRITES: dict[str, Callable[[], Persist]] = {
    "a gap": lambda: append(1, entry(12)),
    "before the beginning": lambda: append(1, entry(0)),
}


@pytest.mark.parametrize("bad", BAD_WRITES)
def test_a_write_that_does_not_fit_the_log_is_refused(path: Path, bad: str) -> None:
    log = RaftLog.create(path, GROUP, founding(("a",)))
    with pytest.raises(StateError, match="cannot be put there"):
        log.write(BAD_WRITES[bad]())
    log.close()
    assert reopened(path) == founding(("a",))
