"""Signed statements: by a certificate of this cluster, for this purpose, unchanged, and not by who is revoked."""

from __future__ import annotations

import pickle

import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError
from kos_cluster.net.authority import PEER_LIFETIME_S, CertificateAuthority
from kos_cluster.net.identity import Credentials
from kos_cluster.net.signatures import SIGNATURE_BYTES, Signer, UnknownSignerError, Verifier

AUTHORITY = CertificateAuthority.create("lab")


def credentials(id: str = "a1", authority: CertificateAuthority = AUTHORITY) -> Credentials:
    return authority.local(id, f"node-{id}", Role.NODE)


def verifier(*revoked: int, purpose: str = "swim", **more: object) -> Verifier:
    return Verifier("lab", AUTHORITY.certificate_pem, purpose, revoked.__contains__, **more)


def test_a_statement_tells_who_signed_it():
    signer, verifying = Signer(credentials(), "swim"), verifier()
    signature = signer.sign(b"incarnation 7")
    assert len(signature) == SIGNATURE_BYTES
    with pytest.raises(UnknownSignerError) as unknown:
        verifying.verify(b"incarnation 7", signature)
    assert pickle.loads(pickle.dumps(unknown.value)).serial == unknown.value.serial
    learned = verifying.learn(signer.certificate_der)
    assert learned.serial == unknown.value.serial
    assert verifying.verify(b"incarnation 7", signature) == learned
    assert learned.id == "a1"
    assert verifying.certificate(learned.serial) == signer.certificate_der


def test_what_was_changed_is_refused():
    signer, verifying = Signer(credentials(), "swim"), verifier()
    verifying.learn(signer.certificate_der)
    signature = signer.sign(b"incarnation 7")
    with pytest.raises(AuthError, match="not signed by it"):
        verifying.verify(b"incarnation 8", signature)
    for place in range(SIGNATURE_BYTES):
        changed = signature[:place] + bytes((signature[place] ^ 1,)) + signature[place + 1 :]
        with pytest.raises(AuthError):
            verifying.verify(b"incarnation 7", changed)
    with pytest.raises(AuthError, match="bytes instead of"):
        verifying.verify(b"incarnation 7", signature[:-1])


def test_one_node_cannot_sign_in_the_name_of_another():
    mine, theirs, verifying = Signer(credentials("a1"), "swim"), Signer(credentials("b2"), "swim"), verifier()
    for signer in (mine, theirs):
        verifying.learn(signer.certificate_der)
    forged = theirs.sign(b"")[:8] + mine.sign(b"x")[8:]
    with pytest.raises(AuthError, match="in the name of node-b2"):
        verifying.verify(b"x", forged)


def test_a_signature_for_one_purpose_serves_no_other():
    signer, verifying = Signer(credentials(), "raft"), verifier(purpose="swim")
    verifying.learn(signer.certificate_der)
    with pytest.raises(AuthError, match="not signed by it"):
        verifying.verify(b"x", signer.sign(b"x"))


def test_certificates_of_others_are_not_learned():
    for authority in (CertificateAuthority.create("lab"), CertificateAuthority.create("other")):
        with pytest.raises(AuthError):
            verifier().learn(Signer(credentials("a1", authority), "swim").certificate_der)
    with pytest.raises(AuthError):
        verifier().learn(b"no certificate")


def test_revocation_and_expiry_count_at_each_look():
    denied: set[int] = set()
    now = [0.0]
    own = credentials()
    now[0] = own.peer.not_after - PEER_LIFETIME_S
    verifying = Verifier("lab", AUTHORITY.certificate_pem, "swim", denied.__contains__, clock=lambda: now[0])
    signer = Signer(own, "swim")
    verifying.learn(signer.certificate_der)
    verifying.verify(b"x", signer.sign(b"x"))
    denied.add(own.peer.serial)
    with pytest.raises(AuthError, match="revoked"):
        verifying.verify(b"x", signer.sign(b"x"))
    with pytest.raises(AuthError, match="revoked"):
        verifying.learn(signer.certificate_der)
    denied.clear()
    now[0] = own.peer.not_after
    with pytest.raises(AuthError, match="expired"):
        verifying.verify(b"x", signer.sign(b"x"))


def test_the_certificates_kept_are_bounded_and_the_least_used_goes():
    signers = [Signer(credentials(f"n{number}"), "swim") for number in range(3)]
    verifying = verifier(limit=2)
    verifying.learn(signers[0].certificate_der)
    verifying.learn(signers[1].certificate_der)
    verifying.verify(b"x", signers[0].sign(b"x"))
    verifying.learn(signers[2].certificate_der)
    verifying.verify(b"x", signers[0].sign(b"x"))
    with pytest.raises(UnknownSignerError):
        verifying.verify(b"x", signers[1].sign(b"x"))
