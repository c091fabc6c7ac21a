"""Whom a part of an engine asks for its certificate, and what it has then."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from kos_cluster.errors import AuthError, UnreachableError, UsageError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.engines import EngineCertificate
from kos_cluster.net.wire import SyncData
from kos_cluster.tasks import enginekeys
from kos_cluster.tasks.enginekeys import certified

AUTHORITY = CertificateAuthority.create("lab")


class Cluster:
    """Those that can open the authority's key are `able`; "" is who is taken for the coordinator."""

    def __init__(self, *able: str, error: Exception | None = None) -> None:
        self.able = able
        self.error = error or UnreachableError("This node does not hold the authority's key.")
        self.asked: list[str] = []

    def heard(self) -> SyncData:
        return SyncData(0, None, {}, voters=["n2", "n3"])

    def request(self, question: Any, kind: type, *, node: str) -> Any:
        self.asked.append(node)
        if node not in self.able:
            raise self.error
        engine = AUTHORITY.of_engine(question.engine)
        issued = engine.issue(question.request_pem, question.host, "ada@desk")
        return EngineCertificate(engine.certificate_pem.decode(), issued.decode(), engine.secret)


def test_the_coordinator_is_asked_and_the_key_is_the_certificates():
    cluster = Cluster("")
    held = certified(cluster, "dask", "10.1.2.3")
    assert cluster.asked == [""]
    certificate = x509.load_pem_x509_certificate(held.certificate.encode())
    key = serialization.load_pem_private_key(held.key.encode(), None)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(held.authority.encode()))
    assert held.secret == AUTHORITY.of_engine("dask").secret
    assert held.key not in repr(held) and held.secret not in repr(held)


def test_while_another_takes_over_those_that_decide_are_asked_in_turn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(enginekeys, "PAUSE_S", 0.0)
    cluster = Cluster("n3")
    certified(cluster, "dask", "10.1.2.3")
    assert cluster.asked == ["", "n2", "n3"]
    monkeypatch.setattr(enginekeys, "FAILOVER_S", 0.0)
    with pytest.raises(UnreachableError, match="does not hold"):
        certified(Cluster(), "dask", "10.1.2.3")


def test_a_refusal_is_final():
    cluster = Cluster(error=AuthError("The role observer of eve may not use engines."))
    with pytest.raises(AuthError, match="may not use engines"):
        certified(cluster, "dask", "10.1.2.3")
    with pytest.raises(UsageError, match="'a b' cannot be the name of an engine"):
        certified(cluster, "a b", "10.1.2.3")
    assert cluster.asked == [""]
