"""Identities: unique names and serials, renewal without a gap, and a deny-list that lasts as long as it must."""

from __future__ import annotations

import pytest

from kos_cluster.core.replicated import commands as c
from kos_cluster.core.replicated import identities
from kos_cluster.core.replicated.identities import EXPIRED_KEPT_S, REVOKED_KEPT_S
from kos_cluster.core.replicated.replies import CertificatesDenied, SealsChanged
from kos_cluster.core.roles import Role
from tests.core.replicated.log import KEY, START_S, YEAR_S, Log, certificate, founded

END_S = START_S + YEAR_S


def renew(id: str, old: int, new: int, end_s: float = END_S + 100) -> c.RenewCertificate:
    return c.RenewCertificate(id, old, new, end_s, KEY)


def valid(log: Log) -> list[int]:
    return sorted(serial for i in log.state.identities.identities() for serial in i.certificates)


def denied(log: Log) -> list[int]:
    return sorted(entry.serial for entry in log.state.identities.revoked())


def test_a_renewal_keeps_both_until_it_is_confirmed():
    log = founded()
    assert log.reply(renew("n1", 1, 11)).serials == ()
    assert valid(log) == [1, 2, 3, 11] and denied(log) == []
    outcome = log.apply(c.ConfirmCertificate("n1", 11))
    assert outcome.changes == (CertificatesDenied((1,)),)
    assert valid(log) == [2, 3, 11] and denied(log) == [1]
    identity = log.state.identities.get("n1")
    assert identity is not None and identity.successor == 0
    entry = log.state.identities.denied(1)
    assert entry is not None and (entry.reason, entry.name) == ("replaced", "name-n1")
    found = log.state.identities.certificate(11)
    assert found is not None and (found.name, found.role) == ("name-n1", Role.NODE)
    assert log.state.identities.certificate(1) is None


def test_a_renewal_that_was_not_confirmed_is_replaced_by_the_next():
    log = founded()
    log.reply(renew("n1", 1, 11))
    assert log.reply(renew("n1", 1, 12)).serials == (11,)
    assert valid(log) == [1, 2, 3, 12]
    assert log.reply(renew("n1", 12, 13)).serials == (1,)  # who renews by 12 has it
    assert valid(log) == [2, 3, 12, 13]


def test_only_the_holder_of_a_valid_certificate_renews():
    log = founded()
    assert "not one that this cluster admitted" in log.refused(renew("n1", 99, 11)).message
    assert log.refused(renew("n1", 2, 11)).error == "AuthError"
    log.reply(c.RemoveIdentity("n1", "removed by ann"))
    refusal = log.refused(renew("n1", 1, 11))
    assert "is denied: removed by ann" in refusal.message
    assert log.refused(c.ConfirmCertificate("n1", 1)).error == "AuthError"


@pytest.mark.parametrize("serial", [1, 2, 11])
def test_a_serial_is_never_given_twice(serial: int):
    log = founded()
    log.reply(renew("n1", 1, 11))
    log.reply(c.ConfirmCertificate("n1", 11))
    assert "serial" in log.refused(renew("n2", 2, serial)).message


def test_a_certificate_that_ended_or_lives_for_ever_is_not_entered():
    log = founded()
    for end_s in (START_S, START_S + 11 * YEAR_S, float("inf"), float("nan")):
        assert log.refused(renew("n1", 1, 11, end_s)).error == "UsageError"


def test_what_is_no_key_or_id_is_not_entered():
    log = founded()
    assert "CURVE key has 3 bytes" in log.refused(c.RenewCertificate("n1", 1, 11, END_S, b"key")).message
    for strange in (certificate(1, "a/b", "name"), certificate(1, "a", "name", came_with="x" * 65)):
        assert Log().refused(c.FoundCluster("lab", b"ca", (strange,))).error == "UsageError"


