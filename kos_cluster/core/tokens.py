"""Join tokens as a pure table: what was minted, and whether it was redeemed.

Rules: only the SHA-256 of a secret is kept. A token is redeemed once; a wrong secret does not use it up. It lives at
most `TTL_LIMIT_S`. Expired entries stay for `REMEMBER_S`, so that a late joiner is told so, then they are dropped.
The caller gives the time and the secret, and keeps `snapshot()` durable before it tells anyone of a change.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import msgspec

from kos_cluster.core.roles import Role
from kos_cluster.errors import JoinError, LimitError, UsageError

TTL_LIMIT_S = 24 * 3600
REMEMBER_S = 24 * 3600
TOKENS_LIMIT = 1024
_MINT = "Ask for a new one: 'kos cluster token'."


class TokenEntry(msgspec.Struct, frozen=True):
    """A minted token. Times are Unix seconds."""

    id: str
    secret_sha256: str  # hex
    role: Role
    expires_s: float
    used_s: float | None = None


class TokenTable:
    """The tokens of one cluster."""

    def __init__(self, entries: Iterable[TokenEntry] = ()) -> None:
        self._entries = {entry.id: entry for entry in entries}

    def snapshot(self) -> list[TokenEntry]:
        """What `TokenTable(entries)` restores."""
        return list(self._entries.values())

    def add(self, id: str, secret: str, role: Role, ttl_s: float, now: float) -> TokenEntry:
        """Take a new token in. Raises UsageError for its time to live, LimitError when there are too many."""
        return self.add_hashed(id, secret_sha256(secret), role, ttl_s, now)

    def add_hashed(self, id: str, sha256: str, role: Role, ttl_s: float, now: float) -> TokenEntry:
        """`add`, for whoever has only the secret's SHA-256 (hex), as the replicated state does."""
        if not 0 < ttl_s <= TTL_LIMIT_S:
            raise UsageError(
                f"A join token cannot be valid for {ttl_s:g} s.", f"Give --ttl more than 0 and at most {TTL_LIMIT_S} s."
            )
        self._drop_forgotten(now)
        if id in self._entries:
            raise UsageError(f"A join token with the id {id} exists already.", _MINT)
        if len(self._entries) >= TOKENS_LIMIT:
            raise LimitError(
                f"There are {TOKENS_LIMIT} join tokens already, which is the limit.",
                "Wait until some have expired, or give them a shorter --ttl.",
            )
        entry = TokenEntry(id, sha256, role, now + ttl_s)
        self._entries[id] = entry
        return entry

    def check(self, id: str, secret: str, now: float) -> TokenEntry:
        """The token, if it can be redeemed. Raises JoinError that says why not."""
        return self.check_hashed(id, secret_sha256(secret), now)

    def check_hashed(self, id: str, sha256: str, now: float) -> TokenEntry:
        """`check`, by the secret's SHA-256 (hex)."""
        entry = self.recognise_hashed(id, sha256)
        if entry.used_s is not None:
            raise JoinError("The join token was used already; each serves one machine.", _MINT)
        if now >= entry.expires_s:
            raise JoinError("The join token has expired.", _MINT)
        return entry

    def recognise_hashed(self, id: str, sha256: str) -> TokenEntry:
        """The token of this id and secret, be it used or expired. Raises JoinError when there is none."""
        entry = self._entries.get(id)
        # Compared for unknown ids too, so that the time taken does not tell which ids exist.
        right = hmac.compare_digest((entry.secret_sha256 if entry else "0" * 64).encode(), sha256.encode())
        if entry is None or not right:
            raise JoinError("The join token is not one of this cluster's.", "Check that all of it was copied. " + _MINT)
        return entry

    def redeem(self, id: str, secret: str, now: float) -> Role:
        """Use a token up and return its role. Raises JoinError as `check` does, and then it is not used up."""
        return self.redeem_hashed(id, secret_sha256(secret), now)

    def redeem_hashed(self, id: str, sha256: str, now: float) -> Role:
        """`redeem`, by the secret's SHA-256 (hex)."""
        entry = self.check_hashed(id, sha256, now)
        self._entries[id] = msgspec.structs.replace(entry, used_s=now)
        return entry.role

    def _drop_forgotten(self, now: float) -> None:
        """Drop what expired long ago; when the table is full, whatever has expired."""
        grace_s = REMEMBER_S if len(self._entries) < TOKENS_LIMIT else 0
        for entry in self.snapshot():
            if now >= entry.expires_s + grace_s:
                del self._entries[entry.id]


def secret_sha256(secret: str) -> str:
    """Hex SHA-256 of a token's secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
