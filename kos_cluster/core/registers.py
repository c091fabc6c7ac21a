"""Registers of users: small named texts that all nodes agree on, kept among the cluster's settings.

Rules: a register is the setting of its name after `PREFIX`, so no register is a setting that the cluster reads itself.
All of them take `TOTAL_LIMIT_BYTES` at most, names included, since they are in every snapshot, and are listed in one
answer. The node that is asked looks at that limit in what it has applied, so writes at the same time may pass it by
what they write; what each write is checked against when it is applied are the limits of settings.
"""

from __future__ import annotations

from collections.abc import Mapping

from kos_cluster.core.names import checked
from kos_cluster.core.replicated.settings import VALUE_LIMIT_BYTES
from kos_cluster.errors import LimitError

PREFIX = "register/"
REGISTERS_LIMIT = 256
TOTAL_LIMIT_BYTES = 64 << 10  # of all names and values


def setting_of(name: str) -> str:
    """The setting that a register is. Raises UsageError for a name that no register can have."""
    return PREFIX + checked(name, "register")


def registers(settings: Mapping[str, str]) -> dict[str, str]:
    """All registers, by their names."""
    return {name.removeprefix(PREFIX): value for name, value in sorted(settings.items()) if name.startswith(PREFIX)}


def check_room(settings: Mapping[str, str], name: str, value: str | None) -> None:
    """Raises LimitError when the registers would take too much with this value in this one; None removes it."""
    if value is None:
        return
    size_bytes = _size_bytes(value)
    if size_bytes > VALUE_LIMIT_BYTES:
        raise LimitError(
            f"The value of the register {name} takes {size_bytes:,} bytes; the limit is {VALUE_LIMIT_BYTES:,}.",
            "Keep it in a file, and its name in the register.",
        )
    others = {other: held for other, held in registers(settings).items() if other != name}
    if len(others) >= REGISTERS_LIMIT:
        raise LimitError(f"There are {REGISTERS_LIMIT} registers already, which is the limit.", _REMOVE)
    total_bytes = len(name) + size_bytes + sum(len(other) + _size_bytes(held) for other, held in others.items())
    if total_bytes > TOTAL_LIMIT_BYTES:
        raise LimitError(
            f"With that the registers would take {total_bytes:,} bytes; the limit is {TOTAL_LIMIT_BYTES:,}.", _REMOVE
        )


_REMOVE = "Remove one first: 'kos register NAME --unset'."


def _size_bytes(value: str) -> int:
    return len(value.encode("utf-8", "surrogatepass"))
