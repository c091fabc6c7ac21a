"""The options of `submit`, `map` and the commands that run work, checked in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from kos_cluster.core.capacity import AMOUNT_LIMIT, NAME, NAMES_LIMIT
from kos_cluster.core.placement import contradiction
from kos_cluster.core.quantities import WHOLE_LIMIT, size_bytes
from kos_cluster.core.records import LabelTerm, Layout, Needs
from kos_cluster.core.turns import PRIORITY_LIMIT
from kos_cluster.errors import PlacementError, UsageError

if TYPE_CHECKING:
    from kos_cluster.tasks.output import Sink


@dataclass(frozen=True)
class Options:
    """How tasks are to be run. `memory` is in bytes, or text such as "8G"; `timeout` in seconds a task.

    `labels` of the node: "zone=a", "zone!=a", several of them, or a mapping such as {"zone": "a", "disk": "!slow"}.
    `away_from` names nodes, `near` and `apart` jobs by id or name: one or several.
    """

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
    gpus: int = 0
    resources: Mapping[str, int] | None = None  # named ones that nodes declare, with how many
    labels: str | Sequence[str] | Mapping[str, str] = ()
    away_from: str | Sequence[str] = ()
    spread: bool = False  # over as many nodes as there are
    pack: bool = False  # on as few nodes as will do
    near: str | Sequence[str] = ()  # on nodes with tasks of these jobs, where there is room
    apart: str | Sequence[str] = ()  # never on a node with tasks of these jobs
    speculate: bool = False  # tasks that last far longer than the others of a map run a second time elsewhere
    priority: int = 0  # each step doubles the job's share of what this user has
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
        _check(_whole(self.gpus, 0), "gpus", self.gpus, "a whole number from 0")
        _check(isinstance(self.speculate, bool), "speculate", self.speculate, "True or False")
        if self.speculate and self.retries == 0:
            hint = "Leave out one of the two."
            raise UsageError("speculate=True runs tasks a second time, and retries=0 asks that none is.", hint)
        _check(_priority(self.priority), "priority", self.priority, PRIORITIES)
        _check(isinstance(self.spread, bool), "spread", self.spread, "True or False")
        _check(isinstance(self.pack, bool), "pack", self.pack, "True or False")
        self._make_plain("resources", _resources(self.resources))
        self._make_plain("labels", _label_texts(self.labels))
        for name in ("away_from", "near", "apart"):
            self._make_plain(name, _names(name, getattr(self, name)))
        both = "be spread and packed" if self.spread and self.pack else contradiction(self.needs())
        if both:
            raise PlacementError(f"No task can {both}.", "Leave out one of the two.")

    def _make_plain(self, name: str, value: object) -> None:
        """Keep an option in the one form in which it is compared, hashed and sent."""
        object.__setattr__(self, name, value)

    def needs(self, modules: tuple[str, ...] = ()) -> Needs:
        return Needs(
            cpus=self.cpus,
            memory_bytes=size_bytes(self.memory),
            on=self.on,
            modules=modules,
            gpus=self.gpus,
            resources=tuple(sorted((self.resources or {}).items())),
            labels=tuple(map(label_term, self.labels)),
            away_from=tuple(self.away_from),
            layout=Layout.SPREAD if self.spread else Layout.PACK if self.pack else Layout.ANY,
            near=tuple(self.near),
            apart=tuple(self.apart),
        )


PRIORITIES = f"a whole number from {-PRIORITY_LIMIT} to {PRIORITY_LIMIT}"
NAMES = frozenset(f.name for f in fields(Options))


def split_options(keywords: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Part a call's keywords into options and the function's own. None stands for an option's default."""
    if not keywords:
        return PLAIN, keywords
    own = {name: value for name, value in keywords.items() if name not in NAMES}
    return Options(**{name: v for name, v in keywords.items() if name in NAMES and v is not None}), own


def label_term(text: str) -> LabelTerm:
    """What "zone=a" or "zone!=a" asks of a node. Raises UsageError."""
    name, equals, value = text.partition("=")
    away = name.endswith("!")
    name = name.removesuffix("!")
    if not equals or not NAME.fullmatch(name) or not NAME.fullmatch(value):
        raise UsageError(f"{text!r} is not a label.", "Write it as zone=a, or zone!=a to be away from it.")
    return LabelTerm(name, value, away)


def _label_texts(labels: object) -> tuple[str, ...]:
    """Labels in any of their forms as texts, sorted. Raises UsageError."""
    if isinstance(labels, Mapping):
        told = [(str(name), str(value)) for name, value in labels.items()]
        texts = [f"{name}!={value[1:]}" if value.startswith("!") else f"{name}={value}" for name, value in told]
    else:
        texts = list(_names("labels", labels))
    for text in texts:
        label_term(text)
    return tuple(sorted(set(texts)))


def _names(option: str, value: object) -> tuple[str, ...]:
    """One name or several, as several, each once."""
    names: Iterable[object] = (value,) if isinstance(value, str) else value if isinstance(value, Iterable) else (None,)
    found = list(dict.fromkeys(names))
    good = len(found) <= NAMES_LIMIT and all(isinstance(name, str) and name for name in found)
    _check(good, option, value, f"a text, or up to {NAMES_LIMIT} texts, none of them empty")
    return tuple(map(str, found))


def _resources(value: object) -> dict[str, int] | None:
    if not value:
        return None
    good = isinstance(value, Mapping) and len(value) <= NAMES_LIMIT
    _check(
        good
        and isinstance(value, Mapping)
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in value)
        and all(_whole(count, 1) and count <= AMOUNT_LIMIT for count in value.values()),
        "resources",
        value,
        f"a mapping of up to {NAMES_LIMIT} names to whole numbers from 1",
    )
    assert isinstance(value, Mapping)
    return dict(value)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= WHOLE_LIMIT


def _priority(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= PRIORITY_LIMIT


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
