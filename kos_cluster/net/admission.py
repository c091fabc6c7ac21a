"""The allow-list of CURVE keys: who presented a valid certificate, and so may open a control link.

Rules: bounded, least recently used first out. Expiry and revocation are honoured at every look-up, so a peer is off the
list the moment its certificate ends. TLS threads write here while the loop reads, under one lock.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from kos_cluster.errors import AuthError, LimitError, RevokedError
from kos_cluster.net.identity import Peer

PEERS_LIMIT = 16384
REVOKED_LIMIT = 65536


class Admitted:
    """CURVE public key -> peer, for those that presented themselves."""

    def __init__(self, limit: int = PEERS_LIMIT, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: OrderedDict[bytes, Peer] = OrderedDict()
        self._revoked: set[int] = set()

    def admit(self, peer: Peer) -> None:
        """Let a peer whose certificate was verified open links. Raises AuthError when it is revoked or expired."""
        with self._lock:
            if peer.serial in self._revoked:
                raise RevokedError(f"The certificate of {peer.name} is revoked.", "Join again with a new token.")
            if peer.expired(self._clock()):
                raise AuthError(f"The certificate of {peer.name} has expired.", "Join again with a new token.")
            self._peers[peer.curve_public] = peer
            self._peers.move_to_end(peer.curve_public)
            while len(self._peers) > self._limit:
                self._peers.popitem(last=False)

    def get(self, curve_public: bytes) -> Peer | None:
        """The peer of a key; None when it was never admitted, or is expired, revoked or pushed out."""
        with self._lock:
            peer = self._peers.get(curve_public)
            if peer is None:
                return None
            if peer.expired(self._clock()):
                del self._peers[curve_public]
                return None
            self._peers.move_to_end(curve_public)
            return peer

    def revoked(self, serial: int) -> bool:
        """Whether a certificate is denied."""
        with self._lock:
            return serial in self._revoked

    def revoke(self, serial: int, successor: Peer | None = None) -> None:
        """Deny a certificate from now on. Raises LimitError when the deny-list is full.

        Who has a `successor` for the same CURVE key goes on under that, without presenting itself anew.
        """
        with self._lock:
            if len(self._revoked) >= REVOKED_LIMIT and serial not in self._revoked:
                raise LimitError(f"{REVOKED_LIMIT} certificates are revoked already, which is the limit.")
            self._revoked.add(serial)
            for key in [key for key, peer in self._peers.items() if peer.serial == serial]:
                if successor is not None and successor.curve_public == key:
                    self._peers[key] = successor
                else:
                    del self._peers[key]

    def __len__(self) -> int:
        with self._lock:
            return len(self._peers)
