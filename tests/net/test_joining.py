"""Joining with a token: what a joiner gets, and each refusal's sentence."""

from __future__ import annotations

import dataclasses
import re
import time
from types import SimpleNamespace

import msgspec
import pytest

from kos_cluster.core.replicated import commands
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import secret_sha256
from kos_cluster.errors import AuthError, IncompatibleError, JoinError, ProtocolError, UnreachableError
from kos_cluster.net import bulk as bulk_module
from kos_cluster.net import joining, tls
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.bulk import BulkServer
from kos_cluster.net.joining import join
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.net.wire import WIRE_VERSION
from kos_cluster.node import certifying, machine
from tests.net.presented import present

HOST = "127.0.0.1"
VERSIONS = machine.versions()


@pytest.fixture
def token(authority, store) -> JoinToken:
    return minted(authority, store, Role.NODE)


def minted(authority, store, role: Role, ttl_s: float = 60) -> JoinToken:
    token = JoinToken.mint(authority.sha256)
    store.propose(commands.MintToken(token.id, secret_sha256(token.secret), role, ttl_s))
    return token


def join_here(port: int, token: JoinToken, cluster: str = "lab", versions=VERSIONS, role: str = ""):
    return join(HOST, port, token, cluster, versions=versions, name="m2", user="grace", role=role)


def test_a_node_token_yields_a_node_and_its_user(bulk: BulkServer, authority, store, token, port) -> None:
    joined = join_here(port, token)
    assert joined.node is not None
    assert (joined.node.peer.role, joined.node.peer.name) == (Role.NODE, "m2")
    assert (joined.client.peer.role, joined.client.peer.name) == (Role.CLIENT, "grace@m2")
    assert (joined.role, joined.node_name, joined.source_host) == (Role.NODE, "m2", HOST)
    assert (joined.ca_sha256, joined.bootstrap, joined.warnings) == (authority.sha256, ["127.0.0.1:7567"], [])
    present(HOST, port, joined.client)
    assert store.admitted.get(joined.client.curve_public) == joined.client.peer
    assert bulk.dropped == 0


@pytest.mark.parametrize("role", [Role.CLIENT, Role.OBSERVER, Role.ADMIN])
def test_another_token_yields_that_role_alone(bulk, authority, store, port, role: Role) -> None:
    joined = join_here(port, minted(authority, store, role), role=role.value)
    assert joined.node is None
    assert joined.client.peer.role is role


def test_a_used_token_is_refused(bulk, token, port) -> None:
    join_here(port, token)
    with pytest.raises(JoinError, match="was used already"):
        join_here(port, token)


def test_a_token_does_not_outlive_its_time_because_the_cluster_was_down(
    bulk, authority, store, port, monkeypatch
) -> None:
    token = minted(authority, store, Role.CLIENT, ttl_s=1)
    other = minted(authority, store, Role.CLIENT, ttl_s=7200)
    now_s = time.time() + 3700
    monkeypatch.setattr(certifying, "time", SimpleNamespace(time=lambda: now_s))
    store.agreed.stood_still_s = 3700
    with pytest.raises(JoinError, match="has expired"):
        join_here(port, token, role="client")
    assert join_here(port, other, role="client").client.peer.role is Role.CLIENT


def test_an_expired_token_is_refused(bulk, authority, store, port) -> None:
    token = minted(authority, store, Role.NODE, ttl_s=1)
    late = commands.encode(commands.Proposal(time.time() + 10, commands.Tick()))
    store.agreed.state.apply(store.agreed.state.applied_index + 1, late)
    with pytest.raises(JoinError, match="has expired"):
        join_here(port, token)


def test_a_wrong_secret_is_refused_and_the_right_one_still_works(bulk, token, port) -> None:
    with pytest.raises(JoinError, match="not one of this cluster's"):
        join_here(port, dataclasses.replace(token, secret="0" * 32))
    join_here(port, token)


def test_another_clusters_token_is_refused_before_anything_is_sent(bulk, store, token, port) -> None:
    other = dataclasses.replace(token, ca_sha256="0" * 64)
    with pytest.raises(JoinError, match=r"certificate authority is another one\. Nothing was sent"):
        join_here(port, other)
    assert store.asked_to_join == 0


def test_a_wrong_cluster_name_is_refused_with_the_right_one(bulk, store, token, port) -> None:
    with pytest.raises(JoinError, match="is named 'lab', not 'attic'") as caught:
        join_here(port, token, cluster="attic")
    assert "kos cluster join lab" in caught.value.hint
    assert store.asked_to_join == 0


