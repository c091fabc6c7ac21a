"""Durations, sizes, counts and addresses as people type them, turned into numbers.

Rules: pure functions of a string. What is wrong is said in one sentence, as ArgumentTypeError, which argparse names the
option for.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PORT_LIMIT = 65534  # the bulk port is the next one


def duration(text: str) -> float:
    """Seconds of "90", "90s", "15m", "24h" or "1d"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None or float(match[1]) == 0:
        raise ArgumentTypeError(f"{text!r} is not a duration; write for example 90s, 15m or 24h")
    return float(match[1]) * SECONDS[match[2] or "s"]


def plain(text: str, unit: str) -> float:
    """A number above 0 without its unit, "10" or "0.5"."""
    if re.fullmatch(r"\d+(?:\.\d+)?", text) is None or float(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not a number of {unit}; write for example 10 or 0.5")
    return float(text)


def memory(text: str) -> int:
    """Bytes of "512M", "8G" or a plain number. Raises UsageError."""
    from kos_cluster.core.quantities import size_bytes  # here, or the grammar would load the library

    return size_bytes(text)


def label(text: str) -> str:
    """A label that a task asks for, "zone=a", or is to be away from, "zone!=a". Raises UsageError."""
    from kos_cluster.tasks.options import label_term  # as above

    label_term(text)
    return text


def node_label(text: str) -> tuple[str, str]:
    """Name and value of a label that a node has, "zone=a"."""
    from kos_cluster.core.capacity import NAME  # as above

    name, equals, value = text.partition("=")
    if not equals or not NAME.fullmatch(name) or not NAME.fullmatch(value):
        raise ArgumentTypeError(f"{text!r} is not a label of a node; write for example zone=a")
    return name, value


def resource(text: str) -> tuple[str, int]:
    """Name and number of a named resource, "licence=2" or "licence" for one."""
    from kos_cluster.core.capacity import AMOUNT_LIMIT, NAME  # as above

    name, equals, number = text.partition("=")
    amount = count(number) if equals else 1
    if not NAME.fullmatch(name) or amount > AMOUNT_LIMIT:
        raise ArgumentTypeError(f"{text!r} is not a resource; write for example licence=2")
    return name, amount


def priority(text: str) -> int:
    """A job's priority, "-3" or "5"."""
    from kos_cluster.core.turns import PRIORITY_LIMIT  # as above

    if not re.fullmatch(r"-?\d{1,9}", text) or abs(int(text)) > PRIORITY_LIMIT:
        raise ArgumentTypeError(
            f"{text!r} is not a priority; write a whole number from {-PRIORITY_LIMIT} to {PRIORITY_LIMIT}"
        )
    return int(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count_or_zero(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def address(text: str) -> tuple[str, int | None]:
    """Host and port of "HOST", "HOST:PORT" or "[IPV6]:PORT"; the port is None when it is not given."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%]+)\]|([^:\[\]\s/]+))(?::(\d+))?", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not an address; write HOST or HOST:PORT")
    port = int(match[3]) if match[3] else None
    if port is not None and not 1 <= port <= PORT_LIMIT:
        raise ArgumentTypeError(f"{port} cannot be a node's port; use one of 1 to {PORT_LIMIT}")
    return match[1] or match[2], port


def port(text: str) -> int:
    """A port's number."""
    number = count(text)
    if number > PORT_LIMIT:
        raise ArgumentTypeError(f"{number} cannot be a port; use one of 1 to {PORT_LIMIT}")
    return number


def variable(text: str) -> tuple[str, str | None]:
    """Name and value of an environment variable: "NAME" (the value is taken from here) or "NAME=VALUE"."""
    name, equals, value = text.partition("=")
    if not name.isidentifier():
        raise ArgumentTypeError(f"{name!r} is not the name of an environment variable")
    return name, value if equals else None
