"""What is asked for an engine's sake, and answered, on the wire (see `wire`).

Rules: only a node that can open the authority's key answers, which the coordinator can; it decides by the certificate
of who asks. The question is not passed on, as a node may not ask for this in its own name.
"""

from __future__ import annotations

import msgspec


class CertifyEngine(msgspec.Struct, frozen=True, tag=True):
    """Certify this key as that of a part of an engine, which is reached at `host`. Reply: EngineCertificate."""

    engine: str
    request_pem: bytes
    host: str


class EngineCertificate(msgspec.Struct, frozen=True):
    """PEM texts: the engine's own authority, and the certificate of who has asked."""

    authority_pem: str
    certificate_pem: str
    secret: str  # hex; the same for all parts of this engine

    def __repr__(self) -> str:
        return "<kos EngineCertificate>"  # without the secret
