"""Whose process is at the other end of a TCP connection, as the kernel lists it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from kos_cluster.net.tcpusers import user_of_peer, user_who_listens


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


def test_who_has_closed_its_end_is_nobody(ends: tuple[socket.socket, socket.socket]):
    """The list gives it to root then, as whom this may run."""
    here, there = ends
    there.close()
    assert user_of_peer(here) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_who_listens_on_an_address_or_on_all(host: str):
    family = socket.AF_INET6 if host == "::" else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listening:
        port = listening.getsockname()[1]
        assert user_who_listens("127.0.0.1", port) == os.getuid()
        with socket.create_connection(("127.0.0.1", port)):  # a connection is none that listens
            assert user_who_listens("127.0.0.2", port) == (None if host == "127.0.0.1" else os.getuid())
    assert user_who_listens("127.0.0.1", port) is None


class Address:
    """The addresses of a connection, without one."""

    def __init__(self, peer: tuple[str, int], own: tuple[str, int]) -> None:
        self.getpeername = lambda: peer
        self.getsockname = lambda: own
