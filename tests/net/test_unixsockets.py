"""UNIX sockets wherever their folder is: kinds, who is at the other end, and how long one waits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kos_cluster.net import unixsockets


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / ("deep" * 20) / ("down" * 20)  # beyond what an address may have
    folder.mkdir(parents=True)
    return folder / "a.sock"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=lambda kind: kind.name)
def test_each_kind_is_reached_at_a_path_of_any_length_and_tells_its_process(
    path: Path, kind: socket.SocketKind
) -> None:
    with unixsockets.listen(path, kind=kind) as listening, unixsockets.connect(path, kind=kind) as ours:
        theirs, _ = listening.accept()
        with theirs:
            assert ours.type == theirs.type == kind
            assert unixsockets.peer_of(theirs) == unixsockets.peer_of(ours) == (os.getpid(), os.getuid())
            ours.send(b"one")
            ours.send(b"two")
            assert theirs.recv(100) == (b"one" if kind is socket.SOCK_SEQPACKET else b"onetwo")


def test_who_connects_waits_as_long_as_it_says(path: Path) -> None:
    with unixsockets.listen(path):
        with unixsockets.connect(path) as stream, pytest.raises(BlockingIOError):
            stream.recv(1)
        with unixsockets.connect(path, timeout_s=0.01) as stream, pytest.raises(TimeoutError):
            stream.recv(1)
        with unixsockets.connect(path, timeout_s=None) as stream:
            assert stream.gettimeout() is None
    with pytest.raises(ConnectionRefusedError):
        unixsockets.connect(path)
