"""Certificates: what a node accepts, and what it says when it does not; credentials on disk."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, LimitError, StateError, UsageError
from kos_cluster.net import admission
from kos_cluster.net.admission import Admitted
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.identity import CURVE_KEY_OID, Credentials, Keys, Peer, verify_peer
from kos_cluster.net.jointoken import JoinToken


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def test_a_certificate_states_its_peer(authority: CertificateAuthority) -> None:
    keys = Keys.make()
    pem = authority.issue(keys.request_pem, "id-7", "turing", Role.OBSERVER, lifetime_s=3600)
    peer = verify_peer(der(pem), authority.certificate_pem, "lab")
    assert (peer.cluster, peer.id, peer.name, peer.role) == ("lab", "id-7", "turing", Role.OBSERVER)
    assert peer.curve_public == keys.curve_public
    assert time.time() < peer.not_after <= time.time() + 3600


def test_a_foreign_authoritys_certificate_is_refused(authority: CertificateAuthority) -> None:
    foreign = CertificateAuthority.create("lab").local("node-1", "ada", Role.NODE)
    with pytest.raises(AuthError, match="not issued by the authority"):
        verify_peer(der(foreign.cert_pem), authority.certificate_pem, "lab")


def test_another_cluster_or_time_is_refused(authority: CertificateAuthority, client: Credentials) -> None:
    with pytest.raises(AuthError, match="is for cluster 'lab', not 'attic'"):
        verify_peer(der(client.cert_pem), authority.certificate_pem, "attic")
    with pytest.raises(AuthError, match="has expired"):
        verify_peer(der(client.cert_pem), authority.certificate_pem, "lab", now=client.peer.not_after)
    with pytest.raises(AuthError, match="not valid yet"):
        verify_peer(der(client.cert_pem), authority.certificate_pem, "lab", now=0)


def test_the_authoritys_own_certificate_is_nobodys_identity(authority: CertificateAuthority) -> None:
    with pytest.raises(AuthError):
        verify_peer(der(authority.certificate_pem), authority.certificate_pem, "lab")
    with pytest.raises(AuthError):
        verify_peer(b"garbage", authority.certificate_pem, "lab")


@pytest.mark.parametrize("curve", [b"", b"x" * 39, b'"' * 40, b"#" * 40])
def test_a_request_without_a_good_curve_key_is_refused(authority: CertificateAuthority, curve: bytes) -> None:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.UnrecognizedExtension(CURVE_KEY_OID, curve), critical=False)
        .sign(Ed25519PrivateKey.generate(), None)
        .public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(AuthError, match="malformed"):
        authority.issue(request, "id", "name", Role.NODE)


def test_a_request_that_was_tampered_with_is_refused(authority: CertificateAuthority) -> None:
    first, second = Keys.make(), Keys.make()
    request = x509.load_pem_x509_csr(first.request_pem).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(request.replace(first.curve_public, second.curve_public))
    with pytest.raises(AuthError, match="not signed"):
        authority.issue(forged.public_bytes(serialization.Encoding.PEM), "id", "name", Role.NODE)


def test_credentials_survive_the_disk_and_are_private(client: Credentials, tmp_path: Path) -> None:
    folder = tmp_path / "client"
    client.save(folder)
    assert Credentials.load(folder) == client
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert client.curve_secret.decode() not in repr(client)


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "ca.pem", "curve.json"])
@pytest.mark.parametrize("damage", [None, b"", b"garbage"])
def test_damaged_credentials_say_so(client: Credentials, tmp_path: Path, name: str, damage: bytes | None) -> None:
    client.save(tmp_path)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    with pytest.raises(StateError, match="'kos cluster leave' and join again"):
        Credentials.load(tmp_path)


def test_credentials_of_two_identities_do_not_mix(authority: CertificateAuthority, tmp_path: Path) -> None:
    for name in ("a", "b"):
        authority.local(name, name, Role.CLIENT).save(tmp_path / name)
    (tmp_path / "a" / "key.pem").write_bytes((tmp_path / "b" / "key.pem").read_bytes())
    with pytest.raises(StateError, match="other keys"):
        Credentials.load(tmp_path / "a")


def test_the_authoritys_key_is_wrapped_at_rest(authority: CertificateAuthority, tmp_path: Path) -> None:
    wrap = tmp_path / "home" / "wrap.key"
    authority.save(tmp_path / "c", wrap)
    assert wrap.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in (tmp_path / "c" / "ca.key").read_bytes()
    again = CertificateAuthority.load("lab", tmp_path / "c", wrap)
    assert again.sha256 == authority.sha256
    peer = again.local("x", "x", Role.NODE)
    assert verify_peer(der(peer.cert_pem), authority.certificate_pem, "lab").id == "x"


def test_a_second_authority_keeps_the_first_wrap_key(tmp_path: Path) -> None:
    wrap = tmp_path / "wrap.key"
    for name in ("one", "two"):
        CertificateAuthority.create(name).save(tmp_path / name, wrap)
    for name in ("one", "two"):
        CertificateAuthority.load(name, tmp_path / name, wrap)


def test_an_authority_that_cannot_be_opened_says_so(authority: CertificateAuthority, tmp_path: Path) -> None:
    wrap = tmp_path / "wrap.key"
    with pytest.raises(StateError, match="does not keep the authority"):
        CertificateAuthority.load("lab", tmp_path, wrap)
    authority.save(tmp_path, wrap)
    wrap.write_text("0" * 64)
    with pytest.raises(StateError, match="cannot be decrypted"):
        CertificateAuthority.load("lab", tmp_path, wrap)
    wrap.write_text("short")
    with pytest.raises(StateError, match="damaged"):
        CertificateAuthority.load("lab", tmp_path, wrap)


def test_certificates_satisfy_openssls_own_checks(authority: CertificateAuthority, client: Credentials) -> None:
    certificate = x509.load_pem_x509_certificate(client.cert_pem)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC)
    assert certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def peer(number: int, not_after: float = 100.0) -> Peer:
    return Peer("lab", f"id{number}", f"name{number}", Role.CLIENT, number, b"%040d" % number, not_after)


def test_the_allow_list_honours_expiry_at_each_look_up() -> None:
    now = [50.0]
    admitted = Admitted(clock=lambda: now[0])
    admitted.admit(peer(1))
    assert admitted.get(peer(1).curve_public) == peer(1)
    now[0] = 100.0
    assert admitted.get(peer(1).curve_public) is None
    with pytest.raises(AuthError, match="expired"):
        admitted.admit(peer(1))


def test_the_allow_list_drops_the_least_recently_used() -> None:
    admitted = Admitted(limit=2, clock=lambda: 0)
    admitted.admit(peer(1))
    admitted.admit(peer(2))
    admitted.get(peer(1).curve_public)
    admitted.admit(peer(3))
    assert [number for number in (1, 2, 3) if admitted.get(peer(number).curve_public)] == [1, 3]
    assert len(admitted) == 2


def test_a_revoked_certificate_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = Admitted(clock=lambda: 0)
    admitted.admit(peer(1))
    admitted.revoke(1)
    assert admitted.get(peer(1).curve_public) is None
    with pytest.raises(AuthError, match="revoked"):
        admitted.admit(peer(1))
    monkeypatch.setattr(admission, "REVOKED_LIMIT", 1)
    with pytest.raises(LimitError):
        admitted.revoke(2)


def test_a_token_survives_its_text(authority: CertificateAuthority) -> None:
    token = JoinToken.mint(authority.sha256)
    assert JoinToken.parse(f" {token}\n") == token
    assert token.secret not in repr(token)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "", "is empty"),
        (lambda text: "KOS2" + text[4:], "does not start with 'KOS1.'"),
        (lambda text: "x" * 100_000, "does not start with"),
        (lambda text: text.rsplit(".", 1)[0], "has 3 parts"),
        (lambda text: text[:-1], "secret is damaged"),
        (lambda text: text[:5] + "Z" + text[6:], "hash is damaged"),
    ],
)
def test_a_malformed_token_says_what_is_wrong(authority: CertificateAuthority, change, sentence: str) -> None:  # type: ignore[no-untyped-def]
    text = str(JoinToken.mint(authority.sha256))
    with pytest.raises(UsageError, match=sentence) as caught:
        JoinToken.parse(change(text))
    assert text.rsplit(".", 1)[1] not in str(caught.value)