def test_removal_denies_all_certificates_and_the_clients_that_came_along():
    log = Log()
    log.reply(
        c.FoundCluster(
            "lab",
            b"ca",
            (
                certificate(1, "n1"),
                certificate(2, "u1", role=Role.CLIENT, came_with="n1"),
                certificate(3, "u2", role=Role.CLIENT),
                certificate(4, "n2"),
            ),
        )
    )
    log.reply(renew("n1", 1, 11))
    outcome = log.apply(c.RemoveIdentity("n1", "removed by ann"))
    assert outcome.changes == (CertificatesDenied((1, 11, 2)),)
    assert denied(log) == [1, 2, 11] and valid(log) == [3, 4]
    assert log.refused(c.RemoveIdentity("n1", "again")).error == "NoSuchNodeError"


def test_a_removed_nodes_name_is_free_again():
    log = founded()
    assert log.state.identities.node_name("name-n1", insist=False) == "node1"
    log.reply(c.RemoveIdentity("n1", "left"))
    assert log.state.identities.node_name("name-n1", insist=False) == "name-n1"


def test_the_deny_list_forgets_what_expired_and_not_before():
    log = founded()
    log.reply(c.RemoveIdentity("n1", "left"))
    log.reply(c.Tick(), END_S + REVOKED_KEPT_S - 1)
    assert denied(log) == [1]
    log.reply(c.Tick(), END_S + REVOKED_KEPT_S)
    assert denied(log) == []


def test_an_identity_is_forgotten_long_after_its_last_certificate_expired():
    log = founded()
    log.reply(renew("n1", 1, 11, END_S + 1000))
    log.reply(c.Tick(), END_S + EXPIRED_KEPT_S)
    assert valid(log) == [11]
    log.reply(c.Tick(), END_S + EXPIRED_KEPT_S + 1000)
    assert log.state.identities.identities() == []
    assert log.state.identities.node_name("name-n1", insist=True) == "name-n1"


def test_numbers_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identities, "REVOKED_LIMIT", 1)
    log = founded()
    log.reply(c.RemoveIdentity("n1", "left"))
    assert log.refused(c.RemoveIdentity("n2", "left")).error == "LimitError"
    log.reply(renew("n2", 2, 12))
    assert log.refused(c.ConfirmCertificate("n2", 12)).error == "LimitError"
    assert log.refused(renew("n2", 2, 13)).error == "LimitError"
    monkeypatch.setattr(identities, "IDENTITIES_LIMIT", 2)
    assert Log().refused(c.FoundCluster("lab", b"ca", tuple(certificate(n, f"n{n}") for n in (1, 2, 3)))).error == (
        "LimitError"
    )


def test_founding_with_doubles_is_refused_as_a_whole():
    for twins in (
        (certificate(1, "n1"), certificate(1, "n2")),
        (certificate(1, "n1"), certificate(2, "n1")),
        (certificate(1, "n1", "twin"), certificate(2, "n2", "twin")),
        (certificate(1, "n1"), certificate(2, "n2", "bad name")),
    ):
        Log().refused(c.FoundCluster("lab", b"ca", twins))


# ---- the sealed authority


def test_the_authority_is_sealed_to_nodes_only_and_always_to_one():
    log = founded()
    outcome = log.apply(c.SealAuthority({"n2": b"two", "n1": b"one"}))
    assert outcome.changes == (SealsChanged(),)
    assert log.state.seals.snapshot() == {"n1": b"one", "n2": b"two"}
    assert log.refused(c.SealAuthority({})).error == "UsageError"
    assert log.refused(c.SealAuthority({"u1": b"x"})).error == "NoSuchNodeError"
    assert log.refused(c.SealAuthority({"n1": b""})).error == "LimitError"
    assert log.refused(c.SealAuthority({"n1": b"x" * 4097})).error == "LimitError"


def test_a_removed_nodes_copy_is_dropped_but_never_the_last():
    log = founded()
    log.reply(c.SealAuthority({"n1": b"one", "n2": b"two"}))
    outcome = log.apply(c.RemoveIdentity("n1", "left"))
    assert SealsChanged() in outcome.changes
    assert log.state.seals.snapshot() == {"n2": b"two"}
    assert "only copy of the authority's key" in log.refused(c.RemoveIdentity("n2", "left")).message
