"""The authority of one engine: whose certificates open that engine's ports, and nothing else.

Theory of operation. An engine (Dask, Ray) trusts whatever certificate its authority has signed, so it gets one of its
own. That one's key is derived from the private key of the cluster's authority and the engine's name (HKDF-SHA256,
RFC 5869): whoever can open the latter, which each coordinator can, has the same authority without anything being
stored. Validity and serial of its certificate are the same each time, too; it signs itself and is the only root that
the engine knows. Keys are of the curve P-256, as gRPC's BoringSSL does not take Ed25519. A secret that all parts of the
engine share is derived in the same way, for engines that ask for a token beside.

Rules. A certificate is issued for a request that is signed with the key it asks for; which host it names is said by who
asks, since all parts of an engine run the same user's code and none has more rights than another. It names this machine
as well, as an engine's parts speak with each other on the loopback. It is good for `LIFETIME_S` and is not renewed.
"""

from __future__ import annotations

import ipaddress
import re
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kos_cluster.core.names import checked
from kos_cluster.errors import AuthError, UsageError
from kos_cluster.net.identity import CLOCK_SKEW_S, key_usage, timestamp
from kos_cluster.net.signingrequests import checked as checked_request

LIFETIME_S = 30 * 86400.0  # of a part's certificate, and so of an engine that is not started anew
HOST_LIMIT_CHARACTERS = 253  # of a DNS name
_SCALAR_BYTES = 48  # 128 bits more than the order of P-256, so that the remainder is not biased (FIPS 186-5, A.2.1)
_SERIAL_BYTES = 16
_SECRET_BYTES = 32
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (SEC 2, 2.4.2)
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


class EngineAuthority:
    """Made by `CertificateAuthority.of_engine`."""

    def __init__(self, engine: str, cluster_key: bytes, root: x509.Certificate) -> None:
        """`cluster_key` and `root` are those of the cluster's authority. Raises UsageError for a bad name."""
        self.engine = checked(engine, "engine")
        derived = HKDF(
            hashes.SHA256(), _SCALAR_BYTES + _SERIAL_BYTES, salt=None, info=b"kos-engine\0" + engine.encode()
        )
        drawn = derived.derive(cluster_key)
        scalar, serial = int.from_bytes(drawn[:_SCALAR_BYTES], "big"), int.from_bytes(drawn[_SCALAR_BYTES:], "big")
        token = HKDF(hashes.SHA256(), _SECRET_BYTES, salt=None, info=b"kos-engine-secret\0" + engine.encode())
        self.secret = token.derive(cluster_key).hex()  # what all parts of the engine know, and nobody else
        self._key = ec.derive_private_key(scalar % (_ORDER - 1) + 1, ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, engine)])
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number((serial >> 1) + 1)  # at most 20 octets, and positive
            .not_valid_before(root.not_valid_before_utc)
            .not_valid_after(root.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        """What its engine trusts."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, request_pem: bytes, host: str, holder: str) -> bytes:
        """A part's certificate, in PEM, for `host` and the loopback. `holder`: who asks, for the eyes of people.

        Raises AuthError for a bad request, UsageError for a bad host.
        """
        public_key = _requested_key(request_pem)
        now = time.time()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, holder)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(timestamp(now - CLOCK_SKEW_S))
            .not_valid_after(timestamp(now + LIFETIME_S))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(authority=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def make_request() -> tuple[bytes, bytes]:
    """A new private key and the signing request for it, each in PEM. The key never travels."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, request.public_bytes(serialization.Encoding.PEM)


def ends_s(certificate_pem: str) -> float:
    """When a certificate ends, in Unix seconds."""
    return x509.load_pem_x509_certificate(certificate_pem.encode()).not_valid_after_utc.timestamp()


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    key = checked_request(request_pem, x509.CertificateSigningRequest.public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthError("A signing request for an engine is not for a key of the curve P-256.")
    return key


def _names(host: str) -> list[x509.GeneralName]:
    """Under which names a part is reached: its host, and the loopback."""
    names: list[x509.GeneralName] = [x509.IPAddress(_LOOPBACK), x509.DNSName("localhost")]
    try:
        own: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > HOST_LIMIT_CHARACTERS or not _HOST.fullmatch(host):
            raise UsageError(
                f"{host[:HOST_LIMIT_CHARACTERS]!r} is neither an IP address nor the name of a host.",
                "Give the address by which the other nodes reach this one.",
            ) from None
        own = x509.DNSName(host)
    return names if own in names else [own, *names]
