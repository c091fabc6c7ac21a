"""Reading and writing what the cluster knows of its engines.

Rules: what is in a register and is no record is told, not guessed at, and is nothing to the engines beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from kos_cluster.errors import StateError
from kos_cluster.services.engines.spec import PREFIX, Record, head_of, record_of, wanted_of

if TYPE_CHECKING:
    from kos_cluster.tasks.cluster import Cluster

T = TypeVar("T")


def encoded(value: msgspec.Struct) -> str:
    """As a register holds it."""
    return msgspec.json.encode(value).decode()


def decoded(name: str, text: str, kind: type[T]) -> T:
    """What a register holds. Raises StateError."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise StateError(
            f"The register {name} holds nothing that this version knows of an engine: {error}.",
            f"If nobody needs it, type 'kos register {name} --unset'.",
        ) from None


def records(registers: Mapping[str, str]) -> list[Record]:
    """The engines of a cluster, by name; what `strangers` has is left out."""
    return [each for each in _read(registers) if isinstance(each, Record)]


def strangers(registers: Mapping[str, str]) -> list[StateError]:
    """What is named as an engine's record is, and is none."""
    return [each for each in _read(registers) if isinstance(each, StateError)]


def _read(registers: Mapping[str, str]) -> Iterator[Record | StateError]:
    for name in sorted(registers):
        if name.startswith(PREFIX) and "." not in name[len(PREFIX) :]:
            try:
                yield decoded(name, registers[name], Record)
            except StateError as error:
                yield error


def forget(cluster: Cluster, name: str) -> None:
    """Remove all that is written of an engine. What it is found by comes last."""
    for register in (wanted_of(name), head_of(name), record_of(name)):
        cluster.register(register).set(None)
