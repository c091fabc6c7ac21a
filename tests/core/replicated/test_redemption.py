"""Tokens, redeemed by agreement: one admission a token, whoever asks, in one step with name and certificates."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated.replies import Admission, Refusal
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.roles import Role
from kos_cluster.core.tokens import REMEMBER_S, secret_sha256
from tests.core.replicated.log import START_S, YEAR_S, Log, founded, redeem


def minted(role: Role = Role.NODE, ttl_s: float = 600.0) -> Log:
    log = founded()
    log.reply(c.MintToken("t", secret_sha256("secret"), role, ttl_s))
    return log


def test_a_node_token_admits_a_node_and_its_client():
    log = minted()
    admission = log.reply(redeem("t", "j", 50))
    assert isinstance(admission, Admission) and admission.node is not None
    assert (admission.role, admission.node.name, admission.node.serial) == (Role.NODE, "worker", 100)
    assert (admission.client.role, admission.client.came_with) == (Role.CLIENT, admission.node.id)
    assert log.state.identities.certificate(100) == admission.node
    assert log.state.identities.certificate(101) == admission.client


@pytest.mark.parametrize("role", [Role.CLIENT, Role.OBSERVER, Role.ADMIN])
def test_other_tokens_admit_a_client_of_their_role(role: Role):
    log = minted(role)
    admission = log.reply(redeem("t", "j", 50))
    assert admission.node is None and admission.client.role is role
    assert log.state.identities.certificate(100) is None


@given(order=st.permutations(range(4)))
def test_of_redemptions_by_several_joiners_exactly_one_wins(order: list[int]):
    log = minted()
    replies = [log.apply(redeem("t", f"joiner{number}", 50 + number)).reply for number in order]
    assert isinstance(replies[0], Admission)
    assert all(isinstance(reply, Refusal) and "used already" in reply.message for reply in replies[1:])
    nodes = [i for i in log.state.identities.identities() if i.id.startswith("node")]
    assert [i.id for i in nodes] == [f"node{50 + order[0]}"]


def test_two_coordinators_with_one_joiner_make_one_admission():
    for first, second in permutations((50, 60)):
        log = minted()
        admission = log.reply(redeem("t", "j", first))
        assert log.reply(redeem("t", "j", second)) == admission
        assert log.state.identities.certificate(2 * second) is None
        assert ClusterState.restore(log.state.snapshot()).snapshot() == log.state.snapshot()
        restored = Log()
        restored.state, restored.now_s = ClusterState.restore(log.state.snapshot()), log.now_s
        assert restored.reply(redeem("t", "j", second)) == admission


def test_a_wrong_secret_an_unknown_id_and_a_late_joiner_are_refused_with_the_tokens_sentences():
    log = minted()
    wrong = redeem("t", "j", 50)
    wrong = msgspec.structs.replace(wrong, secret_sha256="0" * 64)
    assert "not one of this cluster's" in log.refused(wrong).message
    assert "not one of this cluster's" in log.refused(redeem("u", "j", 50)).message
    assert "expired" in log.refused(redeem("t", "j", 50), START_S + 600).message


def test_the_same_joiner_with_a_wrong_secret_gets_nothing_either():
    log = minted()
    log.reply(redeem("t", "j", 50))
    stolen = redeem("t", "j", 50)
    stolen = msgspec.structs.replace(stolen, secret_sha256="0" * 64)
    assert log.refused(stolen).error == "JoinError"


def test_what_is_refused_does_not_use_the_token_up():
    log = minted()
    taken = redeem("t", "j", 50, node_name="name-n1", insist=True)
    assert "Another node of the cluster is named name-n1" in log.refused(taken).message
    assert "for the role 'node', not 'admin'" in log.refused(redeem("t", "j", 50, role="admin")).message
    assert log.refused(redeem("t", "", 50)).error == "UsageError"
    assert log.refused(redeem("t", "j", 50, node_name="a/b")).error == "UsageError"
    assert log.refused(redeem("t", "j", 1)).error == "JoinError"  # serials 2 and 3 are given
    log.reply(redeem("t", "j", 50))


def test_a_taken_name_gives_the_next_free_one():
    log = minted()
    log.reply(c.MintToken("u", secret_sha256("secret"), Role.NODE, 600.0))
    first = log.reply(redeem("t", "j", 50, node_name="name-n1"))
    second = log.reply(redeem("u", "k", 60, node_name=""))
    assert (first.node.name, second.node.name) == ("node1", "node2")


def test_admissions_are_forgotten_with_their_tokens():
    log = minted()
    log.reply(redeem("t", "j", 50))
    assert len(log.state.redemptions.redemptions()) == 1
    later_s = START_S + 600 + REMEMBER_S
    assert later_s < START_S + YEAR_S
    log.reply(c.MintToken("u", secret_sha256("secret"), Role.NODE, 600.0), later_s)
    assert log.state.redemptions.redemptions() == []
    assert "not one of" in log.refused(redeem("t", "j", 50)).message


def test_no_secret_is_in_the_log_or_the_state():
    log = minted()
    assert b"secret\x00" not in log.state.snapshot()
    assert secret_sha256("secret").encode() in log.state.snapshot()
    assert log.state.redemptions.check("t", secret_sha256("secret"), START_S).role is Role.NODE


def test_a_bad_lifetime_is_refused():
    assert founded().refused(c.MintToken("t", "0" * 64, Role.NODE, 25 * 3600.0)).error == "UsageError"


@pytest.mark.parametrize(("id", "sha256"), [("", "0" * 64), ("x" * 65, "0" * 64), ("t", "secret"), ("t", "0" * 65)])
def test_a_malformed_token_is_refused(id: str, sha256: str):
    assert founded().refused(c.MintToken(id, sha256, Role.NODE, 60.0)).error == "UsageError"
