"""An engine's certificates as OpenSSL sees them: they open that engine's ports, in both directions, and no other's."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, UsageError
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.net.engineauthority import LIFETIME_S, make_request
from kos_cluster.net.identity import verify_peer
from kos_cluster.net.signingrequests import REQUEST_LIMIT_BYTES

CLUSTER = CertificateAuthority.create("lab")
HOST = "10.1.2.3"
Held = tuple[bytes, bytes]  # certificate and key, PEM


def part(engine: str = "dask", host: str = HOST) -> Held:
    key_pem, request_pem = make_request()
    return CLUSTER.of_engine(engine).issue(request_pem, host, "ada@desk"), key_pem


def context(purpose: int, held: Held | None, trusted: bytes, folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(purpose)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    made.load_verify_locations(cadata=trusted.decode())
    if held is not None:
        (folder / "held.pem").write_bytes(b"".join(held))
        made.load_cert_chain(folder / "held.pem")
    return made


def meet(client: Held | None, server: Held, folder: Path, *, host: str = HOST, engine: str = "dask") -> tuple[int, int]:
    """Serial numbers of whom server and client have at the other end. Raises ssl.SSLError of whoever refuses."""
    trusted = CLUSTER.of_engine(engine).certificate_pem
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        context(ssl.PROTOCOL_TLS_SERVER, server, trusted, folder).wrap_bio(to_server, to_client, server_side=True),
        context(ssl.PROTOCOL_TLS_CLIENT, client, trusted, folder).wrap_bio(to_client, to_server, server_hostname=host),
    ]
    for _ in range(3):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    told = [x509.load_der_x509_certificate(end.getpeercert(binary_form=True) or b"") for end in ends]
    return told[0].serial_number, told[1].serial_number


def serial(held: Held) -> int:
    return x509.load_pem_x509_certificate(held[0]).serial_number


@pytest.mark.parametrize("host", [HOST, "127.0.0.1", "localhost"])
def test_parts_of_an_engine_know_each_other_in_both_directions(tmp_path: Path, host: str):
    one, other = part(), part()
    assert meet(one, other, tmp_path, host=host) == (serial(one), serial(other))
    assert meet(other, one, tmp_path, host=host) == (serial(other), serial(one))


def test_a_host_may_be_a_name_or_an_address_of_version_6(tmp_path: Path):
    for host in ("node1.lab", "2001:db8::7"):
        meet(part(), part(host=host), tmp_path, host=host)
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        meet(part(), part(), tmp_path, host="10.9.9.9")


def of_the_cluster() -> Held:
    node = CLUSTER.local("n1", "node1", Role.NODE)
    return node.cert_pem + node.ca_pem, node.key_pem


STRANGERS = {"another engine's": lambda: part("ray"), "a node's": of_the_cluster, "none": lambda: None}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_who_is_not_of_the_engine_is_refused_as_its_client(tmp_path: Path, stranger: str):
    with pytest.raises(ssl.SSLError, match=r"verify failed|PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        meet(STRANGERS[stranger](), part(), tmp_path)


@pytest.mark.parametrize("stranger", [name for name in STRANGERS if name != "none"])
def test_and_not_believed_as_its_server(tmp_path: Path, stranger: str):
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(part(), STRANGERS[stranger](), tmp_path)


def test_an_engines_part_is_nobody_in_the_cluster():
    der = x509.load_pem_x509_certificate(part()[0]).public_bytes(serialization.Encoding.DER)
    with pytest.raises(AuthError, match="was not issued by the authority"):
        verify_peer(der, CLUSTER.certificate_pem, "lab")


def test_the_authority_is_the_same_wherever_the_clusters_key_is_opened(tmp_path: Path):
    again = CertificateAuthority.of_key("lab", CLUSTER.key_bytes(), CLUSTER.certificate_pem)
    key_pem, request_pem = make_request()
    later = again.of_engine("dask").issue(request_pem, HOST, "ada@desk"), key_pem
    meet(later, part(), tmp_path)
    first, second = (
        x509.load_pem_x509_certificate(each.of_engine("dask").certificate_pem) for each in (CLUSTER, again)
    )
    assert first.tbs_certificate_bytes == second.tbs_certificate_bytes
    others = [CLUSTER.of_engine("ray"), CertificateAuthority.create("lab").of_engine("dask")]
    keys = [x509.load_pem_x509_certificate(each.certificate_pem).public_key() for each in others]
    assert first.public_key() not in keys and keys[0] != keys[1]


def test_a_certificate_has_a_short_life():
    certificate = x509.load_pem_x509_certificate(part()[0])
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert LIFETIME_S <= lasts.total_seconds() < LIFETIME_S + 3600


def request(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> bytes:
    digest = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


def forged() -> bytes:
    """A request that asks for somebody else's key."""
    own, other = (x509.load_pem_x509_csr(make_request()[1]) for _ in range(2))
    keys = [each.public_key().public_bytes(*DER_KEY) for each in (own, other)]
    swapped = own.public_bytes(serialization.Encoding.DER).replace(*keys)
    return x509.load_der_x509_csr(swapped).public_bytes(serialization.Encoding.PEM)


DER_KEY = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
BAD = {
    "not signed with the key": forged,
    "malformed": lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nxxxx\n-----END CERTIFICATE REQUEST-----\n",
    "larger than 4096 bytes": lambda: os.urandom(REQUEST_LIMIT_BYTES + 1),
    "not for a key of the curve P-256": lambda: request(Ed25519PrivateKey.generate()),
    "key of the curve P-256": lambda: request(ec.generate_private_key(ec.SECP384R1())),
}


@pytest.mark.parametrize("told", BAD)
def test_a_bad_request_is_refused_with_what_is_wrong(told: str):
    with pytest.raises(AuthError, match=told):
        CLUSTER.of_engine("dask").issue(BAD[told](), HOST, "ada@desk")


@pytest.mark.parametrize("host", ["", "*", "*.lab", "a b", "x" * 254, "10.1.2.3/8", "-a"])
def test_a_host_that_is_none_is_refused(host: str):
    with pytest.raises(UsageError, match="neither an IP address nor the name of a host"):
        CLUSTER.of_engine("dask").issue(make_request()[1], host, "ada@desk")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "\0"])
def test_a_name_that_cannot_be_is_refused(name: str):
    with pytest.raises(UsageError, match="name of an engine"):
        CLUSTER.of_engine(name)
