"""The cluster's settings: small named texts, changed outright or only if they are what the caller believes them to be.

Rules: a setting is a short name and a text of bounded size; what they mean is for whoever reads them.
"""

from __future__ import annotations

import re

from kos_cluster.errors import ConflictError, LimitError, UsageError

SETTINGS_LIMIT = 512
VALUE_LIMIT_BYTES = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class Settings:
    """Name -> value."""

    def __init__(self, restored: dict[str, str]) -> None:
        self._values = dict(restored)

    def snapshot(self) -> dict[str, str]:
        return dict(self._values)

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def set(self, name: str, value: str | None) -> None:
        """`value` None removes it. Raises UsageError or LimitError, and then nothing changed."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name[:128]!r} cannot be the name of a setting.",
                "Use up to 128 letters, digits and . _ / -, beginning with a letter or digit.",
            )
        if value is None:
            self._values.pop(name, None)
            return
        size_bytes = len(value.encode("utf-8", "surrogatepass"))
        if size_bytes > VALUE_LIMIT_BYTES:
            raise LimitError(f"The value of {name} takes {size_bytes} bytes; the limit is {VALUE_LIMIT_BYTES}.")
        if name not in self._values and len(self._values) >= SETTINGS_LIMIT:
            raise LimitError(f"There are {SETTINGS_LIMIT} settings already, which is the limit.", "Remove one first.")
        self._values[name] = value

    def swap(self, name: str, expected: str | None, value: str | None) -> None:
        """`set`, if the value is `expected`. Raises ConflictError when it is another."""
        current = self._values.get(name)
        if current != expected:
            raise ConflictError(
                f"The setting {name[:128]} is {_shown(current)} by now, not {_shown(expected)}.",
                "Read it again, then decide.",
            )
        self.set(name, value)


def _shown(value: str | None) -> str:
    return "not set" if value is None else repr(value[:64])
