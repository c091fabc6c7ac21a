"""The parts that owners have pushed to this node: functions, environments, sources, archives, large arguments.

Rules. A part is named by the SHA-256 of its bytes, and taken only if it matches. Small ones are kept in memory, large
ones as files. What was not used for longest goes first when a limit is reached; a part that a waiting batch needs is
never dropped.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from kos_cluster.errors import LimitError
from kos_cluster.home import private_folder

MEMORY_LIMIT_BYTES = 256 << 20  # of small parts in memory
FILES_LIMIT_BYTES = 4 << 30  # of large parts on disk
PART_LIMIT_BYTES = 1 << 30  # of one part


class Parts:
    """A content-addressed cache of one node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._small: OrderedDict[str, bytes] = OrderedDict()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._pins: dict[str, int] = {}
        self._small_bytes = 0
        self._file_bytes = 0

    def open(self) -> None:
        """Make the folder. Nothing is taken before."""
        private_folder(self._folder)

    def __contains__(self, hash_: str) -> bool:
        return hash_ in self._small or hash_ in self._files

    def missing(self, hashes: Iterable[str]) -> list[str]:
        return [h for h in hashes if h not in self]

    def pin(self, hashes: Iterable[str]) -> None:
        """Keep these until unpinned as often, whether they are here yet or not."""
        for hash_ in hashes:
            self._pins[hash_] = self._pins.get(hash_, 0) + 1

    def unpin(self, hashes: Iterable[str]) -> None:
        for hash_ in hashes:
            count = self._pins.pop(hash_)
            if count > 1:
                self._pins[hash_] = count - 1

    def add(self, hash_: str, data: bytes) -> bool:
        """Take a small part; False when its bytes do not match its name."""
        if hashlib.sha256(data).hexdigest() != hash_:
            return False
        if hash_ not in self:
            self._small[hash_] = data
            self._small_bytes += len(data)
            self._shrink()
        return True

    def incoming(self, size_bytes: int) -> Path:
        """Where a large part may be written. Raises LimitError when it would be over a limit."""
        pinned = sum(size for h, size in self._files.items() if h in self._pins)
        if size_bytes > PART_LIMIT_BYTES or pinned + size_bytes > FILES_LIMIT_BYTES:
            raise LimitError(
                f"A payload of {size_bytes:,} bytes is over this node's limits "
                f"({PART_LIMIT_BYTES:,} for one, {FILES_LIMIT_BYTES:,} in all, {pinned:,} in use).",
                "Send less at once, or write it to a file that the nodes can read.",
            )
        return self._folder / f"in-{secrets.token_hex(16)}"

    def add_file(self, hash_: str, path: Path) -> None:
        """Take a large part whose bytes were checked while they were written."""
        if hash_ in self:
            path.unlink()
            return
        size = path.stat().st_size
        path.rename(self._folder / hash_)
        self._files[hash_] = size
        self._file_bytes += size
        self._shrink()

    def get(self, hash_: str) -> bytes | Path:
        """A part's bytes, or the file that holds them. Raises KeyError when it is not here."""
        if hash_ in self._small:
            self._small.move_to_end(hash_)
            return self._small[hash_]
        self._files.move_to_end(hash_)
        return self._folder / hash_

    def size_bytes(self, hash_: str) -> int:
        """A part's size; 0 when it is not here."""
        return len(self._small[hash_]) if hash_ in self._small else self._files.get(hash_, 0)

    def _shrink(self) -> None:
        for hash_ in [h for h in self._small if h not in self._pins]:
            if self._small_bytes <= MEMORY_LIMIT_BYTES:
                break
            self._small_bytes -= len(self._small.pop(hash_))
        for hash_ in [h for h in self._files if h not in self._pins]:
            if self._file_bytes <= FILES_LIMIT_BYTES:
                break
            self._file_bytes -= self._files.pop(hash_)
            (self._folder / hash_).unlink()
