"""Tunnels over real TLS links: what goes in comes out, whatever happens to the links."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, KosError, LimitError, NoSuchTaskError
from kos_cluster.net import bulk as bulk_module
from kos_cluster.net import tunnel
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.tunnel import End, Left, Open, dial

HOST = "127.0.0.1"
WAIT_S = 10.0
MUCH = os.urandom(3 << 20)  # more than what the sockets and the tunnel hold


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.005)


class Laptop:
    """The client's end: a socket pair for the program, and a thread that opens links until the tunnel is over."""

    def __init__(self, port: int, credentials, service: int) -> None:
        self.program, inner = socket.socketpair()
        self.program.settimeout(WAIT_S)
        self.end = End(inner)
        self.links: list[ssl.SSLSocket] = []
        self.asleep = threading.Event()
        self.error: KosError | None = None
        self._ask = lambda new: dial(HOST, port, credentials, Open("k", str(service), "t", new, self.end.received))
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        new = True
        while not self.end.over:
            if self.asleep.is_set():
                time.sleep(0.01)
                continue
            try:
                link, received = self._ask(new)
            except KosError as error:
                self.error = error
                self.end.close()
                return
            new = False
            with link:
                self.links.append(link)
                self.end.carry(link, received)

    def cut(self) -> None:
        """The link breaks, as both ends see it."""
        # What has just broken by itself cannot be cut, and the next is on its way.
        with suppress(OSError), socket.socket(fileno=os.dup(self.links[-1].fileno())) as handle:
            handle.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def service() -> Iterator[socket.socket]:
    """What listens on the node."""
    with socket.create_server((HOST, 0)) as listening:
        listening.settimeout(WAIT_S)
        yield listening


@pytest.fixture
def laptop(bulk: BulkServer, port, client, service: socket.socket) -> Iterator[Laptop]:
    started = Laptop(port, client, service.getsockname()[1])
    yield started
    started.end.close()
    started.program.close()
    started.thread.join(WAIT_S)
    assert not started.thread.is_alive()


def accepted(service: socket.socket) -> socket.socket:
    connection, _ = service.accept()
    connection.settimeout(WAIT_S)
    return connection


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(1 << 16)
        assert chunk, "it was closed"
        data += chunk
    return bytes(data)


def test_both_ways_and_the_end(laptop: Laptop, service: socket.socket, bulk: BulkServer) -> None:
    with accepted(service) as there:
        laptop.program.sendall(b"to the node")
        assert read_exactly(there, 11) == b"to the node"
        there.sendall(b"and back")
        assert read_exactly(laptop.program, 8) == b"and back"
        there.sendall(b"last words")
    assert read_exactly(laptop.program, 10) == b"last words" and laptop.program.recv(1) == b""
    laptop.thread.join(WAIT_S)
    assert laptop.end.over and bulk.dropped == 0


def test_a_client_that_closes_is_seen_there(laptop: Laptop, service: socket.socket) -> None:
    with accepted(service) as there:
        laptop.program.sendall(b"bye")
        laptop.program.close()
        assert read_exactly(there, 3) == b"bye" and there.recv(1) == b""


def test_links_that_break_lose_nothing(laptop: Laptop, service: socket.socket) -> None:
    """Both directions at once, more than any buffer holds, and a link that is cut again and again."""
    with accepted(service) as there:
        senders = [threading.Thread(target=each.sendall, args=(MUCH,)) for each in (there, laptop.program)]
        got: dict[str, bytes] = {}
        readers = [
            threading.Thread(target=lambda: got.update(there=read_exactly(there, len(MUCH)))),
            threading.Thread(target=lambda: got.update(here=read_exactly(laptop.program, len(MUCH)))),
        ]
        for thread in (*senders, *readers):
            thread.start()
        while any(reader.is_alive() for reader in readers):
            count = len(laptop.links)
            received = laptop.end.received
            until(lambda: laptop.end.received > received or not readers[1].is_alive())  # noqa: B023
            if readers[1].is_alive():
                laptop.cut()
                until(lambda: len(laptop.links) > count)  # noqa: B023
            else:
                readers[0].join(WAIT_S)
        assert got["there"] == MUCH and got["here"] == MUCH
        assert len(laptop.links) > 3


