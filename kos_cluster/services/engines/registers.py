"""Reading and writing what the cluster knows of its engines.

Rules: what is in a register and is no record is told, not guessed at, and is nothing to the engines beside it. What is
removed, or is written late, is compared with the engine's id: a name may have gone to another engine meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from kos_cluster.errors import EngineError, StateError
from kos_cluster.services.engines.spec import PREFIX, Began, Record, Wanted, head_of, record_of, wanted_of

if TYPE_CHECKING:
    from kos_cluster.tasks.cluster import Cluster
    from kos_cluster.tasks.registers import Register

TRIES_LIMIT = 16  # of removing a register that others write
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


def say_began(cluster: Cluster, name: str, began: Began) -> None:
    """Write that a head serves. Raises EngineError when its engine was given up meanwhile, or has a newer life."""
    register = cluster.register(head_of(name))
    _check_lives(cluster, name, began)
    register.set(encoded(began))
    try:
        _check_lives(cluster, name, began)
    except EngineError:
        register.compare_and_set(encoded(began), None)
        raise


def forget(cluster: Cluster, name: str, engine: str) -> None:
    """Remove all that is written of the engine of this id, and nothing of another one that has its name.

    What it is found by goes first, so an engine that was removed in part is not seen any more, and a head that begins
    late sees that nobody wants it. What is left is removed with the next engine of that name.
    """
    _remove(cluster.register(record_of(name)), lambda text: is_record_of(name, text, engine))
    sweep(cluster, name, lambda id_: id_ in (engine, ""))


def sweep(cluster: Cluster, name: str, unwanted: Callable[[str], bool]) -> None:
    """Remove what is written beside a record, if the id of the engine that it is for is unwanted: empty for none."""
    _remove(cluster.register(head_of(name)), lambda text: unwanted(_engine_of(text, Began)))
    _remove(cluster.register(wanted_of(name)), lambda text: unwanted(_engine_of(text, Wanted)))


def is_record_of(name: str, text: str, engine: str) -> bool:
    """Whether a text is the record of the engine of this id."""
    try:
        return decoded(record_of(name), text, Record).id == engine
    except StateError:
        return False


def _engine_of(text: str, kind: type[Began] | type[Wanted]) -> str:
    """The id of the engine that it is for; empty when it is something else."""
    try:
        return msgspec.json.decode(text, type=kind).engine
    except msgspec.DecodeError:
        return ""


def _remove(register: Register, unwanted: Callable[[str], bool]) -> None:
    for _ in range(TRIES_LIMIT):  # it may be written meanwhile
        held = register.get()
        if held is None or not unwanted(held) or register.compare_and_set(held, None):
            return


def _check_lives(cluster: Cluster, name: str, began: Began) -> None:
    text = cluster.register(record_of(name)).get()
    record = None if text is None else decoded(record_of(name), text, Record)
    if record is None or record.id != began.engine or record.life > began.life:
        raise EngineError(f"Engine {name!r} was given up while its head started.", "See 'kos engine list'.")