def test_a_client_that_poses_as_a_node_never_sees_the_secret(client, store, token, port) -> None:
    poser = BulkServer(HOST, port + 1, client, store)
    poser.start()
    try:
        with pytest.raises(JoinError, match="could not prove that it is one"):
            join_here(port, token)
        assert store.asked_to_join == 0
    finally:
        poser.close()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"python": "2.7.1"}, rf"runs Python 2\.7\.1, the cluster Python {re.escape(VERSIONS.python)}"),
        ({"wire": WIRE_VERSION + 1}, rf"wire version {WIRE_VERSION + 1} .* the cluster {WIRE_VERSION}"),
    ],
)
def test_versions_that_cannot_work_together_are_both_named(bulk, token, port, changes, sentence: str) -> None:
    with pytest.raises(IncompatibleError, match=sentence):
        join_here(port, token, versions=msgspec.structs.replace(VERSIONS, **changes))
    join_here(port, token)  # the token was not used up


def test_a_patch_difference_only_warns(bulk, token, port) -> None:
    other = ".".join((*VERSIONS.python.split(".")[:2], "99"))
    joined = join_here(port, token, versions=msgspec.structs.replace(VERSIONS, python=other))
    assert joined.warnings == [f"The joining machine has Python {other}, the cluster {VERSIONS.python}."]


def test_a_role_that_the_token_is_not_for_is_refused(bulk, token, port) -> None:
    with pytest.raises(JoinError, match="is for the role 'node', not 'admin'"):
        join_here(port, token, role="admin")
    join_here(port, token)


def test_a_node_that_does_not_coordinate_sends_the_joiner_on(
    bulk, authority, store, token, port, free_pair, tmp_path
) -> None:
    other = type(store)(authority, tmp_path)
    other.elsewhere = (HOST, port)
    second_port = free_pair()
    second = BulkServer(HOST, second_port + 1, authority.local("n2", "bob", Role.NODE), other)
    second.start()
    try:
        assert join_here(second_port, token).node_name == "m2"
        assert (other.asked_to_join, store.asked_to_join) == (0, 1)
        store.elsewhere = (HOST, second_port)  # now each points at the other
        with pytest.raises(JoinError, match="do not agree on which of them coordinates"):
            join_here(second_port, minted(authority, store, Role.NODE))
        other.elsewhere = (HOST, free_pair())  # where nobody is
        with pytest.raises(UnreachableError, match=rf"{second_port} does not coordinate.*'kos up'"):
            join_here(second_port, minted(authority, store, Role.NODE))
    finally:
        second.close()


def test_a_curve_key_of_somebody_else_is_not_certified(bulk, store, token, port, monkeypatch) -> None:
    monkeypatch.setattr(joining, "_proof", lambda shared, request_pem, real=joining._proof: bytes(32))
    asked = joining.Asked(joining.Keys.make().request_pem, b"x" * 32)
    monkeypatch.setattr(joining, "_asked", lambda keys, challenge: asked)
    with pytest.raises(JoinError, match="did not prove that it has the CURVE key"):
        join_here(port, token)
    assert store.asked_to_join == 0


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"\xff" * 64, "malformed"), (b"", "malformed"), (bytes(tls.MESSAGE_LIMIT_BYTES + 1), "over the limit")],
)
def test_malformed_join_requests_are_refused(bulk, store, client, port, data: bytes, sentence: str) -> None:
    with tls.connect(HOST, port, tls.joiner_context()) as stream:
        tls.receive_message(stream)  # the opening
        stream.sendall(len(data).to_bytes(4, "big") + data[:64])
        with pytest.raises(ProtocolError, match=sentence):
            raise joining.from_wire(msgspec.msgpack.decode(tls.receive_message(stream))["error"])
    assert store.asked_to_join == 0
    present(HOST, port, client)


def test_too_many_joins_of_one_source_are_turned_away(bulk, store, token, port, monkeypatch) -> None:
    monkeypatch.setattr(bulk_module, "JOINS_LIMIT", 2)
    wrong = dataclasses.replace(token, secret="0" * 32)
    for _ in range(2):
        with pytest.raises(JoinError, match="not one of"):
            join_here(port, wrong)
    with pytest.raises(JoinError, match="More than 2 joins"):
        join_here(port, token)
    assert store.asked_to_join == 2


def test_nobody_there(token, port) -> None:
    with pytest.raises(UnreachableError, match="No KOS node answers"):
        join_here(port, token)


def test_certificates_for_other_keys_are_not_taken(authority) -> None:
    mine, other = joining.Keys.make(), joining.Keys.make()
    pem = authority.issue(other.request_pem, "x", "x", Role.CLIENT)
    with pytest.raises(AuthError, match="other keys"):
        mine.certified(pem, authority.certificate_pem, "lab")
    with pytest.raises(AuthError, match="not issued"):
        other.certified(pem, CertificateAuthority.create("lab").certificate_pem, "lab")
