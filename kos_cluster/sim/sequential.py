"""What a register and a key-value store answer when they serve one operation at a time: models for the checker.

    object      operation              answer         state afterwards
    register    Read()                 the state      the same
    register    Write(v)               anything       v
    register    CompareAndSet(e, v)    True           v; the state was e
    register    CompareAndSet(e, v)    False          the same; the state was not e
    store       Get(k)                 the state      the same
    store       Put(k, v)              anything       v
    store       Append(k, v)           anything       the state, then v

Rules: of an operation whose answer is unknown only the effect counts. A store is one text for each key, empty at first;
the keys are independent of each other.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable, Sequence

import msgspec

from kos_cluster.errors import UsageError
from kos_cluster.sim.linearizability import Operation


class Read(msgspec.Struct, frozen=True):
    """Ask for the register's value."""


class Write(msgspec.Struct, frozen=True):
    """Set the register's value."""

    value: Hashable


class CompareAndSet(msgspec.Struct, frozen=True):
    """Set the register's value if it is the expected one; the answer says whether."""

    expected: Hashable
    value: Hashable


class Get(msgspec.Struct, frozen=True):
    """Ask for a key's text."""

    key: str


class Put(msgspec.Struct, frozen=True):
    """Set a key's text."""

    key: str
    value: str


class Append(msgspec.Struct, frozen=True):
    """Add to the end of a key's text."""

    key: str
    value: str


class Register:
    """One value, with compare-and-set."""

    def __init__(self, initial: Hashable = None) -> None:
        self._initial = initial

    def init(self) -> Hashable:
        return self._initial

    def step(self, state: Hashable, operation: Operation) -> tuple[bool, Hashable]:
        unknown = operation.returned is None
        match operation.input:
            case Read():
                return unknown or operation.output == state, state
            case Write(value):
                return True, value
            case CompareAndSet(expected, value):
                would_set = state == expected
                return unknown or operation.output is would_set, value if would_set else state
        raise _foreign(operation, "a register")

    def looks_only(self, operation: Operation) -> bool:
        refused = operation.returned is not None and operation.output is False
        return isinstance(operation.input, Read) or (isinstance(operation.input, CompareAndSet) and refused)

    def partition(self, history: Sequence[Operation]) -> dict[str, tuple[Register, Sequence[Operation]]]:
        return {"": (self, history)}


class KeyValue:
    """A text for each key. `answers` are all that gets of one key answered, when only that key is looked at.

    They keep the search small: unless a text begins one of the answers, no get ever shows it, nor what is appended.
    """

    def __init__(self, answers: Iterable[str] | None = None) -> None:
        self._answers = None if answers is None else sorted(answers)

    def init(self) -> str:
        return ""

    def step(self, state: str, operation: Operation) -> tuple[bool, str]:
        known = operation.returned is not None
        match operation.input:
            case Get():
                return not known or operation.output == state, state
            case Put(_, value):
                return known or self._may_show(value), value
            case Append(_, value):
                return known or self._may_show(state + value), state + value
        raise _foreign(operation, "a key-value store")

    def looks_only(self, operation: Operation) -> bool:
        return isinstance(operation.input, Get)

    def partition(self, history: Sequence[Operation]) -> dict[str, tuple[KeyValue, Sequence[Operation]]]:
        parts: dict[str, list[Operation]] = {}
        for operation in history:
            if not isinstance(operation.input, Get | Put | Append):
                raise _foreign(operation, "a key-value store")
            parts.setdefault(operation.input.key, []).append(operation)
        return {f"key {key!r}": (KeyValue(_answers(part)), part) for key, part in sorted(parts.items())}

    def _may_show(self, text: str) -> bool:
        if self._answers is None:
            return True
        at = bisect.bisect_left(self._answers, text)
        return at < len(self._answers) and self._answers[at].startswith(text)


def _answers(history: Iterable[Operation]) -> set[str]:
    return {o.output for o in history if isinstance(o.input, Get) and isinstance(o.output, str)}


def _foreign(operation: Operation, what: str) -> UsageError:
    return UsageError(
        f"The history has an operation that {what} does not have: {operation}.",
        "Check it with the model of the object that it was recorded from.",
    )
