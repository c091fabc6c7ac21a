"""Signing requests (RFC 2986) as an authority takes them: small, well-formed, signed with the key that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from kos_cluster.errors import AuthError

REQUEST_LIMIT_BYTES = 4096

T = TypeVar("T")


def checked(request_pem: bytes, read: Callable[[x509.CertificateSigningRequest], T]) -> T:
    """What `read` reads of it, which may raise ValueError for a request that lacks it. Raises AuthError."""
    if len(request_pem) > REQUEST_LIMIT_BYTES:
        raise AuthError(f"A signing request is larger than {REQUEST_LIMIT_BYTES} bytes.")
    try:
        request = x509.load_pem_x509_csr(request_pem)
        valid = request.is_signature_valid
        found = read(request)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise AuthError(f"A signing request is malformed ({error}).") from None
    if not valid:
        raise AuthError("A signing request is not signed with the key that it asks for.")
    return found
