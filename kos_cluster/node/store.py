"""A node's durable state: named values in SQLite, written before anything that depends on them is said.

Rules: WAL with synchronous=FULL; `put` returns when the values are on the disk, all of them or none. A damaged file
is refused, never guessed at.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from kos_cluster.errors import StateError


class Store:
    """One SQLite file. Used from one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT")
        except sqlite3.DatabaseError as error:
            raise StateError(
                f"The node's state in {path} cannot be read ({error}).",
                "Restore it from a backup, or leave the cluster and join again.",
            ) from None

    def get(self, name: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def put(self, values: dict[str, bytes]) -> None:
        """Write all of these durably. Raises StateError when the disk does not take them (full, gone)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("REPLACE INTO state VALUES (?, ?)", list(values.items()))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StateError(
                f"The node's state could not be written to {self._path} ({error}).", "Make room on that disk."
            ) from None

    def close(self) -> None:
        self._db.close()
