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


def test_a_descriptor_comes_with_its_packet_and_no_other_process_inherits_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as file:
        socket.send_fds(ours, [b"one"], [file.fileno()])
        packet, (descriptor,) = unixsockets.receive(theirs, 100, 1)
        assert packet == b"one"
        assert os.path.sameopenfile(descriptor, file.fileno())
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
        ours.close()
        assert unixsockets.receive(theirs, 100, 1) == (b"", [])


@pytest.mark.parametrize(("size", "count"), [(101, 1), (1, 2)], ids=["bytes", "descriptors"])
def test_a_packet_that_is_too_large_leaves_no_descriptor(size: int, count: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as file:
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(ours, [bytes(size)], [file.fileno()] * count)
        with pytest.raises(OSError, match="over 100 bytes, or with over 1 descriptors"):
            unixsockets.receive(theirs, 100, 1)
        assert len(os.listdir("/proc/self/fd")) == before