def test_what_was_said_while_the_laptop_slept_comes_when_it_wakes(laptop: Laptop, service: socket.socket) -> None:
    with accepted(service) as there:
        there.sendall(b"before")
        assert read_exactly(laptop.program, 6) == b"before"
        laptop.asleep.set()
        laptop.cut()
        there.sendall(b"meanwhile")
        laptop.program.sendall(b"asked while away")
        laptop.asleep.clear()
        assert read_exactly(laptop.program, 9) == b"meanwhile"
        assert read_exactly(there, 16) == b"asked while away"


def test_a_link_that_says_nothing_is_given_up(
    laptop: Laptop, service: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the other machine has lost its power: nobody closes anything."""
    with accepted(service) as there:
        there.sendall(b"x")
        assert read_exactly(laptop.program, 1) == b"x"
        monkeypatch.setattr(tunnel, "SILENCE_S", 0.3)
        monkeypatch.setattr(tunnel, "BEAT_S", 0.1)
        monkeypatch.setattr(laptop.end.stream, "acknowledge", lambda: b"")  # this side says nothing
        there.sendall(b"y")  # both ends look up
        until(lambda: len(laptop.links) > 1)


def test_a_newer_link_takes_over_from_one_that_hangs(laptop: Laptop, service: socket.socket, port, client) -> None:
    """The laptop woke up with another address: the node still has the old link."""
    with accepted(service) as there:
        there.sendall(b"one")
        assert read_exactly(laptop.program, 3) == b"one"
        link, received = dial(HOST, port, client, Open("k", "", "t", False, 3))
        with link:
            until(lambda: len(laptop.links) > 1 or link.pending() or link.recv(1))  # the node has left the old link
        there.sendall(b"two")
        assert read_exactly(laptop.program, 3) == b"two" and received == 0


def test_a_tunnel_that_nobody_knows_is_refused(bulk: BulkServer, port, client) -> None:
    with pytest.raises(NoSuchTaskError, match="no such tunnel"):
        dial(HOST, port, client, Open("k", "1", "unknown", False))
    until(lambda: bulk.dropped == 1)


@pytest.mark.parametrize("role", [Role.OBSERVER, Role.NODE])
def test_who_may_not_submit_gets_no_tunnel(bulk: BulkServer, port, authority, role: Role) -> None:
    with pytest.raises(AuthError, match="may not use a kernel"):
        dial(HOST, port, authority.local("other", "eve", role), Open("k", "1", "t", True))


def test_tunnels_are_bounded_apart_from_transfers(laptop: Laptop, service: socket.socket, bulk, port, client) -> None:
    with accepted(service):
        for _ in range(bulk_module.TUNNELS_LIMIT - 1):
            bulk._tunnels.acquire()
        with pytest.raises(LimitError, match="512 tunnels"):
            dial(HOST, port, client, Open("k", "1", "another", True))


def test_who_is_removed_is_cut_off(laptop: Laptop, service: socket.socket, bulk: BulkServer, store, client) -> None:
    with accepted(service) as there:
        laptop.program.sendall(b"x")
        assert read_exactly(there, 1) == b"x"
        store.admitted.revoke(client.peer.serial)
        bulk.cut(client.peer.serial)
        laptop.thread.join(WAIT_S)
        assert isinstance(laptop.error, AuthError)


def test_an_end_that_lies_about_what_it_has_ends_the_tunnel(laptop: Laptop, service, port, client, store) -> None:
    with accepted(service) as there:
        there.sendall(b"x")
        assert read_exactly(laptop.program, 1) == b"x"
        laptop.asleep.set()
        with pytest.raises(KosError):
            dial(HOST, port, client, Open("k", "", "t", False, 1000))
        assert there.recv(1) == b""
        assert store.tunnels["t"].carry(None, 0) is Left.OVER
