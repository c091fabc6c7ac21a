"""Who a peer is: Ed25519 certificates of the cluster's own authority, and the CURVE key that each one carries.

Rules: a `Peer` is only made from a certificate whose signature, validity and cluster were verified (`verify_peer`).
A certificate binds the cluster and the id (URI `kos://CLUSTER/ID`), the name (CN), the role and the CURVE public key.
Private keys are written 0600 and leave the process in no other way.
"""

from __future__ import annotations

import datetime
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from zmq.utils import z85

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, StateError
from kos_cluster.home import private_folder, write_private

# Under 2.25 (OIDs made of a UUID), which needs no registration.
CURVE_KEY_OID = x509.ObjectIdentifier("2.25.325296791229218617883682581932364358502")
ROLE_OID = x509.ObjectIdentifier("2.25.98347117063921574338216450924768140213")
CURVE_KEY_BYTES = 40  # Z85 text of 32 bytes
CLOCK_SKEW_S = 300  # by which a certificate is valid before it was issued, as clocks differ


@dataclass(frozen=True)
class Peer:
    """An authenticated identity, as its certificate states it."""

    cluster: str
    id: str
    name: str
    role: Role
    serial: int
    curve_public: bytes
    not_after: float  # Unix seconds

    def expired(self, now: float) -> bool:
        return now >= self.not_after

    def __str__(self) -> str:
        return f"{self.name} ({self.role}, {self.id})"


@dataclass(frozen=True)
class Keys:
    """Fresh private keys, not certified yet, and the signing request that asks for it."""

    key_pem: bytes = field(repr=False)
    curve_public: bytes
    curve_secret: bytes = field(repr=False)
    request_pem: bytes

    @classmethod
    def make(cls) -> Keys:
        """New keys. The request is signed with the private key, so it proves that its sender has it."""
        key = Ed25519PrivateKey.generate()
        curve_public, curve_secret = zmq.curve_keypair()
        return cls(private_pem(key), curve_public, curve_secret, _request(key, curve_public))

    def certified(self, cert_pem: bytes, ca_pem: bytes, cluster: str) -> Credentials:
        """These keys with the certificate issued for them. Raises AuthError when it is not for these keys."""
        certificate = load_certificate(cert_pem)
        peer = verify_peer(certificate.public_bytes(serialization.Encoding.DER), ca_pem, cluster)
        own = serialization.load_pem_private_key(self.key_pem, None).public_key()
        if certificate.public_key() != own or peer.curve_public != self.curve_public:
            raise AuthError("The certificate that was issued is for other keys than the ones that asked for it.")
        return Credentials(cert_pem, self.key_pem, ca_pem, self.curve_public, self.curve_secret, peer)


class _CurveFile(msgspec.Struct, frozen=True):
    public: str
    secret: str


