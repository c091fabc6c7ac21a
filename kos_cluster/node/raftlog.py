"""Raft's log and hard state in SQLite: each write whole or not at all, and nothing damaged is believed.

Theory of operation. WAL with synchronous=FULL: when `write` returns, the batch is on the disk. Three things let
`load` tell a whole log from a damaged one:

- Each entry carries a SHA-256 over itself and the checksum before it, so none can be changed, exchanged or missing.
  It is SHA-256 because it is in the standard library and cannot collide by accident; beside the fsync it costs
  nothing.
- The one row of `mark` holds the hard state, the first and last index, the checksum of the last entry, and the number
  of the write, under a checksum of its own. So a missing end is seen.
- SQLite drops what is torn at the end of its WAL without a word, which would take back whole writes. So the number of
  the last write stands in a file beside it, too. That file is written after the commit and not synced: it may be
  behind after a power cut, but never ahead of an honest disk. A database that is behind it has lost writes and is
  refused.

Rules: what does not fit together is a StateError that names the file and the index; it is never repaired by guessing,
for a voter that forgets a vote or an entry can make two leaders, or lose what was committed. After a failed write the
object takes no more: what the disk holds is known only after it is opened again. One process at a time holds the file.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kos_cluster.core.raft import Entry, HardState, Membership, Persist, Restored, Snapshot
from kos_cluster.errors import StateError

_FORMAT = 1
_SCHEMA = """
CREATE TABLE entries (idx INTEGER PRIMARY KEY, term INTEGER NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL,
    data BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
CREATE TABLE snapshot (only INTEGER PRIMARY KEY CHECK (only = 1), idx INTEGER NOT NULL, term INTEGER NOT NULL,
    membership BLOB NOT NULL, data BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
CREATE TABLE mark (only INTEGER PRIMARY KEY CHECK (only = 1), mark BLOB NOT NULL, checksum BLOB NOT NULL) STRICT;
"""
_JOIN_AGAIN = "Remove this node from the cluster on another node, delete its state here, and let it join again."
_MAKE_ROOM = "Make room on that disk and start the node again."


class _Mark(msgspec.Struct, frozen=True):
    """What the database says of itself."""

    format: int
    group: str
    number: int  # of the writes since the file was made
    hard_state: HardState
    first: int
    last: int  # first - 1 when there are no entries
    before: bytes  # the checksum before the entry `first`
    end: bytes  # the checksum of the entry `last`


class RaftLog:
    """The durable side of one Raft machine. Used by one thread at a time."""

    def __init__(self, path: Path, group: str) -> None:
        """Open what `create` made. Raises StateError when it is missing, damaged, in use, or of another group."""
        if not path.exists():
            raise StateError(f"The log of the replicated state, {path}, is missing.", _JOIN_AGAIN)
        self._path, self._failed = path, False
        self._db = _connect(path)
        try:
            self._mark = self._read_mark()
            self._check_mark(group)
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def create(cls, path: Path, group: str, restored: Restored) -> RaftLog:
        """Make the files for a node that begins with `restored`, and open them. Refuses to replace any; a crash in
        between leaves none."""
        if path.exists():
            raise StateError(f"There is a log of the replicated state in {path} already.", "Start the node with it.")
        new = path.with_name(path.name + ".new")
        try:
            for leftover in (new, new.with_name(new.name + "-wal"), _witness_path(new)):
                leftover.unlink(missing_ok=True)
            _make(new, group, restored.hard_state, restored.entries[0].index if restored.entries else 1)
            log = cls(new, group)
            try:
                log.write(Persist(0, restored.hard_state, log._mark.first, restored.entries, restored.snapshot))
            finally:
                log.close()
            _witness_path(new).replace(_witness_path(path))
            new.replace(path)
            _sync_folder(path.parent)
        except (sqlite3.Error, OSError) as error:
            raise StateError(
                f"The log of the replicated state could not be made in {path} ({error}).", _MAKE_ROOM
            ) from None
        return cls(path, group)

    def close(self) -> None:
        self._db.close()

    # ---- reading

    def load(self) -> Restored:
        """Everything that is durable. Raises StateError when any of it is damaged."""
        try:
            return Restored(self._mark.hard_state, self._load_snapshot(), self._load_entries())
        except (sqlite3.Error, ValueError, msgspec.DecodeError) as error:
            raise self._damaged(f"cannot be read ({error})") from None

    def _load_entries(self) -> tuple[Entry, ...]:
        mark, checksum, entries = self._mark, self._mark.before, []
        rows = self._db.execute("SELECT idx, term, version, kind, data, checksum FROM entries ORDER BY idx").fetchall()
        for expected, (index, term, version, kind, data, stored) in enumerate(rows, mark.first):
            if index != expected:
                raise self._damaged(f"has no entry {expected}")
            entry = Entry(index, term, kind, data, version)
            checksum = _chained(checksum, entry)
            if checksum != stored:
                raise self._damaged(f"holds an entry {index} that is not the one that was written")
            entries.append(entry)
        last = mark.first + len(entries) - 1
        if last != mark.last or checksum != mark.end:
            raise self._damaged(f"ends at entry {last}, but was written up to entry {mark.last}")
        return tuple(entries)

    def _load_snapshot(self) -> Snapshot | None:
        row = self._db.execute("SELECT idx, term, membership, data, checksum FROM snapshot").fetchone()
        if row is None:
            if self._mark.first > 1:
                raise self._damaged(f"begins at entry {self._mark.first}, but has no snapshot of what was before")
            return None
        index, term, membership, data, stored = row
        if _digest(index, term, membership, data) != stored:
            raise self._damaged(f"holds a snapshot at entry {index} that is not the one that was written")
        return Snapshot(index, term, msgspec.msgpack.decode(membership, type=Membership), data)

    def _read_mark(self) -> _Mark:
        try:
            row = self._db.execute("SELECT mark, checksum FROM mark").fetchone()
            if row is None or _sealed(row[0])[1] != row[1]:
                raise self._damaged("has lost its hard state")
            return msgspec.msgpack.decode(row[0], type=_Mark)
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise self._damaged(f"cannot be read ({error})") from None

    def _check_mark(self, group: str) -> None:
        mark = self._mark
        if mark.format != _FORMAT:
            raise StateError(
                f"{self._path} is of format {mark.format}; this version of KOS reads {_FORMAT}.", "Upgrade KOS here."
            )
        if mark.group != group:
            raise StateError(
                f"{self._path} is of the group {mark.group!r}, not of {group!r}.", "Start the node with its own state."
            )
        witnessed = _witnessed(self._path)
        if witnessed is None:
            raise self._damaged(f"lacks the file {_witness_path(self._path).name} beside it")
        if witnessed > mark.number:
            raise self._damaged(f"ends at write {mark.number} (entry {mark.last}), but {witnessed} writes were made")

    def _damaged(self, what: str) -> StateError:
        return StateError(f"The log of the replicated state, {self._path}, {what}.", _JOIN_AGAIN)

    # ---- writing

    def probe(self) -> None:
        """See whether the disk takes writes, by one that changes nothing. Raises StateError."""
        self.write(Persist(0, self._mark.hard_state, self._mark.first))

    def write(self, batch: Persist) -> None:
        """Carry out a write of the machine durably. Raises StateError when the disk does not take it."""
        if self._failed:
            raise StateError(f"An earlier write to {self._path} failed.", _MAKE_ROOM)
        self._failed = True  # until the end
        try:
            self._db.execute("BEGIN IMMEDIATE")
            mark = self._carry_out(batch)
            self._db.execute("REPLACE INTO mark VALUES (1, ?, ?)", _sealed(msgspec.msgpack.encode(mark)))
            self._db.execute("COMMIT")
            _witness(self._path, mark.number)
        except (sqlite3.Error, OSError) as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StateError(
                f"The log of the replicated state could not be written to {self._path} ({error}).", _MAKE_ROOM
            ) from None
        self._mark, self._failed = mark, False

    def _carry_out(self, batch: Persist) -> _Mark:
        mark = self._mark
        first, last, before, end = mark.first, mark.last, mark.before, mark.end
        if batch.reset:
            self._db.execute("DELETE FROM entries")
            first = batch.entries[0].index if batch.entries else batch.first
            last, before = first - 1, _seed(mark.group, first)
            end = before
        if batch.entries:
            cut = batch.entries[0].index
            if not first <= cut <= last + 1:
                raise self._damaged(f"holds the entries {first} to {last}; one at {cut} cannot be put there")
            if cut <= last:
                end = before if cut == first else self._checksum_at(cut - 1)
                self._db.execute("DELETE FROM entries WHERE idx >= ?", (cut,))
            end = self._insert(batch.entries, end)
            last = batch.entries[-1].index
        if batch.first > first:
            before = end if batch.first > last else self._checksum_at(batch.first - 1)
            self._db.execute("DELETE FROM entries WHERE idx < ?", (batch.first,))
            first = batch.first
        if batch.snapshot is not None:
            self._replace_snapshot(batch.snapshot)
        return _Mark(mark.format, mark.group, mark.number + 1, batch.hard_state, first, last, before, end)

    def _insert(self, entries: Iterable[Entry], checksum: bytes) -> bytes:
        rows = []
        for entry in entries:
            checksum = _chained(checksum, entry)
            rows.append((entry.index, entry.term, entry.version, str(entry.kind), entry.data, checksum))
        self._db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", rows)
        return checksum

    def _checksum_at(self, index: int) -> bytes:
        row = self._db.execute("SELECT checksum FROM entries WHERE idx = ?", (index,)).fetchone()
        if row is None:
            raise self._damaged(f"has no entry {index}")
        return bytes(row[0])

    def _replace_snapshot(self, snapshot: Snapshot) -> None:
        membership = msgspec.msgpack.encode(snapshot.membership)
        checksum = _digest(snapshot.index, snapshot.term, membership, snapshot.data)
        self._db.execute(
            "REPLACE INTO snapshot VALUES (1, ?, ?, ?, ?, ?)",
            (snapshot.index, snapshot.term, membership, snapshot.data, checksum),
        )


def _connect(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN IMMEDIATE")  # takes the lock
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StateError(f"{path} is in use by another process.", "Stop the other node daemon first.") from None
        raise StateError(f"{path} cannot be opened ({error}).", "Check the disk and the rights to the file.") from None
    except sqlite3.DatabaseError as error:
        raise StateError(f"The log of the replicated state, {path}, cannot be read ({error}).", _JOIN_AGAIN) from None


def _make(path: Path, group: str, hard_state: HardState, first: int) -> None:
    before = _seed(group, first)
    mark = _Mark(_FORMAT, group, 0, hard_state, first, first - 1, before, before)
    db = _connect(path)
    try:
        path.chmod(0o600)
        db.executescript(_SCHEMA)
        db.execute("INSERT INTO mark VALUES (1, ?, ?)", _sealed(msgspec.msgpack.encode(mark)))
    finally:
        db.close()
    _witness(path, 0, create=True)


def _digest(*parts: int | bytes) -> bytes:
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, int):
            hashed.update(struct.pack(">Bq", 0, part))
        else:
            hashed.update(struct.pack(">BQ", 1, len(part)))
            hashed.update(part)
    return hashed.digest()


def _seed(group: str, first: int) -> bytes:
    """What stands before the first entry of a chain."""
    return _digest(group.encode(), first)


def _chained(before: bytes, entry: Entry) -> bytes:
    return _digest(before, entry.index, entry.term, entry.version, entry.kind.encode(), entry.data)


def _sealed(mark: bytes) -> tuple[bytes, bytes]:
    return mark, _digest(mark)


# ---- the witness: the number of the last write, beside the database


def _witness_path(path: Path) -> Path:
    return path.with_name(path.name + ".writes")


def _witness(path: Path, number: int, create: bool = False) -> None:
    content = struct.pack(">q", number)
    flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if create else 0)
    file = os.open(_witness_path(path), flags, 0o600)
    try:
        os.pwrite(file, content + _digest(content)[:8], 0)
        if create:
            os.fsync(file)
            _sync_folder(path.parent)
    finally:
        os.close(file)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _witnessed(path: Path) -> int | None:
    try:
        content = _witness_path(path).read_bytes()
    except OSError:
        return None
    if len(content) != 16 or _digest(content[:8])[:8] != content[8:]:
        return None
    return int(struct.unpack(">q", content[:8])[0])
