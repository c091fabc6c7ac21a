"""A generator as a task, in the worker: items go out one by one, and no further ahead than its owner allows.

Theory of operation. Before each step the generator waits until the owner wants an item more; what it yields is pickled
and sent at once. What it returns is the task's result. An attempt that is not the first runs from the beginning; items
that the owner has are not sent again, only counted.

Rules: a generator is closed however its task ends, so its `finally` blocks run.
"""

from __future__ import annotations

import types
from typing import Any, Protocol

from kos_cluster.tasks import serialise
from kos_cluster.tasks.interrupts import Interrupts

GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)


class Outlet(Protocol):
    """The worker, as a generator needs it."""

    def send_item(self, position: int, data: bytes | serialise.Segments) -> None:
        """Raises KosError when a large item cannot be kept."""

    def more_wanted(self) -> int:
        """Wait until the owner wants more; up to which position then. May be interrupted."""


class Yielding:
    """One generator on its way; `count` is how many items it has yielded.

    The owner has the first `have` of them, and wants those `until` a position.
    """

    def __init__(self, generator: Any, have: int, until: int) -> None:
        self._generator = generator
        self._have = have
        self._until = until
        self.count = 0

    def run(self, outlet: Outlet, interrupts: Interrupts) -> Any:
        """What the generator returns in the end. Begins and ends in user code."""
        steps = self._generator
        if isinstance(steps, types.AsyncGeneratorType):
            from kos_cluster.tasks import coroutines

            steps = coroutines.iterated(steps, interrupts)
        try:
            while True:
                while self.count >= self._until:
                    self._until = outlet.more_wanted()
                try:
                    item = next(steps)
                except StopIteration as end:
                    return end.value
                data = serialise.dumps_result(item)
                interrupts.in_user_code = False
                if self.count >= self._have:
                    outlet.send_item(self.count, data)
                self.count += 1
                del item, data  # not kept while the taker takes its time
                interrupts.enter()
        finally:
            steps.close()
