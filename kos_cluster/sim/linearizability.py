"""Is a recorded history linearizable: is there one order of its operations that explains every answer?

Theory of operation. A history is a list of operations, each with the time of its call and of its return. An order
explains it when no operation is placed before another that had returned before it was called, and when an object
that serves them one at a time, in that order, gives the recorded answers (M. Herlihy, J. Wing, "Linearizability: a
correctness condition for concurrent objects", TOPLAS 12(3), 1990). The object is a `Model`; `sequential.py` has two.

The search places one operation after another and goes back where it is stuck (J. Wing, C. Gong, "Testing and
verifying concurrent objects", JPDC 17, 1993). What lies ahead depends only on which operations are placed and on the
state that they left, so no such pair is searched twice (G. Lowe, "Testing for linearizability", Concurrency and
Computation 29(4), 2017). Operations come in two kinds:

    returned     how placed
    a time       must be placed, before any operation that was called after it
    None         the outcome is unknown: it may be placed at any point after its call, or never

An operation that certainly had no effect is left out of a history, unless its answer tells something: a refused
compare-and-set does. An object of independent parts (a store of keys) is linearizable when each part is, so each is
searched on its own.

Unknown outcomes stay open to the end, and make the search exponential. Four rules keep it small; none loses an order:

- An operation that only looks, and whose answer fits the present state, is placed at once and no other is tried:
  wherever an order has it later, it could as well stand here.
- An unknown operation whose effect does away with that of the unknown one just before is not placed: the one before
  was of no use.
- Of unknown operations that ask for the same thing, the one called first is placed first: they can change places.
- When nothing was found with some unknown operations used up, nothing will be with these and more used up. So those
  that change nothing are not used up either.

The search of one history ends at `STATES_LIMIT`; the verdict is then "unknown", never a guess.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from kos_cluster.errors import UsageError

STATES_LIMIT = 500_000  # states searched in one history, all its parts together; some 10 to 20 s and 200 MiB
USED_SETS_LIMIT = 32  # sets of used-up operations that are compared with a new one
SHOWN_LIMIT = 8  # operations that an explanation lists of each kind

State = TypeVar("State", bound=Hashable)


class Operation(msgspec.Struct, frozen=True):
    """One call of one process. Times are of one clock and of any unit: seconds, or places in a log.

    Where `returned` is None the outcome is unknown and `output` means nothing.
    """

    process: int | str
    called: float
    returned: float | None
    input: Hashable
    output: Hashable = None

    def __str__(self) -> str:
        if self.returned is None:
            return f"process {self.process}: {self.input} -> unknown (called at {self.called:g})"
        return f"process {self.process}: {self.input} -> {self.output!r} ({self.called:g} to {self.returned:g})"


class Model(Protocol[State]):
    """An object that serves one operation at a time. States are compared and hashed, so they are immutable values."""

    def init(self) -> State:
        """The state before the first operation."""

    def step(self, state: State, operation: Operation) -> tuple[bool, State]:
        """Whether the object could answer so in this state, and its state afterwards.

        An unknown operation fits, but need not where the model can tell that no recorded answer will show its effect.
        """

    def looks_only(self, operation: Operation) -> bool:
        """Whether the operation, having had this answer, changes no state whatever."""

    def partition(self, history: Sequence[Operation]) -> Mapping[str, tuple[Model[State], Sequence[Operation]]]:
        """For each independent part its name, its model and its history."""


class Outcome(enum.StrEnum):
    """What the search found."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not-linearizable"
    UNKNOWN = "unknown"  # the limit of states was reached first


