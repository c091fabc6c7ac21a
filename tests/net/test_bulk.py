"""The bulk port over real sockets: who gets what, parts and results, garbage."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import PosixPath

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import (
    AuthError,
    NoSuchTaskError,
    PortTakenError,
    ProtocolError,
    StateError,
    UnreachableError,
    UsageError,
)
from kos_cluster.net import bulk as bulk_module
from kos_cluster.net import tls, transfers
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.bulk import BulkServer, get_kept, get_result, put_part
from kos_cluster.net.identity import Credentials
from tests.net.presented import present

HOST = "127.0.0.1"
WAIT_S = 10.0
PART = os.urandom(32 << 20)
PART_HASH = hashlib.sha256(PART).hexdigest()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.005)


def test_presenting_admits_the_key_and_shows_the_nodes(bulk: BulkServer, store, node, client, port) -> None:
    assert present(HOST, port, client) == node.peer
    assert store.admitted.get(client.curve_public) == client.peer
    assert bulk.dropped == 0


@pytest.mark.parametrize("alpn", [tls.ALPN_PRESENT, tls.ALPN_BULK, "h2", None])
def test_without_a_certificate_nothing_comes(bulk: BulkServer, store, client, port, alpn: str | None) -> None:
    context = tls.joiner_context()
    if alpn is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.set_alpn_protocols([alpn])
    with socket.create_connection((HOST, port + 1)) as plain, context.wrap_socket(plain) as stream:
        stream.settimeout(WAIT_S)
        with contextlib.suppress(ssl.SSLError, ConnectionError):  # an alert or a reset is nothing, too
            assert stream.recv(1) == b""
    until(lambda: bulk.dropped == 1)
    assert len(store.admitted) == 0
    present(HOST, port, client)


@pytest.mark.parametrize("protocol", [ssl.TLSVersion.TLSv1_2])
def test_older_tls_is_refused(bulk: BulkServer, port, protocol: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = protocol
    with socket.create_connection((HOST, port + 1)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    until(lambda: bulk.dropped == 1)


def test_garbage_and_half_handshakes_are_counted_and_bounded(
    monkeypatch: pytest.MonkeyPatch, bulk: BulkServer, client: Credentials, port: int
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 0.3)
    garbage = b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"\x16\x03\x01", b""
    connections = [socket.create_connection((HOST, port + 1)) for _ in garbage]
    for connection, data in zip(connections, garbage, strict=True):
        connection.sendall(data)
    until(lambda: bulk.dropped == len(garbage))
    monkeypatch.undo()
    present(HOST, port, client)
    for connection in connections:
        connection.close()


def test_a_flood_of_unproven_connections_is_turned_away(
    monkeypatch: pytest.MonkeyPatch, bulk: BulkServer, client: Credentials, port: int
) -> None:
    monkeypatch.setattr(bulk_module, "UNPROVEN_LIMIT", 4)
    silent = [socket.create_connection((HOST, port + 1)) for _ in range(20)]
    until(lambda: bulk.dropped == 16)
    for connection in silent:
        connection.close()
    until(lambda: bulk.dropped == 20)
    present(HOST, port, client)


def test_a_foreign_authoritys_certificate_is_refused_on_both_sides(bulk, store, port) -> None:
    foreign = CertificateAuthority.create("lab").local("client-1", "grace", Role.CLIENT)
    with pytest.raises(AuthError, match="no certificate of this cluster's authority"):
        present(HOST, port, foreign)
    trusting = tls.client_context(foreign, tls.ALPN_PRESENT)
    trusting.verify_mode = ssl.CERT_NONE
    with tls.connect(HOST, port, trusting) as stream, pytest.raises((ssl.SSLError, ConnectionError)):
        stream.recv(1)
    tls.client_context.cache_clear()
    assert len(store.admitted) == 0


def test_a_client_that_poses_as_a_node_is_refused(authority, client, store, port) -> None:
    poser = BulkServer(HOST, port + 1, client, store)
    poser.start()
    try:
        with pytest.raises(AuthError, match="answers as a node, but its certificate says client"):
            present(HOST, port, client)
    finally:
        poser.close()


def test_a_revoked_or_expired_certificate_is_refused(bulk, authority, store, port, client) -> None:
    store.admitted.revoke(client.peer.serial)
    for call in (lambda: present(HOST, port, client), lambda: put_part(HOST, port, client, PART_HASH, b"x")):
        with pytest.raises(AuthError, match="is revoked"):
            call()
    keys_of_yesterday = authority.local("old", "old", Role.CLIENT, lifetime_s=2)
    until(lambda: keys_of_yesterday.peer.expired(time.time()))
    with pytest.raises(AuthError, match=r"(?i)expired"):  # by OpenSSL, or by us, whose clock is a little ahead
        present(HOST, port, keys_of_yesterday)


def test_the_open_transfers_of_who_is_revoked_are_cut_and_no_others(bulk, authority, port, client) -> None:
    other = authority.local("c2", "other", Role.CLIENT)
    sessions = {who: transfers.Session(HOST, port, who, tls.ALPN_BULK) for who in (client, other)}
    until(lambda: {client.peer.serial, other.peer.serial} <= set(bulk._open.values()))
    bulk.cut(client.peer.serial)
    sessions[client].stream.settimeout(WAIT_S)
    with contextlib.suppress(OSError):  # cut off rather than ended
        assert sessions[client].stream.recv(1) == b""
    until(lambda: client.peer.serial not in bulk._open.values())
    assert other.peer.serial in bulk._open.values()
    for session in sessions.values():
        session.stream.close()


def test_a_part_and_a_result_travel_whole(bulk, store, client, port) -> None:
    assert put_part(HOST, port, client, PART_HASH, PART)
    assert (store.folder / PART_HASH).read_bytes() == PART
    assert not put_part(HOST, port, client, PART_HASH, PART)  # the node has it
    assert get_result(HOST, port, client, PART_HASH, len(PART)) == PART
    assert bulk.dropped == 0


def test_a_kept_part_travels_whole_and_nodes_may_move_it(bulk, authority, store, client, port) -> None:
    other = authority.local("node-2", "bob", Role.NODE)
    assert put_part(HOST, port, client, PART_HASH, PART, keep=True)
    assert not put_part(HOST, port, other, PART_HASH, PART, keep=True)
    assert [path.name for path in store.folder.iterdir()] == [f"kept-{PART_HASH}"]  # and not among the others
    for peer in (client, other):
        file = io.BytesIO()
        get_kept(HOST, port, peer, PART_HASH, file)
        assert file.getvalue() == PART


def test_a_kept_part_is_not_for_those_who_only_look(bulk, authority, store, port) -> None:
    observer = authority.local("x", "eve", Role.OBSERVER)
    with pytest.raises(AuthError, match="may not move parts"):
        put_part(HOST, port, observer, PART_HASH, PART, keep=True)
    with pytest.raises(AuthError, match="may not move parts"):
        get_kept(HOST, port, observer, PART_HASH, io.BytesIO())


def test_a_kept_part_that_is_damaged_missing_or_misnamed_is_refused(bulk, store, client, port) -> None:
    (store.folder / f"kept-{PART_HASH}").write_bytes(b"rot")
    with pytest.raises(ProtocolError, match="other bytes than its hash says"):
        get_kept(HOST, port, client, PART_HASH, io.BytesIO())
    with pytest.raises(NoSuchTaskError, match="not kept here"):
        get_kept(HOST, port, client, "0" * 64, io.BytesIO())
    with pytest.raises(UsageError):
        get_kept(HOST, port, client, "in-1234", io.BytesIO())


def test_a_corrupted_part_is_refused_and_leaves_nothing(bulk, store, client, port) -> None:
    with pytest.raises(ProtocolError, match="other bytes than its hash says"):
        put_part(HOST, port, client, PART_HASH, PART[:-1] + b"?")
    assert list(store.folder.iterdir()) == []
    assert put_part(HOST, port, client, PART_HASH, PART)


def test_a_part_that_breaks_off_leaves_nothing(bulk, store, client, port) -> None:
    with bulk_module.transfers.Session(HOST, port, client, tls.ALPN_BULK) as session:
        assert session.ask(bulk_module.transfers.Put(PART_HASH, len(PART))) == len(PART)
        session.stream.sendall(PART[: 1 << 20])
        until(lambda: list(store.folder.iterdir()))
    until(lambda: not list(store.folder.iterdir()))
    until(lambda: bulk.dropped == 1)


def test_a_disk_that_cannot_take_a_part_says_so(bulk, store, client, port) -> None:
    store.part_wanted = lambda peer, hash_, size: _Unlinkable("/dev/full")
    with pytest.raises(StateError, match="No space left"):
        put_part(HOST, port, client, PART_HASH, PART)


class _Unlinkable(PosixPath):
    """/dev/full, which a test must not remove."""

    def unlink(self, missing_ok: bool = False) -> None:
        assert missing_ok


@pytest.mark.parametrize("role", [Role.OBSERVER, Role.NODE])
def test_a_role_that_may_not_submit_moves_nothing(bulk, authority, store, port, role: Role) -> None:
    (store.folder / "result").write_bytes(b"secret")
    peer = authority.local("x", "eve", role)
    with pytest.raises(AuthError, match="may not move parts"):
        put_part(HOST, port, peer, PART_HASH, PART)
    with pytest.raises(AuthError, match="may not move parts"):
        get_result(HOST, port, peer, "result", 6)
    assert [path.name for path in store.folder.iterdir()] == ["result"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", ".", "a/b", "a\0b"])
def test_a_result_outside_its_folder_cannot_be_named(bulk, client, port, name: str) -> None:
    with pytest.raises(UsageError, match="result's name"):
        get_result(HOST, port, client, name, 6)


def test_a_missing_or_other_result_says_so(bulk, store, client, port) -> None:
    with pytest.raises(NoSuchTaskError, match="not kept here"):
        get_result(HOST, port, client, "nothing", 6)
    (store.folder / "short").write_bytes(b"four")
    with pytest.raises(ProtocolError, match="has 4 bytes instead of 6"):
        get_result(HOST, port, client, "short", 6)


def test_malformed_and_oversized_requests_are_refused(bulk, client, port) -> None:
    for data, sentence in ((b"\xff" * 50, "malformed"), (bytes(tls.MESSAGE_LIMIT_BYTES + 1), "over the limit")):
        with bulk_module.transfers.Session(HOST, port, client, tls.ALPN_BULK) as session:
            session.stream.sendall(len(data).to_bytes(4, "big") + data[:100])
            with pytest.raises(ProtocolError, match=sentence):
                session.outcome()
    until(lambda: bulk.dropped == 2)


def test_nobody_there_and_port_taken(bulk, client, node, store, port) -> None:
    with pytest.raises(UnreachableError, match="No KOS node answers"):
        present(HOST, 1, client)
    with pytest.raises(PortTakenError, match="the bulk port, is in use"):
        BulkServer(HOST, port + 1, node, store)


def test_closing_ends_open_connections(node, store, client, port) -> None:
    server = BulkServer(HOST, port + 1, node, store)
    server.start()
    with bulk_module.transfers.Session(HOST, port, client, tls.ALPN_BULK) as session:
        server.close()
        session.stream.settimeout(WAIT_S)
        assert session.stream.recv(1) == b""
    with pytest.raises(UnreachableError):
        present(HOST, port, client)
