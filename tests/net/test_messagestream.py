"""Messages over a stream whose other end is slow."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from kos_cluster.net import channel, messagestream
from kos_cluster.net.messagestream import MessageStream
from tests.net.echoes import until

PIECE = bytes(64 << 10)
LIMIT_BYTES = 4 << 20
LINGER_S = 60.0


def test_no_more_bytes_wait_than_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messagestream, "UNSENT_LIMIT_BYTES", LIMIT_BYTES)

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        buffered = 2 * ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        came: list[channel.Frames] = []
        writing = MessageStream(ours, lambda *_: None, lambda: None)
        reading = MessageStream(theirs, lambda *frames: came.append(frames), lambda: None)
        taken = 0
        while writing.send(taken.to_bytes(4, "big"), PIECE):
            taken += 1
            assert taken * len(PIECE) < 2 * (LIMIT_BYTES + buffered)
        assert taken * len(PIECE) >= LIMIT_BYTES
        await until(lambda: len(came) == taken)
        assert [(int.from_bytes(header, "big"), len(payload)) for header, payload in came] == [
            (number, len(PIECE)) for number in range(taken)
        ]
        assert writing.send(b"more", PIECE)
        writing.close()
        reading.close()

    asyncio.run(scene())


def test_what_waits_when_it_is_closed_is_written_before() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        sent = 4 * LIMIT_BYTES
        got: list[int] = []

        def read() -> None:
            while data := theirs.recv(1 << 16):
                got.append(len(data))

        writing = MessageStream(ours, lambda *_: None, lambda: None)
        assert writing.send(b"", bytes(sent))
        slow = threading.Thread(target=read)
        slow.start()
        writing.close(LINGER_S)
        slow.join(LINGER_S)
        theirs.close()
        assert sum(got) == sent + channel.LENGTHS.size
        assert not writing.send(b"more")

    asyncio.run(scene())


def test_nobody_is_waited_for_without_end() -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            writing = MessageStream(ours, lambda *_: None, lambda: None)
            assert writing.send(b"", bytes(LIMIT_BYTES))
            writing.close(0.01)
            writing.close(LINGER_S)  # it is closed already

    asyncio.run(scene())