class Verdict(msgspec.Struct, frozen=True):
    """The outcome for a history, and for the part that decided it what can be shown.

    `order` is a linearization when the outcome is "linearizable" (of the last part that was searched). Otherwise it
    is the one that came furthest: everything that returned before `blocked` did is in it, and no order that was tried
    has room for `blocked` too.
    """

    outcome: Outcome
    states: int  # searched
    part: str = ""
    order: tuple[Operation, ...] = ()
    blocked: Operation | None = None
    open: tuple[Operation, ...] = ()  # called before `blocked` returned, and not in `order`
    state: str = ""  # after `order`, for people

    def __str__(self) -> str:
        """The counter-example as a page for people; one line when there is none."""
        if self.blocked is None:
            return f"{self.outcome}: {self.states} states searched."
        part = f" of {self.part}" if self.part else ""
        lines = [f"{self.outcome}: the history{part}, {self.states} states searched. No order has room for"]
        if self.outcome is Outcome.UNKNOWN:
            lines = [f"unknown: the history{part} is not decided after {self.states} states. No order yet has room for"]
        lines += [
            f"    {self.blocked}",
            f"after these {len(self.order)} operations, which leave the state {self.state}:",
        ]
        left_out = len(self.order) - SHOWN_LIMIT
        lines += [f"    ... {left_out} before"] if left_out > 0 else []
        lines += [f"    {operation}" for operation in self.order[-SHOWN_LIMIT:]]
        if self.open:
            lines.append("and these were under way, or may have been:")
            lines += [f"    {operation}" for operation in self.open[:SHOWN_LIMIT]]
            lines += [f"    ... {len(self.open) - SHOWN_LIMIT} more"] if len(self.open) > SHOWN_LIMIT else []
        return "\n".join(lines)


def check(history: Sequence[Operation], model: Model[State], states_limit: int = STATES_LIMIT) -> Verdict:
    """Search an order that explains the history. Raises UsageError for a history that no clock could have recorded.

    A part that is not linearizable decides, whatever is not known of the others.
    """
    _refuse_impossible(history)
    states = 0
    verdict = Verdict(Outcome.LINEARIZABLE, 0)
    for name, (part_model, part) in model.partition(history).items():
        found = _Search(part_model, part).run(name, states_limit - states)
        states += found.states
        if verdict.outcome is Outcome.LINEARIZABLE or found.outcome is Outcome.NOT_LINEARIZABLE:
            verdict = found
        if found.outcome is Outcome.NOT_LINEARIZABLE:
            break
    return msgspec.structs.replace(verdict, states=states)


def _refuse_impossible(history: Sequence[Operation]) -> None:
    """A return before its call, or a process that calls while it waits, is a fault of the recording."""
    free_from: dict[int | str, float] = {}
    for operation in sorted(history, key=lambda operation: operation.called):
        if operation.returned is not None and operation.returned < operation.called:
            raise UsageError(f"The history has an operation that returned before its call: {operation}.", _RECORD)
        if operation.called < free_from.get(operation.process, -math.inf):
            raise UsageError(f"In the history a process calls before its last call returned: {operation}.", _RECORD)
        if operation.returned is not None:
            free_from[operation.process] = operation.returned


_RECORD = "Record both times with one clock, and one process for each thread of calls."


class _Config(NamedTuple, Generic[State]):
    """How far an order has come: all known operations before `low` are placed, and those whose bits `window` has."""

    low: int
    window: int  # bit i stands for the known operation low + i; bit 0 is never set
    used: int  # bit i stands for the unknown operation i
    state: State


class _Node(NamedTuple, Generic[State]):
    """A configuration with the way that led to it."""

    config: _Config[State]
    placed: Operation | None
    parent: _Node[State] | None

    def order(self) -> tuple[Operation, ...]:
        operations: list[Operation] = []
        node: _Node[State] | None = self
        while node is not None and node.placed is not None:
            operations.append(node.placed)
            node = node.parent
        return tuple(reversed(operations))


