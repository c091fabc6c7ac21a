"""The cluster's certificate authority: it certifies the keys of nodes and clients.

Rules: its private key is encrypted at rest with the secret of KOS_HOME/wrap.key. It signs only requests that are signed
with the key they ask for. Role, id and name are decided by whoever calls `issue`, never by the request.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kos_cluster.core.replicated.commands import Certificate
from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError, StateError
from kos_cluster.home import private_folder, write_private
from kos_cluster.net.engineauthority import EngineAuthority
from kos_cluster.net.identity import (
    CLOCK_SKEW_S,
    Credentials,
    Keys,
    key_usage,
    load_certificate,
    peer_extensions,
    private_pem,
    request_curve_key,
    timestamp,
)
from kos_cluster.net.signingrequests import checked

AUTHORITY_LIFETIME_S = 20 * 365 * 86400
PEER_LIFETIME_S = 365 * 86400
WRAP_SECRET_BYTES = 32
SERIAL_BITS = 63  # a serial travels as a MessagePack integer; Ed25519 does not need it to be unguessable


class CertificateAuthority:
    """The key that makes certificates of one cluster."""

    def __init__(self, cluster: str, key: Ed25519PrivateKey, certificate_pem: bytes) -> None:
        self.cluster = cluster
        self.certificate_pem = certificate_pem
        self._key = key
        self._certificate = load_certificate(certificate_pem)

    @classmethod
    def create(cls, cluster: str) -> CertificateAuthority:
        key = Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"KOS cluster {cluster}"[:64])])
        certificate = (
            _builder(name, name, key.public_key(), new_serial(), time.time() + AUTHORITY_LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(authority=True), critical=True)
            .sign(key, None)
        )
        return cls(cluster, key, certificate.public_bytes(serialization.Encoding.PEM))

    @classmethod
    def of_key(cls, cluster: str, key: bytes, certificate_pem: bytes) -> CertificateAuthority:
        """From what `key_bytes` gave. Raises AuthError when the key is not the certificate's."""
        authority = cls(cluster, Ed25519PrivateKey.from_private_bytes(key), certificate_pem)
        if authority._certificate.public_key() != authority._key.public_key():
            raise AuthError(f"A copy of the authority's key is not that of cluster {cluster!r}.")
        return authority

    def key_bytes(self) -> bytes:
        """The private key, raw: to be sealed at once."""
        return self._key.private_bytes_raw()

    def of_engine(self, engine: str) -> EngineAuthority:
        """The authority of an engine, the same each time. Raises UsageError for a name that cannot be."""
        return EngineAuthority(engine, self.key_bytes(), self._certificate)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the authority's public key, which join tokens carry."""
        return authority_sha256(self.certificate_pem)

    def issue(self, request_pem: bytes, id: str, name: str, role: Role, lifetime_s: float = PEER_LIFETIME_S) -> bytes:
        """A certificate, in PEM, for the keys of a signing request. Raises AuthError when the request is not good."""
        curve_public = requested_curve_key(request_pem)
        return self.certify(
            request_pem, Certificate(new_serial(), id, name, role, time.time() + lifetime_s, curve_public)
        )

    def certify(self, request_pem: bytes, granted: Certificate) -> bytes:
        """The certificate, in PEM, as it was granted. Raises AuthError for a request that is bad or of other keys."""
        public_key, curve_public = checked(request_pem, lambda asked: (asked.public_key(), request_curve_key(asked)))
        if not isinstance(public_key, Ed25519PublicKey):
            raise AuthError("A signing request is not for an Ed25519 key.")
        if curve_public != granted.curve_public:
            raise AuthError("A signing request is for another key than the one that was granted.")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, granted.name)])
        builder = _builder(subject, self._certificate.subject, public_key, granted.serial, granted.not_after_s)
        for extension in peer_extensions(self.cluster, granted.id, granted.role, granted.curve_public):
            builder = builder.add_extension(extension, critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, None)
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def local(self, id: str, name: str, role: Role, lifetime_s: float = PEER_LIFETIME_S) -> Credentials:
        """Keys and certificate in one step, for an identity on the authority's own machine."""
        keys = Keys.make()
        return keys.certified(
            self.issue(keys.request_pem, id, name, role, lifetime_s), self.certificate_pem, self.cluster
        )

    def save(self, cluster_folder: Path, wrap_key_path: Path) -> None:
        """Write ca.pem and the encrypted ca.key. Makes wrap.key at its first use."""
        private_folder(cluster_folder)
        wrapping = serialization.BestAvailableEncryption(_wrap_secret(wrap_key_path, make=True))
        write_private(cluster_folder / "ca.key", private_pem(self._key, wrapping))
        write_private(cluster_folder / "ca.pem", self.certificate_pem)

    @classmethod
    def load(cls, cluster: str, cluster_folder: Path, wrap_key_path: Path) -> CertificateAuthority:
        """Raises StateError when the key is not on this machine, or cannot be decrypted."""
        try:
            certificate_pem = (cluster_folder / "ca.pem").read_bytes()
            wrapped = (cluster_folder / "ca.key").read_bytes()
        except OSError as error:
            raise StateError(
                f"This machine does not keep the authority of cluster {cluster!r}: {error.filename} cannot be read.",
                "Do this on the machine where 'kos cluster create' was typed.",
            ) from None
        secret = _wrap_secret(wrap_key_path, make=False)
        try:
            key = serialization.load_pem_private_key(wrapped, secret)
            authority = cls(cluster, _ed25519(key), certificate_pem)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StateError(
                f"{cluster_folder / 'ca.key'} cannot be decrypted with {wrap_key_path} ({error}).",
                "Restore both files from a backup; without them no machine can join.",
            ) from None
        if authority._certificate.public_key() != authority._key.public_key():
            raise StateError(
                f"ca.key and ca.pem in {cluster_folder} do not fit together.", "Restore both from a backup."
            )
        return authority


def new_serial() -> int:
    """A serial for a new certificate."""
    return secrets.randbelow((1 << SERIAL_BITS) - 1) + 1


def requested_curve_key(request_pem: bytes) -> bytes:
    """The CURVE public key that a signing request asks to have certified. Raises AuthError when it is not good."""
    return checked(request_pem, request_curve_key)


def authority_sha256(certificate_pem: bytes) -> str:
    """Hex SHA-256 of the public key (SubjectPublicKeyInfo, DER) of an authority's certificate. Raises ValueError."""
    public_key = load_certificate(certificate_pem).public_key()
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Ed25519PublicKey, serial: int, not_after_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(timestamp(time.time() - CLOCK_SKEW_S))
        .not_valid_after(timestamp(not_after_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _ed25519(key: object) -> Ed25519PrivateKey:
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("it is not an Ed25519 key")
    return key


def _wrap_secret(path: Path, make: bool) -> bytes:
    """The secret that wraps authorities' keys of this home."""
    if make:
        private_folder(path.parent)
        try:
            # O_EXCL: two commands that start at once must end with the same secret.
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(fd, "wb") as file:
                file.write(secrets.token_hex(WRAP_SECRET_BYTES).encode())
                file.flush()
                os.fsync(file.fileno())
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise StateError(
            f"{path}, which wraps the authority's key, cannot be read ({error.strerror}).", "Restore it from a backup."
        ) from None
    if len(secret) != 2 * WRAP_SECRET_BYTES:
        raise StateError(
            f"{path} is damaged: it is not {2 * WRAP_SECRET_BYTES} characters.", "Restore it from a backup."
        )
    return secret
