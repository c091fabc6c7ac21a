"""Sealing: bytes that only one peer can open, though they lie on every node's disk. The authority's key travels so.

Theory of operation. HPKE (RFC 9180, base mode) as `cryptography` has it: X25519 to the peer's CURVE key, which its
certificate binds to it, HKDF-SHA256 and ChaCha20-Poly1305. The context goes into the derived key, so a blob that is
sealed for one cluster, purpose and recipient opens for no other. Each blob has a key of its own.

Rules: a seal hides, it does not say who sealed; whatever is opened must be checked by what it is. Take the recipient's
key from its verified certificate.
"""

from __future__ import annotations

import struct

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from zmq.utils import z85

from kos_cluster.errors import AuthError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_FORMAT = b"\x01"


class SealContext(msgspec.Struct, frozen=True, array_like=True):
    """What a seal is bound to; both sides must say the same. `recipient` is the peer's id."""

    cluster: str
    purpose: str
    recipient: str


def seal(data: bytes, curve_public: bytes, context: SealContext) -> bytes:
    """Only the holder of the secret to a CURVE public key (Z85) can open the result. Raises AuthError for a bad key."""
    try:
        return _FORMAT + _SUITE.encrypt(data, X25519PublicKey.from_public_bytes(_raw(curve_public)), _info(context))
    except ValueError as error:
        raise AuthError(f"Nothing can be sealed to {context.recipient}: its key is not good ({error}).") from None


def unseal(sealed: bytes, curve_secret: bytes, context: SealContext) -> bytes:
    """What was sealed, by one's own CURVE secret (Z85). Raises AuthError when it was not sealed so, or was changed."""
    if sealed[:1] != _FORMAT:
        raise AuthError(f"A seal ({context.purpose}) is of a format that this version does not know.")
    try:
        return _SUITE.decrypt(sealed[1:], X25519PrivateKey.from_private_bytes(_raw(curve_secret)), _info(context))
    except (InvalidTag, ValueError):
        raise AuthError(
            f"A seal ({context.purpose}) does not open for {context.recipient} in cluster {context.cluster!r}: "
            "it was made for another key or purpose, or was changed.",
            "Let another voter seal it anew: 'kos doctor'.",
        ) from None


def _raw(key_z85: bytes) -> bytes:
    try:
        raw = z85.decode(key_z85)
    except (KeyError, struct.error):
        raise ValueError("it is not Z85 text") from None
    if len(raw) != 32:
        raise ValueError("it has a wrong length")
    return bytes(raw)


def _info(context: SealContext) -> bytes:
    return b"kos-seal" + msgspec.msgpack.encode(context)