class _Search(Generic[State]):
    """The search of one part."""

    def __init__(self, model: Model[State], history: Sequence[Operation]) -> None:
        self._model = model
        by_call = sorted(history, key=lambda operation: operation.called)
        self._known = [operation for operation in by_call if operation.returned is not None]
        self._returns = [operation.returned for operation in by_call if operation.returned is not None]
        self._looks = [model.looks_only(operation) for operation in self._known]
        self._unknown = [o for o in by_call if o.returned is None and not model.looks_only(o)]
        self._twins = _earlier_twins(self._unknown)
        self._seen: set[_Config[State]] = set()
        self._used: dict[tuple[int, int, State], list[int]] = {}  # the same, by all but `used`; the first few of each

    def run(self, name: str, states_limit: int) -> Verdict:
        node = _Node(_Config(0, 0, 0, self._model.init()), None, None)
        stack: list[_Node[State]] = [node]
        furthest, furthest_deadline, states = node, -math.inf, 0
        while stack:
            node = stack.pop()
            if node.config.low == len(self._known):
                return Verdict(Outcome.LINEARIZABLE, states, name, node.order(), state=repr(node.config.state))
            if self._was_searched(node.config):
                continue
            ready, deadline = self._ready(node.config)
            if deadline > furthest_deadline:
                furthest, furthest_deadline = node, deadline
            if states >= states_limit:
                return self._stuck(Outcome.UNKNOWN, name, states, furthest)
            states += 1
            stack.extend(_Node(config, placed, node) for placed, config in self._next(node, ready, deadline))
        return self._stuck(Outcome.NOT_LINEARIZABLE, name, states, furthest)

    def _was_searched(self, config: _Config[State]) -> bool:
        """Whether this was searched, or the same with fewer unknown operations used up; else it is from now on."""
        used_sets = self._used.setdefault((config.low, config.window, config.state), [])
        if config in self._seen or any(used & ~config.used == 0 for used in used_sets):
            return True
        self._seen.add(config)
        if len(used_sets) < USED_SETS_LIMIT:
            used_sets.append(config.used)
        return False

    def _ready(self, config: _Config[State]) -> tuple[list[int], float]:
        """The known operations that may come next, and the time at which the first of them returned."""
        ready: list[int] = []
        deadline = math.inf
        for index in range(config.low, len(self._known)):
            if self._known[index].called > deadline:
                break
            if not config.window >> (index - config.low) & 1:
                ready.append(index)
                deadline = min(deadline, self._returns[index])
        return ready, deadline

    def _next(self, node: _Node[State], ready: list[int], deadline: float) -> list[tuple[Operation, _Config[State]]]:
        """The ways to go on, the most promising last: what returned first, and unknown operations if all else fails."""
        ways = list(self._with_unknown(node, deadline))
        for index in sorted(ready, key=self._returns.__getitem__, reverse=True):
            operation = self._known[index]
            fits, state = self._model.step(node.config.state, operation)
            if fits:
                way = (operation, _place(node.config, index, state))
                if self._looks[index]:
                    return [way]
                ways.append(way)
        return ways

    def _with_unknown(self, node: _Node[State], deadline: float) -> Iterator[tuple[Operation, _Config[State]]]:
        config = node.config
        for index, operation in enumerate(self._unknown):
            if operation.called > deadline:
                break
            if config.used >> index & 1 or self._twins[index] & ~config.used:
                continue
            fits, state = self._model.step(config.state, operation)
            if fits and not self._overwrites(node, operation, state):
                yield operation, config._replace(used=config.used | 1 << index, state=state)

    def _overwrites(self, node: _Node[State], operation: Operation, state: State) -> bool:
        """Whether the last operation was unknown, and this one leads to the same state without it."""
        if node.parent is None or node.placed is None or node.placed.returned is not None:
            return False
        return self._model.step(node.parent.config.state, operation) == (True, state)

    def _stuck(self, outcome: Outcome, name: str, states: int, furthest: _Node[State]) -> Verdict:
        config = furthest.config
        ready, deadline = self._ready(config)
        blocked = self._known[min(ready, key=self._returns.__getitem__)]
        under_way = [self._known[index] for index in ready if self._known[index] is not blocked]
        unused = [o for i, o in enumerate(self._unknown) if o.called <= deadline and not config.used >> i & 1]
        return Verdict(outcome, states, name, furthest.order(), blocked, (*under_way, *unused), repr(config.state))


def _place(config: _Config[State], index: int, state: State) -> _Config[State]:
    window = config.window | 1 << (index - config.low)
    low = config.low
    while window & 1:
        window >>= 1
        low += 1
    return _Config(low, window, config.used, state)


def _earlier_twins(unknown: Sequence[Operation]) -> list[int]:
    """For each operation the bit of the last one before it that asks for the same, or no bit."""
    last: dict[Hashable, int] = {}
    twins: list[int] = []
    for index, operation in enumerate(unknown):
        twins.append(last.get(operation.input, 0))
        last[operation.input] = 1 << index
    return twins
