"""Whose process is at the other end of a TCP connection, as the kernel lists it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from kos_cluster.net.tcpusers import user_of_peer


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as there,
        listening.accept()[0] as here,
    ):
        yield here, there


def test_both_ends_of_a_connection_of_ones_own_are_ones_own(ends: tuple[socket.socket, socket.socket]):
    assert [user_of_peer(end) for end in ends] == [os.getuid()] * 2


def test_what_is_not_listed_is_nobodys(ends: tuple[socket.socket, socket.socket]):
    here, _ = ends
    host, port = here.getsockname()
    assert user_of_peer(Address(here.getpeername(), (host, port + 1))) is None  # type: ignore[arg-type]


class Address:
    """The addresses of a connection, without one."""

    def __init__(self, peer: tuple[str, int], own: tuple[str, int]) -> None:
        self.getpeername = lambda: peer
        self.getsockname = lambda: own