@dataclass(frozen=True)
class Credentials:
    """One's own identity: certificate, private keys, and the authority's certificate to verify others with."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)
    ca_pem: bytes
    curve_public: bytes
    curve_secret: bytes = field(repr=False)
    peer: Peer

    def renewal_request(self) -> bytes:
        """A signing request, in PEM, for another certificate of the same keys."""
        key = serialization.load_pem_private_key(self.key_pem, None)
        if not isinstance(key, Ed25519PrivateKey):
            raise StateError("One's own key is not an Ed25519 key.", "Join the cluster again with a new token.")
        return _request(key, self.curve_public)

    def renewed(self, cert_pem: bytes) -> Credentials:
        """The same keys with another certificate. Raises AuthError when it is for others."""
        keys = Keys(self.key_pem, self.curve_public, self.curve_secret, b"")
        return keys.certified(cert_pem, self.ca_pem, self.peer.cluster)

    def save(self, folder: Path) -> None:
        """Write cert.pem, key.pem, ca.pem and curve.json, each 0600, into a 0700 folder. Raises StateError."""
        curve = _CurveFile(self.curve_public.decode(), self.curve_secret.decode())
        try:
            private_folder(folder)
            write_private(folder / "ca.pem", self.ca_pem)
            write_private(folder / "key.pem", self.key_pem)
            write_private(folder / "curve.json", msgspec.json.encode(curve))
            write_private(folder / "cert.pem", self.cert_pem)
        except OSError as error:
            raise StateError(
                f"Credentials could not be written to {folder} ({error.strerror}).", "Make room, or see who owns it."
            ) from None

    @classmethod
    def load(cls, folder: Path) -> Credentials:
        """Raises StateError when a file is missing, damaged, or does not belong to the others."""
        try:
            cert_pem, key_pem, ca_pem, curve_json = (
                (folder / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem", "curve.json")
            )
            curve = msgspec.json.decode(curve_json, type=_CurveFile)
            keys = Keys(key_pem, curve.public.encode(), curve.secret.encode(), b"")
            return keys.certified(cert_pem, ca_pem, cluster_of(load_certificate(cert_pem)))
        except OSError as error:
            cause = f"{error.filename} cannot be read ({error.strerror})"
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            cause = f"a file in {folder} is damaged ({error})"
        except AuthError as error:
            cause = f"the certificate in {folder} does not hold ({error.message})"
        raise StateError(
            f"The credentials are not usable: {cause}.",
            "Restore them, or type 'kos cluster leave' and join again (if 'kos up' made it: 'kos down').",
        )


def verify_peer(cert_der: bytes, ca_pem: bytes, cluster: str, now: float | None = None) -> Peer:
    """The peer that a certificate states, once its signature, validity and cluster are verified. Raises AuthError."""
    certificate, peer = verify_issued(cert_der, ca_pem, cluster)
    now = time.time() if now is None else now
    if peer.expired(now):
        raise AuthError(f"The certificate of {peer.name} has expired.", "Join again with a new token.")
    if now < certificate.not_valid_before_utc.timestamp():
        raise AuthError(f"The certificate of {peer.name} is not valid yet.", "Compare the clocks of the two machines.")
    return peer


def verify_issued(cert_der: bytes, ca_pem: bytes, cluster: str) -> tuple[x509.Certificate, Peer]:
    """A certificate of this cluster, be it valid now or not, and the peer that it states. Raises AuthError."""
    try:
        certificate = x509.load_der_x509_certificate(cert_der)
        certificate.verify_directly_issued_by(load_certificate(ca_pem))
        peer = _stated_peer(certificate)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound) as error:
        reason = str(error) or "its signature is not by this authority"
        raise AuthError(f"A certificate was not issued by the authority of cluster {cluster!r}: {reason}.") from None
    if peer.cluster != cluster:
        raise AuthError(f"The certificate of {peer.name} is for cluster {peer.cluster!r}, not {cluster!r}.")
    return certificate, peer


def peer_extensions(cluster: str, id: str, role: Role, curve_public: bytes) -> list[x509.ExtensionType]:
    """The extensions that `verify_peer` reads."""
    return [
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"kos://{cluster}/{id}")]),
        x509.UnrecognizedExtension(CURVE_KEY_OID, curve_public),
        x509.UnrecognizedExtension(ROLE_OID, role.value.encode()),
    ]


def request_curve_key(request: x509.CertificateSigningRequest) -> bytes:
    """The CURVE public key that a signing request asks to have certified. Raises ValueError."""
    return _curve_key(request.extensions)


def cluster_of(certificate: x509.Certificate) -> str:
    """The cluster that a certificate names, unverified. Raises ValueError."""
    return _uri(certificate)[0]


def load_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate in PEM text. Raises ValueError."""
    return x509.load_pem_x509_certificate(pem)


def private_pem(key: Ed25519PrivateKey, encryption: serialization.KeySerializationEncryption | None = None) -> bytes:
    """A private key as PEM, in the clear when no encryption is given."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )


def timestamp(seconds: float) -> datetime.datetime:
    """Unix seconds as the aware time that X.509 wants (whole seconds)."""
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.UTC)


def key_usage(authority: bool) -> x509.KeyUsage:
    """What the key of an authority, or of whom it certifies, is for."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _request(key: Ed25519PrivateKey, curve_public: bytes) -> bytes:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.UnrecognizedExtension(CURVE_KEY_OID, curve_public), critical=False)
        .sign(key, None)
    )
    return request.public_bytes(serialization.Encoding.PEM)


def _stated_peer(certificate: x509.Certificate) -> Peer:
    cluster, id = _uri(certificate)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ValueError("it does not state one name")
    role = Role(_private_extension(certificate.extensions, ROLE_OID).decode())
    return Peer(
        cluster=cluster,
        id=id,
        name=str(names[0].value),
        role=role,
        serial=certificate.serial_number,
        curve_public=_curve_key(certificate.extensions),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _uri(certificate: x509.Certificate) -> tuple[str, str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("it names no cluster") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    parts = uris[0].removeprefix("kos://").split("/") if len(uris) == 1 else []
    if len(parts) != 2 or not all(parts) or not uris[0].startswith("kos://"):
        raise ValueError("it names no cluster")
    return parts[0], parts[1]


def _curve_key(extensions: x509.Extensions) -> bytes:
    key = _private_extension(extensions, CURVE_KEY_OID)
    if len(key) != CURVE_KEY_BYTES:
        raise ValueError("its CURVE key has a wrong length")
    try:
        z85.decode(key)
    except (KeyError, struct.error):
        raise ValueError("its CURVE key is not Z85 text") from None
    return key


def _private_extension(extensions: x509.Extensions, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        raise ValueError("it lacks an extension that KOS needs") from None
    if not isinstance(value, x509.UnrecognizedExtension):
        raise TypeError("an extension is of an unexpected kind")
    return value.value
