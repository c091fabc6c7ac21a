"""The report of a benchmark: figures and what they were measured on, for a terminal and, with `--json`, as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from kos_cluster.errors import UsageError
from kos_cluster.services.bench import machine

FigureT = TypeVar("FigureT")


class Report(msgspec.Struct, Generic[FigureT], frozen=True):
    """What `--json` writes."""

    figures: list[FigureT]
    machine: dict[str, str | int | list[float]]
    versions: dict[str, str]


def report_of(figures: list[FigureT]) -> Report[FigureT]:
    """A report of figures that were measured on this machine just now."""
    return Report(figures, machine.machine(), machine.versions())


def circumstances(about: Mapping[str, object], versions: Mapping[str, str]) -> list[str]:
    """What it was measured on: the last lines on a terminal."""
    return [
        "Machine: " + ", ".join(f"{key} {value}" for key, value in about.items()),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]


def target_of(path: str | Path | None) -> Path | None:
    """Where a file goes that was asked for; refused now rather than after the measuring when it cannot be written."""
    if path is None:
        return None
    target = Path(path)
    try:
        target.touch()
    except OSError as error:
        raise UsageError(f"Cannot write {target}: {error.strerror}.", "Name a file in a folder that exists.") from None
    return target


def write(report: msgspec.Struct, target: Path | None) -> None:
    """Write a report as JSON, if that was asked for."""
    if target is not None:
        target.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
