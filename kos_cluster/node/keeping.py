"""What this node keeps on its disk for detached jobs: their work, and results that are too large for the state.

Theory of operation. A kept part is a file named by the SHA-256 of its bytes, complete when it has that name. Unlike the
parts of `parts.py` it outlives the daemon and is dropped only when no job names it any more. A part comes before the
job that names it, so one that no job names is kept for `UNNAMED_S`, as this node has watched.

Rules: files are 0600 in a 0700 folder, durable before anybody is told that they are kept. What would exceed the limits
is refused; nothing is dropped to make room.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection
from pathlib import Path

from kos_cluster.errors import LimitError, StateError
from kos_cluster.home import private_folder

KEPT_LIMIT_BYTES = 8 << 30  # of all kept parts of one node
KEPT_PART_LIMIT_BYTES = 1 << 30  # of one
UNNAMED_S = 3600.0  # for which a part that no job names is kept
_READ_BYTES = 1 << 20


class Kept:
    """The kept parts of one node. `add` and `intact`, which the disk may keep waiting, may be called in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._unnamed: dict[str, float] = {}  # hash -> since when no job names it
        for path in folder.glob("in-*"):  # of an earlier run
            path.unlink(missing_ok=True)

    def __contains__(self, hash_: str) -> bool:
        return self.path(hash_).is_file()

    def path(self, hash_: str) -> Path:
        """Where a part lies, if it is here."""
        return self._folder / hash_

    def incoming(self, size_bytes: int) -> Path:
        """Where a part may be written. Raises LimitError when it would be over a limit."""
        used = sum(_size_bytes(path) for path in self._folder.iterdir())
        if size_bytes > KEPT_PART_LIMIT_BYTES or used + size_bytes > KEPT_LIMIT_BYTES:
            raise LimitError(
                f"A part of {size_bytes:,} bytes is over what this node keeps for detached jobs "
                f"({KEPT_PART_LIMIT_BYTES:,} for one, {KEPT_LIMIT_BYTES:,} in all, {used:,} in use).",
                "Cancel detached jobs that nobody needs ('kos ps'), or send less.",
            )
        return self._folder / f"in-{secrets.token_hex(16)}"

    def add(self, hash_: str, path: Path) -> None:
        """Take a part whose bytes were checked while they were written to `path`. Durable when this returns."""
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            path.rename(self.path(hash_))
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StateError(
                f"The part {hash_[:12]} could not be kept ({error.strerror}).", "Free disk space."
            ) from None

    def adopt(self, hash_: str, path: Path) -> None:
        """Take a file of this machine as a part. Raises LimitError, StateError."""
        incoming = self.incoming(_size_bytes(path))
        path.rename(incoming)
        self.add(hash_, incoming)

    def intact(self, hash_: str) -> bool:
        """Whether a part is here with the bytes that its name says; a damaged one is dropped."""
        hashed = hashlib.sha256()
        try:
            with open(self.path(hash_), "rb") as file:
                while chunk := file.read(_READ_BYTES):
                    hashed.update(chunk)
        except OSError:
            return False
        if hashed.hexdigest() != hash_:
            self.path(hash_).unlink(missing_ok=True)
            return False
        return True

    def tidy(self, named: Collection[str], now: float) -> None:
        """Drop what no job has named for long."""
        here = {path.name for path in self._folder.iterdir() if not path.name.startswith("in-")}
        self._unnamed = {hash_: self._unnamed.get(hash_, now) for hash_ in here if hash_ not in named}
        for hash_, since_s in list(self._unnamed.items()):
            if now - since_s >= UNNAMED_S:
                self.path(hash_).unlink(missing_ok=True)
                del self._unnamed[hash_]


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a transfer that broke off has just removed it
        return 0
