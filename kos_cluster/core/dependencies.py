"""Tasks that wait for the results of other tasks: which may go now, and which never will.

Theory of operation. A held task names its inputs, tasks of the same owner. It is released when the last of them has
ended well. When one fails or is cancelled, the task fails without being run, and so do those that wait for it.

    task      event                      next
    -         held, with inputs          held
    held      its last input ended well  released (forgotten here)
    held      an input failed            failed (forgotten here); its takers likewise
    held      dropped                    forgotten

Rules: a task is held after its inputs were submitted, so there can be no cycle; one that holds itself is refused all
the same. Knowing whether an input has ended already is the runtime's: it is told to `Follow` an input, and says `Ended`
at once for one that is over. Saying it twice changes nothing. `PAIRS_LIMIT` bounds what is held.
"""

from __future__ import annotations

import msgspec

PAIRS_LIMIT = 500_000  # (task, input) that one process holds at once


class Held(msgspec.Struct, frozen=True):
    """A task must wait for these. Tasks are named by their ids, "JOB.INDEX"."""

    task: str
    inputs: tuple[str, ...]


class Ended(msgspec.Struct, frozen=True):
    """An input is over."""

    task: str
    failed: bool


class Dropped(msgspec.Struct, frozen=True):
    """A held task is wanted no more."""

    task: str


class Follow(msgspec.Struct, frozen=True):
    """Say when this input has ended; at once, if it has."""

    task: str


class Release(msgspec.Struct, frozen=True):
    """All inputs of this task are there."""

    task: str


class Fail(msgspec.Struct, frozen=True):
    """This task will never run, since `input` failed or was cancelled."""

    task: str
    input: str


Event = Held | Ended | Dropped
Effect = Follow | Release | Fail


class Dependencies:
    """The machine. One instance per client process."""

    def __init__(self) -> None:
        self._left: dict[str, dict[str, None]] = {}  # held task -> the inputs that have not ended, in order
        self._takers: dict[str, dict[str, None]] = {}  # input -> the tasks that wait for it

    def __len__(self) -> int:
        """Tasks that are held."""
        return len(self._left)

    def handle(self, event: Event) -> list[Effect]:
        """Take in one event. Raises ValueError for a task that waits for itself."""
        match event:
            case Held(task, inputs):
                return self._hold(task, inputs)
            case Ended(task, failed):
                return self._fail_takers(task) if failed else self._satisfy(task)
            case Dropped(task):
                self._forget(task)
                return []

    def waits_for(self, task: str) -> tuple[str, ...]:
        """The inputs of a held task that have not ended."""
        return tuple(self._left.get(task, ()))

    def _hold(self, task: str, inputs: tuple[str, ...]) -> list[Effect]:
        if task in inputs:
            raise ValueError(f"Task {task} cannot wait for itself.")
        if not inputs:
            return [Release(task)]
        self._left[task] = dict.fromkeys(inputs)
        new = [input_ for input_ in self._left[task] if input_ not in self._takers]
        for input_ in self._left[task]:
            self._takers.setdefault(input_, {})[task] = None
        return [Follow(input_) for input_ in new]

    def _satisfy(self, input_: str) -> list[Effect]:
        released: list[Effect] = []
        for task in self._takers.pop(input_, ()):
            left = self._left[task]
            del left[input_]
            if not left:
                del self._left[task]
                released.append(Release(task))
        return released

    def _fail_takers(self, input_: str) -> list[Effect]:
        """In the order in which each error can name the one before."""
        failed: list[Effect] = []
        ended = [input_]
        for cause in ended:
            for task in list(self._takers.get(cause, ())):
                self._forget(task)
                failed.append(Fail(task, cause))
                ended.append(task)
        return failed

    def _forget(self, task: str) -> None:
        for input_ in self._left.pop(task, ()):
            takers = self._takers[input_]
            del takers[task]
            if not takers:
                del self._takers[input_]
