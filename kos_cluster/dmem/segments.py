"""Segments: anonymous memory that processes share by descriptor (memfd), and that cannot change once it is sealed.

Theory of operation. A memfd has no name, so it is gone when the last process that has it open or mapped is gone,
however that ended. Its pages are allocated when it is made: a machine without memory refuses then, where a sparse one
would kill with SIGBUS whoever touches the missing page. The kernel keeps the seals (memfd_create(2), F_ADD_SEALS):
after `seal` nobody can write, whoever has a descriptor, so what a reader has seen stays as it is.

Rules: content leaves through the buffer protocol only. A mapping that is closed under a live view raises BufferError.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from kos_cluster.errors import ArenaFullError, ProtocolError

RESERVED_BYTES = 256 << 20  # of the machine's memory that no segment takes
WRITE_BYTES = 1 << 30  # in one system call
_NO_ROOM = (errno.ENOMEM, errno.ENOSPC)
_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_BLOCK_BYTES = 512  # in which the system counts what a file has of memory


class Segment:
    """One segment. `fd` is this process's descriptor of it."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd = fd
        self.size_bytes = size_bytes

    @classmethod
    def allocate(cls, size_bytes: int) -> Segment:
        """A new one with all its pages. Takes a while for a large one. Raises ArenaFullError."""
        import psutil  # here, for workers import this module and allocate nothing

        available = psutil.virtual_memory().available
        if size_bytes > available - RESERVED_BYTES:
            raise ArenaFullError(
                f"the machine has {available:,} bytes of memory left, of which {RESERVED_BYTES:,} are not given away"
            )
        fd = os.memfd_create("kos-block", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, size_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError as error:
            os.close(fd)
            if error.errno not in _NO_ROOM:
                raise
            raise ArenaFullError(f"the system gives no more memory ({error.strerror})") from None
        return cls(fd, size_bytes)

    @classmethod
    def shared(cls, fd: int, size_bytes: int) -> Segment:
        """One that another process has sealed. Raises ProtocolError for what is none, or could change, or has holes."""
        status = os.fstat(fd)
        whole = 0 < size_bytes == status.st_size <= status.st_blocks * _BLOCK_BYTES
        if not whole or _seals(fd) & _SEALED != _SEALED:
            raise ProtocolError(f"A descriptor that was given is of no sealed block of {size_bytes:,} bytes.")
        return cls(fd, size_bytes)

    def seal(self) -> None:
        """Let nobody write any more, if somebody can. Raises BlockingIOError while it is mapped to be written."""
        if _seals(self.fd) & _SEALED == _SEALED:
            return
        try:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise BlockingIOError(error.errno, "it is still mapped to be written") from None
            raise

    def map(self, *, access: int = mmap.ACCESS_READ) -> mmap.mmap:
        """Its content; with ACCESS_COPY, what is written to it is seen here alone. It outlives this descriptor."""
        if access == mmap.ACCESS_READ:  # a shared mapping could be made writable later, so it would hinder sealing
            return mmap.mmap(self.fd, self.size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        return mmap.mmap(self.fd, self.size_bytes, access=access)

    def close(self) -> None:
        """Give up this process's descriptor; mappings stay."""
        fd, self.fd = self.fd, -1
        os.close(fd)


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return 0  # what is no memfd has none


def write_all(fd: int, pieces: list[bytes | memoryview]) -> None:
    """Write pieces one after the other from the beginning; without a mapping, whose page faults would cost as much."""
    offset = 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest:
            written = os.pwrite(fd, rest[:WRITE_BYTES], offset)
            rest = rest[written:]
            offset += written
