"""Find which object inside a value cannot be pickled, and the path to it.

Rules: runs only after pickling has failed, so it may pickle parts again; it tries at most `TRIES_LIMIT` parts a step
and follows at most `DEPTH_LIMIT` steps, and then names what it has reached. It never raises anything of its own.
"""

from __future__ import annotations

import copyreg
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from kos_cluster.errors import NotPicklableError

TRIES_LIMIT = 2_000  # parts of one object that are pickled again
DEPTH_LIMIT = 50  # steps from the value to the culprit
_CLASS_PLUMBING = frozenset({"__dict__", "__weakref__", "__module__", "__doc__", "__qualname__"})

Labelled = tuple[str, Any]


def explain(what: str, roots: list[Labelled], error: Exception, pickles: Callable[[Any], bool]) -> NotPicklableError:
    """The error for `what`, whose labelled parts are `roots`; `error` is how pickling it failed."""
    found = _search(roots, pickles)
    hint = "Make it inside the task instead, or pass what is needed to make it."
    if found is None:
        return NotPicklableError(f"{what} cannot be pickled: {type(error).__name__}: {error}.", hint)
    path, culprit = found
    where = ", ".join(label for label in path if label)
    name = _type_name(culprit)
    reason = "" if name.rpartition(".")[2] in str(error) else f" ({error})"
    return NotPicklableError(f"{what} cannot be pickled: {where + ': ' if where else ''}a {name}{reason}.", hint)


def _search(roots: list[Labelled], pickles: Callable[[Any], bool]) -> tuple[list[str], Any] | None:
    path: list[str] = []
    culprit: Any = None
    seen: set[int] = set()
    candidates: Iterator[Labelled] = iter(roots)
    while len(path) < DEPTH_LIMIT:
        failing = next(_failing(candidates, seen, pickles), None)
        if failing is None:
            break
        label, culprit = failing
        seen.add(id(culprit))
        path.append(label)
        candidates = islice(_children(culprit), TRIES_LIMIT)
    return (path, culprit) if path else None


def _failing(candidates: Iterator[Labelled], seen: set[int], pickles: Callable[[Any], bool]) -> Iterator[Labelled]:
    try:
        yield from ((label, child) for label, child in candidates if id(child) not in seen and not pickles(child))
    except Exception:  # looking into a user's object runs its code; then the object itself is what is named
        return


def _children(value: Any) -> Iterator[Labelled]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"key {_short(key)}", item
            yield f"the key {_short(key)} itself", key
    elif isinstance(value, (list, tuple)):
        yield from ((f"item {position}", item) for position, item in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from (("an element", item) for item in value)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield "its object", value.__self__
        yield "its function", value.__func__
    elif isinstance(value, functools.partial):
        yield "its function", value.func
        yield from ((f"argument {number}", item) for number, item in enumerate(value.args, 1))
        yield from ((f"argument {name!r}", item) for name, item in value.keywords.items())
    elif isinstance(value, type):
        names = (name for name in vars(value) if name not in _CLASS_PLUMBING)
        yield from ((f"class attribute {name}", vars(value)[name]) for name in names)
        yield from ((f"base class {base.__name__}", base) for base in value.__bases__)
    elif isinstance(value, (staticmethod, classmethod)):
        yield "its function", value.__func__
    else:
        yield from _of_object(value)


def _of_function(function: types.FunctionType) -> Iterator[Labelled]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"enclosed variable {name}", cell.cell_contents
        except ValueError:  # an empty cell holds nothing
            continue
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"global {name}", function.__globals__[name]
    yield from ((f"default {position}", item) for position, item in enumerate(function.__defaults__ or (), 1))
    yield from ((f"default of {name}", item) for name, item in (function.__kwdefaults__ or {}).items())
    yield from ((f"attribute {name}", item) for name, item in vars(function).items())


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _of_object(value: Any) -> Iterator[Labelled]:
    """The parts that pickle would ask an object for."""
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:  # this is the object that refuses
        return
    if not isinstance(reduced, tuple):
        return
    parts: tuple[Any, ...] = (*reduced, None, None, None, None)
    function, args, state, items, pairs = parts[:5]
    if function in (copyreg.__newobj__, copyreg.__reduce_ex__):  # type: ignore[attr-defined]
        args = args[1:]
    yield from _of_state(state)
    yield from ((f"constructor argument {number}", item) for number, item in enumerate(args or (), 1))
    yield from ((f"item {position}", item) for position, item in enumerate(items or ()))
    yield from ((f"key {_short(key)}", item) for key, item in pairs or ())


def _of_state(state: Any) -> Iterator[Labelled]:
    halves = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    for half in halves:
        if isinstance(half, dict):
            yield from ((f"attribute {name}", item) for name, item in half.items())
        elif half is not None:
            yield "its state", half


def _short(key: Any) -> str:
    text = repr(key) if isinstance(key, (str, int, float, bytes, tuple)) else f"a {_type_name(key)}"
    return text if len(text) <= 60 else text[:57] + "..."


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
