"""How nodes vouch for what they say of themselves, so that others may pass it on: signature and certificate in one.

Rules: a record holds when its certificate is of this cluster's authority, for a node, of the id that the record is
about, not denied and not expired, and when its key made the signature. The certificate travels with the signature, so
that a record can be checked by whoever has never met its maker.
"""

from __future__ import annotations

from collections.abc import Callable

from kos_cluster.core.roles import Role
from kos_cluster.errors import AuthError
from kos_cluster.net.identity import Credentials
from kos_cluster.net.signatures import SERIAL_BYTES, SIGNATURE_BYTES, Signer, Verifier

PURPOSE = "member"


class Vouching:
    """Signs this node's records, checks those of others."""

    def __init__(self, credentials: Credentials, revoked: Callable[[int], bool]) -> None:
        self._signer = Signer(credentials, PURPOSE)
        self._verifier = Verifier(credentials.peer.cluster, credentials.ca_pem, PURPOSE, revoked)

    def renewed(self, credentials: Credentials) -> None:
        """This node has another certificate now."""
        self._signer = Signer(credentials, PURPOSE)

    def sign(self, statement: bytes) -> bytes:
        return self._signer.sign(statement) + self._signer.certificate_der

    def verify(self, id_: str, statement: bytes, voucher: bytes) -> bool:
        signature, certificate_der = voucher[:SIGNATURE_BYTES], voucher[SIGNATURE_BYTES:]
        serial = int.from_bytes(signature[:SERIAL_BYTES], "big")
        try:
            if self._verifier.certificate(serial) is None:
                self._verifier.learn(certificate_der)
            peer = self._verifier.verify(statement, signature)
        except AuthError:
            return False
        return peer.id == id_ and peer.role is Role.NODE
