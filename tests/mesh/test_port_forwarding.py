"""A port of this machine that leads to one of a node's loopback, as a browser sees it."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import kos_cluster as kos
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, NoSuchNodeError, PortTakenError, UsageError
from kos_cluster.net import tunnel
from kos_cluster.tasks import portforwarding
from kos_cluster.tasks.portforwarding import ForwardedPort
from tests.kernel.clusters import add_user
from tests.mesh.conftest import Mesh, until
from tests.mesh.speaker import authority_of, identity

PAGE = os.urandom(5 << 20)  # more than a tunnel holds
WAIT_S = 30.0


class Dashboard(BaseHTTPRequestHandler):
    """A page for each GET, the connection's bytes back for a websocket."""

    def do_GET(self) -> None:
        if self.headers["Upgrade"] == "websocket":
            self._echo()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def _echo(self) -> None:
        self.close_connection = True
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        while data := self.connection.recv(1 << 16):
            self.connection.sendall(data)

    def log_message(self, format: str, *args: object) -> None:
        return


class Persistent(Dashboard):
    """A browser's connection is used for the next request, too."""

    protocol_version = "HTTP/1.1"


@pytest.fixture
def dashboard() -> Iterator[ThreadingHTTPServer]:
    """On the loopback of both nodes, which is this machine's."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Persistent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def forwarded(mesh: Mesh, dashboard: ThreadingHTTPServer) -> Iterator[ForwardedPort]:
    with mesh.cluster.forward_port("node2", dashboard.server_port) as port:
        yield port


def opened(forwarded: ForwardedPort) -> socket.socket:
    """A websocket, as a page has it."""
    stream = socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S)
    stream.sendall(b"GET /ws HTTP/1.1\r\nHost: there\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stream.recv(1)
    assert head.startswith(b"HTTP/1.1 101")
    return stream


def is_closed(stream: socket.socket) -> bool:
    """Wait for the other end to close. Raises TimeoutError."""
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_page_arrives_and_its_connection_is_used_again(forwarded: ForwardedPort):
    browser = http.client.HTTPConnection("127.0.0.1", forwarded.port, timeout=WAIT_S)
    for _ in range(2):
        browser.request("GET", "/status")
        assert browser.getresponse().read() == PAGE
    browser.close()


def test_a_server_that_closes_after_its_page_loses_none_of_it(
    forwarded: ForwardedPort, dashboard: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dashboard, "RequestHandlerClass", Dashboard)
    for _ in range(5):
        with urllib.request.urlopen(f"http://127.0.0.1:{forwarded.port}/", timeout=WAIT_S) as answer:
            assert answer.read() == PAGE


def test_a_websocket_stays_open_beside_pages(forwarded: ForwardedPort):
    with opened(forwarded) as one, opened(forwarded) as other:
        for stream, said in ((one, b"one"), (other, b"other"), (one, b"again")):
            stream.sendall(said)
            assert stream.recv(100) == said
        with urllib.request.urlopen(f"http://127.0.0.1:{forwarded.port}/", timeout=WAIT_S) as answer:
            assert answer.read() == PAGE
        forwarded.close()
        assert is_closed(one) and is_closed(other)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S)


def test_where_nothing_listens_any_more_the_connection_is_closed_and_the_log_says_so(
    mesh: Mesh, caplog: pytest.LogCaptureFixture
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with mesh.cluster.forward_port("node2", port) as forwarded:
            with socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S) as browser:
                there, _ = taken.accept()
                there.close()
                assert is_closed(browser)
            taken.close()
            with socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S) as browser:
                assert is_closed(browser)
    told = f"to port {port} of node2 was closed: Nothing answers on port {port} of the node's loopback"
    until(lambda: told in caplog.text, "it is told")


def test_who_may_not_submit_work_is_refused_by_the_node_as_well(mesh: Mesh, dashboard, tmp_path: Path):
    add_user(mesh.home.path, Role.OBSERVER, tmp_path)
    with kos.connect(home=tmp_path) as cluster, pytest.raises(AuthError, match=r"role observer of .* may not reach"):
        cluster.forward_port("node2", dashboard.server_port)
    node = next(row for row in mesh.cluster.nodes() if row["name"] == "node2")
    host, port = node["address"].rsplit(":", 1)
    wanted = tunnel.Open("", "", "t", new=True, port=dashboard.server_port)
    for role in (Role.OBSERVER, Role.NODE):
        with pytest.raises(AuthError, match=f"may not reach port {dashboard.server_port} of a node"):
            tunnel.dial(host, int(port), identity(authority_of(mesh.home), role), wanted)


def test_another_users_process_is_not_let_in(forwarded: ForwardedPort, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(portforwarding, "user_of_peer", lambda connection: os.getuid() + 1)
    with socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S) as browser:
        assert is_closed(browser)
    until(lambda: "by another user was closed" in caplog.text, "it is told")


def test_connections_are_bounded(forwarded: ForwardedPort, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(portforwarding, "CONNECTIONS_LIMIT", 1)
    with opened(forwarded) as one:
        with socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S) as over:
            assert is_closed(over)
        one.sendall(b"still here")
        assert one.recv(100) == b"still here"
    until(lambda: not forwarded._ends, "its place is free")
    opened(forwarded).close()


def test_what_cannot_be_is_refused_in_a_sentence(mesh: Mesh, dashboard: ThreadingHTTPServer):
    with pytest.raises(NoSuchNodeError, match="No node is named 'attic'"):
        mesh.cluster.forward_port("attic", 80)
    with pytest.raises(UsageError, match="70000 is not a port"):
        mesh.cluster.forward_port("node1", 70000)
    with pytest.raises(PortTakenError, match=f"Port {dashboard.server_port} of this machine cannot be had"):
        mesh.cluster.forward_port("node1", 80, local_port=dashboard.server_port)


def test_when_the_node_dies_the_connection_ends(mesh: Mesh, forwarded: ForwardedPort, caplog):
    with caplog.at_level(logging.WARNING), opened(forwarded) as stream:
        os.kill(mesh.pid("node2"), signal.SIGKILL)
        try:
            assert is_closed(stream)
            until(lambda: "as the link to the node broke" in caplog.text, "it is told")
            with socket.create_connection(("127.0.0.1", forwarded.port), WAIT_S) as again:
                assert is_closed(again)
        finally:
            mesh.heal()
