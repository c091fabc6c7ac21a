"""A driver process of this node, for a detached job or a kernel, and what has been written under it.

Rules: the process gets one end of a stream pair and its order; it is ended by closing the pair, and killed `GRACE_S`
later. It is in a session of its own, so an interrupt typed at the daemon does not reach it. Its own stdout and stderr
are the daemon's log. All who ask at once why its tasks wait share one question. Of the output of its tasks the last
`OUTPUT_KEPT_BYTES` are kept.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import msgspec

from kos_cluster.errors import ProtocolError
from kos_cluster.net import channel, driven
from kos_cluster.net.standing import Standing

OUTPUT_KEPT_BYTES = 256 << 10  # of one job
GRACE_S = 5.0  # from the end of the channel to the kill
STANDING_TIMEOUT_S = 2.0  # for a driver to say why its tasks wait: less than who asks waits
READ_BYTES = 1 << 18

_decode = msgspec.msgpack.Decoder(driven.FromDriver).decode
MODULES = {driven.Drive: "kos_cluster.tasks.driver", driven.HostKernel: "kos_cluster.tasks.kernelhost"}
_DROPPED = ("KOS_TOKEN", "KOS_NODE", "KOS_OWNER", "KOS_TASK", "KOS_ATTEMPT")


class Output:
    """The last of what a job's tasks have written in one epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self._start = 0
        self._data = bytearray()

    def wrote(self, data: bytes) -> None:
        self._data += data
        over = len(self._data) - OUTPUT_KEPT_BYTES
        if over > 0:
            del self._data[:over]
            self._start += over

    def since(self, offset: int) -> tuple[int, bytes]:
        """What is kept from `offset` on, and where it begins."""
        start = min(max(offset, self._start), self._start + len(self._data))
        return start, bytes(self._data[start - self._start :])

    def tail(self, size_bytes: int) -> bytes:
        return bytes(self._data[-size_bytes:])


class Driver:
    """One driver process. Used in the daemon's loop."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._process = process
        self._reader = reader
        self._writer = writer
        self._asked: asyncio.Future[Standing | None] | None = None  # why its tasks wait

    @classmethod
    async def start(cls, order: driven.Drive | driven.HostKernel) -> Driver:
        """Raises OSError when no process can be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            environ = {name: value for name, value in os.environ.items() if name not in _DROPPED}
            words = [sys.executable, "-P", "-m", MODULES[type(order)], str(theirs.fileno())]
            try:
                process = subprocess.Popen(
                    words,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError:
                writer.close()
                raise
        writer.writelines(channel.encode(msgspec.msgpack.encode(order)))
        return cls(process, reader, writer)

    async def messages(self) -> AsyncIterator[tuple[driven.FromDriver, bytes]]:
        """What it says unasked, until it has ended. Raises ProtocolError."""
        decoder = channel.Decoder()
        while data := await self._read():
            for header, payload in decoder.feed(data):
                try:
                    message = _decode(header)
                except msgspec.MsgspecError as error:
                    raise ProtocolError(f"A driver said what is none of its messages: {error}.") from None
                if isinstance(message, driven.Stands):
                    self._told(message.standing)
                else:
                    yield message, payload

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(READ_BYTES)
        except ConnectionError:
            return b""

    async def standing(self) -> Standing | None:
        """Why its tasks wait; None when it does not say in time."""
        if self._writer.is_closing():
            return None
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._writer.writelines(channel.encode(msgspec.msgpack.encode(driven.AskStanding())))
        answer, _ = await asyncio.wait([self._asked], timeout=STANDING_TIMEOUT_S)
        return answer.pop().result() if answer else None

    def _told(self, standing: Standing | None) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.set_result(standing)

    async def end(self) -> int:
        """End it; its exit status. Its work at the nodes is freed."""
        self._writer.close()
        self._told(None)
        waiting = asyncio.get_running_loop().run_in_executor(None, self._wait)
        return await asyncio.shield(waiting)

    def _wait(self) -> int:
        try:
            return self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
