"""Futures as arguments: how they are found in a call, how their results reach the task, and what a failed one means.

Theory of operation. A future that is met while a call's arguments are pickled leaves a numbered place in the pickle,
wherever it stands in them. When all those futures have ended, the call is made whole: one pickle, of that pickle and of
the inputs' own payloads as they came from their workers, so no input is unpickled here, whatever its size. The worker
unpickles the inputs first, each once, and then the arguments with the values in their places.

An input of `INLINE_BYTES` and more does not stand in the call: it travels as a part, by the hash of its content, so a
node gets it once, for however many tasks. An input whose payload is itself a reference to memory elsewhere needs
nothing of this: the reference is small, and is resolved where the task unpickles it.

Rules: a future is an argument only of the cluster that it belongs to, and a gang is none. What `result()` gave is
passed as it is when the future is first passed on.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kos_cluster.core.records import INPUTS_TOLD_LIMIT
from kos_cluster.errors import InputFailedError, KosError, LimitError, UsageError
from kos_cluster.net.transport import Payload
from kos_cluster.tasks import serialise
from kos_cluster.tasks.futures import Origin, Outcome, Settled, StayedOutcome
from kos_cluster.tasks.places import Gathering, Whole

if TYPE_CHECKING:
    from kos_cluster.tasks.futures import Future

INLINE_BYTES = 64 << 10  # of an input's payload; larger ones travel as parts
INPUTS_LIMIT = 16_384  # of one task
TEXT_LIMIT_CHARACTERS = 500  # of the input's own error, in the error of the task that wanted it


Inputs = tuple["Future", ...]


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Inputs]:
    """Pickle one call's arguments; gives the futures that it takes, too. Raises NotPicklableError, LimitError."""
    with Gathering() as found:
        payload = serialise.dumps_args(args, kwargs)
    return payload, _checked(found) if found else ()


def dumps_calls(calls: Iterable[tuple[Any, ...]]) -> tuple[list[bytes], dict[int, Inputs]]:
    """The calls' pickled arguments, and by their numbers the futures of those that take any."""
    payloads: list[bytes] = []
    inputs: dict[int, Inputs] = {}
    with Gathering() as found:
        for number, args in enumerate(calls):
            payloads.append(serialise.dumps_args(args, {}))
            if found:
                inputs[number] = _checked(found)
                found.clear()
    return payloads, inputs


def named(inputs: Inputs) -> tuple[str, ...]:
    """The ids of those that a story tells."""
    return tuple(future.task for future in inputs[:INPUTS_TOLD_LIMIT])


def _checked(found: dict[Future, int]) -> Inputs:
    if len(found) > INPUTS_LIMIT:
        raise LimitError(
            f"A call takes {len(found):,} futures, over the limit of {INPUTS_LIMIT:,} for one task.",
            "Take them in several tasks, and the results of those in one.",
        )
    return tuple(found)


def check(inputs: Inputs, owner: object) -> None:
    """Raises UsageError for gangs, and for futures that are not of this connection to a cluster."""
    from kos_cluster.tasks.gangs import Gang  # which needs this module itself

    for future in inputs:
        if isinstance(future, Gang):
            raise UsageError(
                f"Gang {future.id} cannot be an argument: tasks wait for results of tasks, and it has one a rank.",
                "Wait for its result(), and pass that or what you need of it.",
            )
        if future.owner is not owner:
            raise UsageError(
                f"The future of task {future.task} belongs to another connection, or to one that is closed.",
                "Pass its result() instead.",
            )


def joined(call: bytes, inputs: Inputs) -> tuple[bytes, dict[str, Payload]]:
    """The payload of a call whose inputs have all ended well, and the parts with the large ones."""
    parts: dict[str, Payload] = {}
    values: list[bytes | str] = []
    for future in inputs:
        outcome = future.ending()
        assert isinstance(outcome, Outcome)
        if len(outcome.payload) < INLINE_BYTES:
            values.append(bytes(outcome.payload))
        else:
            hash_ = future.payload_hash()
            parts[hash_] = outcome.payload
            values.append(hash_)
    return pickle.dumps(Whole(call, values), serialise.PROTOCOL), parts


def origins_of(inputs: Inputs) -> tuple[Origin, ...]:
    """How those of these results were made that stay where they were made."""
    endings = [future.ending() for future in inputs]
    return tuple(ending.origin for ending in endings if isinstance(ending, StayedOutcome) and ending.origin is not None)


# ---- failures


@dataclass(frozen=True, slots=True)
class InputFailure(Outcome):
    """The outcome of a task that was not run, as one that it waits for failed or was cancelled.

    `root` is the task that failed by itself, `ending` how, `through` the input, where that was not run either. `lost`:
    the result of `root` was there once, and this is what became of making it again.
    """

    task: str = ""
    root: str = ""
    ending: Settled = None
    through: str = ""
    lost: bool = False

    def error(self) -> BaseException:
        needed = f"the result of task {self.through}, which needs that" if self.through else "the result"
        what = _told_of_lost(self.ending) if self.lost else f"{_told(self.ending)}."
        hint = self.ending.hint if self.lost and isinstance(self.ending, KosError) else ""
        error = InputFailedError(
            f"Task {self.task} was not run: it needs {needed} of task {self.root}, which {what}",
            hint or f"Type 'kos story {self.root}' for its attempts.",
        )
        error.__cause__ = self.ending.error() if isinstance(self.ending, Outcome) else self.ending
        return error


def _told(ending: Settled) -> str:
    """How the input ended, in words that name its node."""
    if ending is None:
        return "was cancelled"
    if isinstance(ending, Outcome):
        failed = serialise.loads(ending.payload)
        text, where = f"{failed.type_name}: {failed.message}", f" on {failed.node}"
    else:
        text, where = f"{type(ending).__name__}: {ending}", ""  # an error of KOS, which names the node itself
    return f"failed{where}: {text[:TEXT_LIMIT_CHARACTERS].rstrip('.')}"


def _told_of_lost(ending: Settled) -> str:
    """As `_told`, a whole sentence, of a result that was lost."""
    if isinstance(ending, KosError):
        return f"was lost. {ending.message}"
    return f"was lost; when it was made again, it {_told(ending)}."


def failure(task: str, input_: Future) -> InputFailure:
    """How a task ends whose input has failed or was cancelled."""
    return failure_by(task, input_.task, input_.ending(), lost=False)


def failure_by(task: str, input_: str, ending: Settled, *, lost: bool) -> InputFailure:
    """How a task ends whose input, that task, has ended so. Nothing is unpickled before somebody asks for the error."""
    if isinstance(ending, InputFailure):
        return replace(ending, task=task, through=input_)
    return InputFailure(b"", True, task, input_, ending, lost=lost)
