"""The options of `submit`, `map` and the commands that run work, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from kos_cluster.core.quantities import WHOLE_LIMIT, size_bytes
from kos_cluster.core.records import Needs
from kos_cluster.errors import UsageError

if TYPE_CHECKING:
    from kos_cluster.tasks.output import Sink


@dataclass(frozen=True)
class Options:
    """How tasks are to be run. `memory` is in bytes, or text such as "8G"; `timeout` in seconds a task."""

    cpus: int = 1
    memory: int | str = 0
    on: str = ""  # a node's name; empty: any
    timeout: float | None = None
    retries: int = 3  # times a task is tried again after its worker or node was lost
    name: str = ""  # of the job, in listings
    seed: int | None = None  # makes `random` and numpy reproducible by task
    env: Mapping[str, str] | None = None  # environment variables of the tasks
    fresh: bool = False  # a new worker for each task
    max_parallel: int = 0  # tasks running at once; 0: no cap
    sink: Sink | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check(_whole(self.cpus, 1), "cpus", self.cpus, "a whole number from 1")
        _check(_whole(self.retries, 0), "retries", self.retries, "a whole number from 0")
        _check(_whole(self.max_parallel, 0), "max_parallel", self.max_parallel, "a whole number from 0")
        _check(self.timeout is None or _seconds(self.timeout), "timeout", self.timeout, "a number of seconds above 0")
        _check(self.seed is None or _whole(self.seed, 0), "seed", self.seed, "a whole number from 0")
        _check(isinstance(self.on, str), "on", self.on, "a node's name, or an empty string")
        _check(isinstance(self.name, str), "name", self.name, "text")
        _check(isinstance(self.fresh, bool), "fresh", self.fresh, "True or False")
        _check(self.env is None or _variables(self.env), "env", self.env, "a mapping of names to text, without NULs")
        size_bytes(self.memory)

    def needs(self, modules: tuple[str, ...] = ()) -> Needs:
        return Needs(self.cpus, size_bytes(self.memory), self.on, modules)


NAMES = frozenset(f.name for f in fields(Options))


def split_options(keywords: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Part a call's keywords into options and the function's own. None stands for an option's default."""
    if not keywords:
        return PLAIN, keywords
    own = {name: value for name, value in keywords.items() if name not in NAMES}
    return Options(**{name: v for name, v in keywords.items() if name in NAMES and v is not None}), own


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= WHOLE_LIMIT


def _seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _variables(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    texts = [text for item in value.items() for text in item]
    return all(isinstance(text, str) and "\0" not in text for text in texts) and all(
        name and "=" not in name for name in value
    )


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise UsageError(f"{name}={value!r} is not {wanted}.", f"Give {name} as {wanted}.")


PLAIN = Options()
