"""Amounts of memory as people write them, and whole numbers within their range."""

from __future__ import annotations

import re

from kos_cluster.errors import UsageError

WHOLE_LIMIT = 1 << 62  # of any whole number that travels

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def size_bytes(size: int | str) -> int:
    """`8 * 2**30`, `"8G"`, `"512 MiB"` as bytes. Raises UsageError for anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= WHOLE_LIMIT:
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None:
        raise UsageError(f"{size!r} is not an amount of memory.", "Write it as 8G, 512M or a number of bytes.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raises UsageError for what is no whole number of this range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name}={value!r} is not a whole number from {least} to {most}.", "Give such a one.")
