"""The authority's key among voters: sealed copies, and renewals."""

from __future__ import annotations

import asyncio
import time

import pytest
from cryptography import x509

from kos_cluster.core.replicated import commands
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, UnreachableError, UsageError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.engineauthority import make_request
from kos_cluster.net.engines import CertifyEngine, EngineCertificate
from kos_cluster.net.identity import Credentials
from kos_cluster.node.certifying import Certifier, certificate_of, seals
from tests.net.conftest import Alone, OneMember

AUTHORITY = CertificateAuthority.create("lab")


class Lab:
    """Two nodes of one agreement; the first has the authority's key."""

    def __init__(self) -> None:
        self.first = AUTHORITY.local("n1", "desk", Role.NODE)
        self.second = AUTHORITY.local("n2", "rack", Role.NODE)
        self.agreed = Alone(self.first)
        certificates = (certificate_of(self.first), certificate_of(self.second))
        self.propose(commands.FoundCluster("lab", AUTHORITY.certificate_pem, certificates))
        self.propose(seals(AUTHORITY, {"n1": self.first.curve_public}))

    def propose(self, command: commands.Command) -> object:
        return asyncio.run(self.agreed.propose(command))

    def certifier(self, credentials: Credentials) -> Certifier:
        return Certifier(credentials, self.agreed, OneMember())


def renewed(lab: Lab, by: Credentials) -> Credentials:
    pem = asyncio.run(lab.certifier(by).renew(lab.second.peer, lab.second.renewal_request()))
    return lab.second.renewed(pem)


def test_a_node_without_a_copy_can_certify_nothing_until_it_is_sealed_one() -> None:
    lab = Lab()
    with pytest.raises(UnreachableError, match="does not hold the authority's key"):
        renewed(lab, lab.second)
    asyncio.run(lab.certifier(lab.first).seal_to(["n1", "n2"]))
    assert renewed(lab, lab.second).peer.id == "n2"
    asyncio.run(lab.certifier(lab.second).seal_to(["n2"]))  # the founder may go
    assert not lab.certifier(lab.first).can_open
    assert renewed(lab, lab.second).peer.id == "n2"


def test_a_copy_opens_for_its_holder_alone() -> None:
    lab = Lab()
    stolen = lab.agreed.state.seals.get("n1")
    assert stolen is not None
    lab.propose(commands.SealAuthority({"n2": stolen}))
    with pytest.raises(AuthError, match="does not open for n2"):
        renewed(lab, lab.second)


def test_a_renewal_is_of_the_same_keys_name_and_role_and_ends_the_old_one_when_confirmed() -> None:
    lab = Lab()
    new = renewed(lab, lab.first)
    old, now = lab.second.peer, new.peer
    assert (now.id, now.name, now.role, now.curve_public) == (old.id, old.name, old.role, old.curve_public)
    assert now.serial != old.serial
    identities = lab.agreed.state.identities
    assert identities.denied(old.serial) is None, "both hold until the new one is used"
    lab.propose(commands.ConfirmCertificate("n2", now.serial))
    assert identities.denied(old.serial) is not None
    with pytest.raises(AuthError, match="is denied"):
        renewed(lab, lab.first)  # it still shows the old one


def test_another_key_is_not_certified_in_a_renewal() -> None:
    lab = Lab()
    other = AUTHORITY.local("x", "x", Role.NODE)
    pem = asyncio.run(lab.certifier(lab.first).renew(lab.second.peer, other.renewal_request()))
    with pytest.raises(AuthError, match="other keys"):
        lab.second.renewed(pem)


def test_a_renewed_certificate_lasts_a_year() -> None:
    lab = Lab()
    assert renewed(lab, lab.first).peer.not_after == pytest.approx(time.time() + 365 * 86400, abs=60)


def certified(lab: Lab, by: Credentials, engine: str = "dask") -> EngineCertificate:
    """Of the second node's machine; that it may submit is looked at before (`test_roles`)."""
    asked = CertifyEngine(engine, make_request()[1], "10.1.2.3")
    return lab.certifier(by).certify_engine(lab.second.peer, asked)


def test_after_a_failover_the_successor_certifies_for_the_same_engine() -> None:
    lab = Lab()
    with pytest.raises(UnreachableError, match="does not hold the authority's key"):
        certified(lab, lab.second)
    before = certified(lab, lab.first)
    asyncio.run(lab.certifier(lab.first).seal_to(["n2"]))
    after = certified(lab, lab.second)
    roots = [x509.load_pem_x509_certificate(each.authority_pem.encode()) for each in (before, after)]
    assert roots[0].tbs_certificate_bytes == roots[1].tbs_certificate_bytes
    assert before.secret == after.secret != certified(lab, lab.second, "ray").secret
    assert len(bytes.fromhex(before.secret)) == 32
    for issued in (before, after):
        for root in roots:
            x509.load_pem_x509_certificate(issued.certificate_pem.encode()).verify_directly_issued_by(root)


def test_who_is_denied_gets_no_certificate_of_an_engine_and_a_bad_name_is_none() -> None:
    lab = Lab()
    with pytest.raises(UsageError, match="'a b' cannot be the name of an engine"):
        certified(lab, lab.first, "a b")
    lab.propose(commands.RemoveIdentity("n2", "removed by admin"))
    with pytest.raises(AuthError, match="certificate of rack is denied"):
        certified(lab, lab.first)
