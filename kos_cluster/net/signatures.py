"""Statements that a node signs about itself, so that others may pass them on: its incarnation, and what belongs to
it.

Theory of operation. A signature is made with the Ed25519 key of the signer's certificate, over the purpose, the
cluster and the statement. With it travels the certificate's serial; the certificate itself is asked for once
(`UnknownSignerError`) and is kept when the authority's signature on it holds. A signature says who made the
statement; whether the statement may be made by it, and is not an old one, is for whoever reads it.

Rules: verified certificates are kept up to `CERTIFICATES_LIMIT`, least recently used first out. Expiry and revocation
are honoured at each look, and a certificate whose key was confirmed to be replaced counts as revoked. Not
thread-safe.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from kos_cluster.errors import AuthError
from kos_cluster.net.identity import Credentials, Peer, load_certificate, verify_peer

CERTIFICATES_LIMIT = 16384  # as many as peers at the door
SERIAL_BYTES = 8
SIGNATURE_BYTES = SERIAL_BYTES + 64


class UnknownSignerError(AuthError):
    """A statement is signed with a certificate that was not shown yet. Ask for it, `learn` it, and verify again."""

    def __init__(self, serial: int) -> None:
        super().__init__(f"The certificate {serial} that signed a statement is not known here.")
        self.serial = serial

    def __reduce__(self) -> tuple[type[UnknownSignerError], tuple[int]]:
        return type(self), (self.serial,)


class Signer:
    """Signs in the name of one's own certificate, for one purpose."""

    def __init__(self, credentials: Credentials, purpose: str) -> None:
        key = serialization.load_pem_private_key(credentials.key_pem, None)
        if not isinstance(key, Ed25519PrivateKey):
            raise AuthError("One's own key cannot sign: it is not an Ed25519 key.")
        self._key = key
        self._serial = credentials.peer.serial.to_bytes(SERIAL_BYTES, "big")
        self._frame = (purpose, credentials.peer.cluster)
        self.certificate_der = load_certificate(credentials.cert_pem).public_bytes(serialization.Encoding.DER)

    def sign(self, statement: bytes) -> bytes:
        """`SIGNATURE_BYTES` that `Verifier.verify` takes."""
        return self._serial + self._key.sign(_framed(self._frame, statement))


class Verifier:
    """Says who signed a statement of this cluster, for one purpose."""

    def __init__(
        self,
        cluster: str,
        ca_pem: bytes,
        purpose: str,
        revoked: Callable[[int], bool],
        clock: Callable[[], float] = time.time,
        limit: int = CERTIFICATES_LIMIT,
    ) -> None:
        self._cluster = cluster
        self._ca_pem = ca_pem
        self._frame = (purpose, cluster)
        self._revoked = revoked
        self._clock = clock
        self._limit = limit
        self._known: OrderedDict[int, tuple[Peer, Ed25519PublicKey, bytes]] = OrderedDict()

    def learn(self, certificate_der: bytes) -> Peer:
        """Keep a certificate that was shown. Raises AuthError when it does not hold."""
        peer = verify_peer(certificate_der, self._ca_pem, self._cluster, self._clock())
        self._check_valid(peer)
        key = x509.load_der_x509_certificate(certificate_der).public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise AuthError(f"The certificate of {peer.name} is not for an Ed25519 key.")
        self._known[peer.serial] = (peer, key, certificate_der)
        self._known.move_to_end(peer.serial)
        while len(self._known) > self._limit:
            self._known.popitem(last=False)
        return peer

    def certificate(self, serial: int) -> bytes | None:
        """A certificate that is kept here (DER), for a peer that asks for it."""
        known = self._known.get(serial)
        return None if known is None else known[2]

    def verify(self, statement: bytes, signature: bytes) -> Peer:
        """Who signed it. Raises UnknownSignerError, or AuthError when it is forged, expired or revoked."""
        if len(signature) != SIGNATURE_BYTES:
            raise AuthError(f"A signature has {len(signature)} bytes instead of {SIGNATURE_BYTES}.")
        serial = int.from_bytes(signature[:SERIAL_BYTES], "big")
        known = self._known.get(serial)
        if known is None:
            raise UnknownSignerError(serial)
        peer, key, _ = known
        self._check_valid(peer)
        try:
            key.verify(signature[SERIAL_BYTES:], _framed(self._frame, statement))
        except InvalidSignature:
            raise AuthError(f"A statement in the name of {peer.name} was not signed by it.") from None
        self._known.move_to_end(serial)
        return peer

    def _check_valid(self, peer: Peer) -> None:
        if self._revoked(peer.serial):
            raise AuthError(f"The certificate of {peer.name} is revoked.", "Join again with a new token.")
        if peer.expired(self._clock()):
            raise AuthError(f"The certificate of {peer.name} has expired.", "Join again with a new token.")


def _framed(frame: tuple[str, str], statement: bytes) -> bytes:
    return b"kos-statement" + msgspec.msgpack.encode((*frame, statement))
