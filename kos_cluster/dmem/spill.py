"""Blocks on the disk: encrypted, nameless, and gone with the daemon.

Theory of operation. A spilled block is a file that is unlinked as soon as it is open, so nothing is left of it when the
daemon ends, by SIGKILL too. Its content is encrypted in chunks (AES-256-GCM) with a key that exists only in this
process's memory. A chunk's nonce is the number of the file and the number of the chunk in it, so none is used twice
under the key; its block's name is authenticated with it.

Rules: the books (`core.arena`) bound what lies here. `write` and `read` wait for the disk, and are called in threads.
"""

from __future__ import annotations

import itertools
import mmap
import os
import secrets
import struct
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kos_cluster.errors import StateError
from kos_cluster.home import private_folder

CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
_NONCE = struct.Struct("<QL")  # file, chunk


class Spill:
    """The spilled blocks of one node."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._numbers = itertools.count()
        self._files: dict[str, tuple[int, int]] = {}  # block -> (descriptor, number of the file)

    def write(self, block: str, content: mmap.mmap) -> None:
        """Put a block on the disk. Raises OSError; then nothing is left there."""
        fd = self._open()
        number = next(self._numbers)
        sealed = bytearray(CHUNK_BYTES + TAG_BYTES)
        try:
            with memoryview(content) as view:
                for chunk, start in enumerate(range(0, len(view), CHUNK_BYTES)):
                    with view[start : start + CHUNK_BYTES] as plain:
                        out = memoryview(sealed)[: len(plain) + TAG_BYTES]
                        self._cipher.encrypt_into(_NONCE.pack(number, chunk), plain, block.encode(), out)
                    while out:
                        out = out[os.write(fd, out) :]
        except BaseException:
            os.close(fd)
            raise
        self._files[block] = fd, number

    def read(self, block: str, into: memoryview) -> None:
        """Bring a block back. Raises StateError when what lies there is not what was written, or cannot be read."""
        fd, number = self._files[block]
        sealed = memoryview(bytearray(CHUNK_BYTES + TAG_BYTES))
        try:
            for chunk, start in enumerate(range(0, len(into), CHUNK_BYTES)):
                with into[start : start + CHUNK_BYTES] as plain:  # an error would keep it, and what it is a view of
                    data = sealed[: len(plain) + TAG_BYTES]
                    _fill(fd, data, chunk * len(sealed))
                    self._cipher.decrypt_into(_NONCE.pack(number, chunk), data, block.encode(), plain)
        except (InvalidTag, OSError) as error:
            why = getattr(error, "strerror", None) or "its content has changed"
            raise StateError(f"the block {block[:12]} cannot be read back from the disk ({why})") from None

    def drop(self, block: str) -> None:
        """Forget a block, which the disk may have refused."""
        fd, _ = self._files.pop(block, (-1, 0))
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        for block in list(self._files):
            self.drop(block)

    def _open(self) -> int:
        path = self._folder / secrets.token_hex(8)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        path.unlink()
        return fd


def _fill(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.preadv(fd, [data], offset)
        if not count:
            raise OSError("the file is shorter than what was written")
        data = data[count:]
        offset += count
