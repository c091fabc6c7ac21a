"""The text of a join token: `KOS1.<sha256 of the authority's public key>.<id>.<secret>`.

Rules: the hash lets a joiner know the cluster before it says anything; the secret lets the cluster know the joiner.
Error messages never repeat the secret.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from kos_cluster.errors import UsageError

PREFIX = "KOS1"
SECRET_BYTES = 16
ID_BYTES = 6
TEXT_LIMIT_CHARACTERS = 256
_HINT = "Copy all of what 'kos cluster token' printed."
_FIELDS = (
    ("authority's hash", re.compile(r"[0-9a-f]{64}")),
    ("id", re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")),
    ("secret", re.compile(rf"[0-9a-f]{{{2 * SECRET_BYTES}}}")),
)


@dataclass(frozen=True)
class JoinToken:
    """A join token. `str()` is its text."""

    ca_sha256: str
    id: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{PREFIX}.{self.ca_sha256}.{self.id}.{self.secret}"

    @classmethod
    def mint(cls, ca_sha256: str) -> JoinToken:
        """A new token for the authority of that hash."""
        return cls(ca_sha256, secrets.token_hex(ID_BYTES), secrets.token_hex(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises UsageError that says which part is wrong."""
        text = text.strip()
        if not text:
            raise UsageError("The join token is empty.", _HINT)
        parts = text.split(".") if len(text) <= TEXT_LIMIT_CHARACTERS else []
        if parts[:1] != [PREFIX]:
            raise UsageError(f"This is not a join token: it does not start with '{PREFIX}.'.", _HINT)
        if len(parts) != 1 + len(_FIELDS):
            raise UsageError(f"The join token has {len(parts)} parts instead of {1 + len(_FIELDS)}.", _HINT)
        for (name, pattern), part in zip(_FIELDS, parts[1:], strict=True):
            if not pattern.fullmatch(part):
                raise UsageError(f"The join token's {name} is damaged.", _HINT)
        return cls(*parts[1:])
