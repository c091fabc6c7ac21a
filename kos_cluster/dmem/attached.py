"""A process's way to its node's arena: it writes blocks there, and reads them where they are.

Theory of operation. One connection a process and arena, made when it is first needed. Requests take turns; each has a
serial, so that an answer to one that was interrupted is told from the next one's, and what it gave is given back. A
block that is read is a mapping, read-only or private; the block is released when the last view of it is gone, wherever
that is.

Rules: a forked child makes a connection of its own. `release` may be called anywhere, by the garbage collector too: it
takes no lock and does not wait.
"""

from __future__ import annotations

import atexit
import mmap
import os
import select
import socket
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from kos_cluster.dmem import protocol
from kos_cluster.dmem.segments import Segment, write_all
from kos_cluster.errors import UnreachableError
from kos_cluster.net import unixsockets
from kos_cluster.net.outcome import from_wire

RELEASES_LIMIT = 1 << 16  # that wait because the arena takes none just now
INTERRUPTED_LIMIT = 64  # requests whose late answers are known; what others gave is released when the process ends

_Request = Callable[[int], protocol.ToArena]  # with its serial
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(protocol.FromArena).decode

_attached: dict[Path, Attached] = {}
_attaching = threading.Lock()


def attached(folder: Path) -> Attached:
    """This process's connection to the arena in that folder. Raises UnreachableError."""
    with _attaching:
        known = _attached.get(folder)
        if known is None or not known.usable or known.left:
            if known is not None:
                known.close()
            known = _attached[folder] = Attached(folder)
        return known


@atexit.register
def _close_all() -> None:
    """At the end of the interpreter; what was inherited by a fork is its parent's."""
    for connection in _attached.values():
        if connection.usable:
            connection.close()


class Attached:
    """One connection. Any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._pid = os.getpid()
        self._broken = False
        self._serial = 0
        self._turn = threading.Lock()
        self._unsent: deque[bytes] = deque(maxlen=RELEASES_LIMIT)
        self._interrupted: OrderedDict[int, str] = OrderedDict()  # serial -> block
        self._stream = _connected(folder)

    @property
    def usable(self) -> bool:
        return not self._broken and self._pid == os.getpid()

    @property
    def left(self) -> bool:
        """Whether the arena has closed the connection, as one does that was started anew."""
        poll = select.poll()
        poll.register(self._stream, 0)  # a hang-up is told unasked
        return bool(poll.poll(0))

    def close(self) -> None:
        """Give back everything that is held; what is mapped can still be read."""
        self._broken = True
        self._stream.close()

    def write(self, block: str, pieces: list[bytes | memoryview]) -> str:
        """Make a block, held until it is passed on; the id of the node that has it now. Raises ArenaFullError."""
        size_bytes = sum(memoryview(piece).nbytes for piece in pieces)
        segment = self._given(block, lambda serial: protocol.Create(serial, block, size_bytes))
        try:
            write_all(segment.fd, pieces)
        except BaseException:
            self.release(block)
            raise
        finally:
            segment.close()
        try:
            with self._turn:
                answer, _ = self._exchange(block, lambda serial: protocol.Seal(serial, block))
        except BaseException:
            self.release(block)
            raise
        assert isinstance(answer, protocol.Sealed)
        return answer.node

    def read(self, block: str, home: str = "", *, private: bool = False) -> mmap.mmap:
        """A block, to be read; fetched from node `home` if it is not here. Raises BlockLostError, ArenaFullError.

        A `private` one can be written to, and its reader alone sees that: a page is copied when it is written.
        """
        segment = self._given(block, lambda serial: protocol.Hold(serial, block, home))
        try:
            mapping = segment.map(access=mmap.ACCESS_COPY if private else mmap.ACCESS_READ)
        except BaseException:
            self.release(block)
            raise
        finally:
            segment.close()
        weakref.finalize(mapping, self.release, block).atexit = False
        return mapping

    def release(self, block: str) -> None:
        """Tell the arena that a block is not needed here any more."""
        self._tell(protocol.Release(block))

    def passed_on(self, block: str) -> None:
        """Tell the arena that somebody else keeps what was written here. It is no release of what was read since."""
        self._tell(protocol.PassedOn(block))

    def _tell(self, message: protocol.Release | protocol.PassedOn) -> None:
        if not self.usable:
            return  # a fork holds nothing; a broken connection neither
        self._unsent.append(_encode(message))
        self._send_releases()

    # ---- inside

    def _given(self, block: str, request: _Request) -> Segment:
        with self._turn:
            answer, descriptors = self._exchange(block, request)
        if not isinstance(answer, protocol.Given) or len(descriptors) != 1:
            raise UnreachableError("The arena of this machine's node gave no descriptor.")
        return Segment(descriptors[0], answer.size_bytes)

    def _exchange(self, block: str, request: _Request) -> tuple[protocol.FromArena, list[int]]:
        """Ask, and wait for the answer to just that. Raises what the arena raises, UnreachableError."""
        self._serial += 1
        serial = self._serial
        self._send_releases()
        try:
            self._stream.send(_encode(request(serial)), socket.MSG_NOSIGNAL)
            answer, descriptors = self._answer(serial)
        except (OSError, msgspec.DecodeError) as error:
            self._broken = True
            raise UnreachableError(
                f"The arena of this machine's node is gone ({error}).", "Type 'kos up', if the node does not run."
            ) from None
        except BaseException:  # an interrupt; the answer is still to come
            self._interrupted[serial] = block
            if len(self._interrupted) > INTERRUPTED_LIMIT:
                self._interrupted.popitem(last=False)
            raise
        if isinstance(answer, protocol.Refused):
            raise from_wire((answer.error, answer.message, answer.hint))
        return answer, descriptors

    def _answer(self, serial: int) -> tuple[protocol.FromArena, list[int]]:
        while True:
            packet, descriptors = unixsockets.receive(self._stream, protocol.PACKET_LIMIT_BYTES, 1)
            if not packet:
                raise ConnectionResetError("it closed the connection")
            answer = _decode(packet)
            if answer.serial == serial:
                return answer, descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            block = self._interrupted.pop(answer.serial, None)
            if block is not None and isinstance(answer, protocol.Given):
                self.release(block)

    def _send_releases(self) -> None:
        while self._unsent:
            try:
                packet = self._unsent.popleft()
            except IndexError:  # another thread has taken the last
                return
            try:
                self._stream.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:  # it goes with a later one
                self._unsent.appendleft(packet)
                return
            except OSError:  # the arena is gone, and all holds with it
                return


def _connected(folder: Path) -> socket.socket:
    try:
        return unixsockets.connect(folder / protocol.SOCKET, kind=socket.SOCK_SEQPACKET, timeout_s=None)
    except OSError as error:
        raise UnreachableError(
            f"The arena of this machine's node cannot be reached ({error.strerror}).",
            "Type 'kos up', if the node does not run.",
        ) from None
