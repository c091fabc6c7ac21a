"""What of KOS runs inside Dask's own processes: calls in its workers, and what the scheduler counts.

Rules. A call says something with its worker's events, which reach the client before the end of its task does. How often
a call may be lost with its worker is its annotation `RETRIES`. Dask counts the losses of each task, and gives it up
when they are more than the scheduler's `allowed_failures`; so the count of a call begins as far below that as it has
tries. What calls say is kept by the scheduler only until it has sent it: Dask would keep 1,000 events of each topic.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import distributed
from distributed.diagnostics.plugin import SchedulerPlugin

from kos_cluster.services.engines.engine import Task

RETRIES = "kos_retries"
TOPIC = "kos-"  # and the id of the client: the topic of what its calls say
COUNTED = "kos_counted"  # a question to the scheduler
TEXT_LIMIT_CHARACTERS = 1 << 16  # of one event; a longer text becomes several
EARLY_LIMIT = 4096  # cancelled calls that are remembered, should their tasks begin yet

_running: dict[str, threading.Event] = {}  # calls of this process, by their ids
_early: deque[str] = deque(maxlen=EARLY_LIMIT)


class Call:
    """A call as the function of a Dask task."""

    def __init__(self, call: Callable[[Task], Any], id_: str, topic: str) -> None:
        self._call, self._id, self._topic = call, id_, topic

    def __call__(self) -> Any:
        task = _Task(self._id, self._topic)
        _running[self._id] = task.stopped  # first, or the word to stop could fall between the two
        if self._id in _early:
            del _running[self._id]
            return None
        try:
            return self._call(task)
        finally:
            del _running[self._id]


class _Task:
    def __init__(self, id_: str, topic: str) -> None:
        self._id, self._topic = id_, topic
        self._worker = distributed.get_worker()
        self.stopped = threading.Event()

    def write(self, stream: str, text: str) -> None:
        for start in range(0, len(text), TEXT_LIMIT_CHARACTERS):
            piece = text[start : start + TEXT_LIMIT_CHARACTERS]
            self._worker.log_event(self._topic, (self._id, stream, piece))


def stop(ids: list[str]) -> None:
    """In a worker: tell those of these calls that run here, or begin yet, that they are to stop.

    Dask cancels those that have not begun, but its word for that may come after this one and after their beginning.
    """
    for id_ in ids:
        stopped = _running.get(id_)
        if stopped is not None:
            stopped.set()
        else:
            _early.append(id_)


class AtHead(SchedulerPlugin):  # type: ignore[misc]  # Dask has no types
    """In the scheduler: gives each call its own number of tries, and answers `counted`."""

    name = "kos-at-head"

    async def start(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        scheduler.handlers[COUNTED] = self.counted

    def counted(self) -> tuple[list[str], int, int, int]:
        """The workers, tasks that wait, tasks that run, bytes that are kept."""
        workers = self._scheduler.workers.values()
        running = sum(len(worker.executing) for worker in workers)
        open_ = sum(
            group.states[state]
            for group in self._scheduler.task_groups.values()
            for state in ("waiting", "no-worker", "queued", "processing")
        )
        held_bytes = sum(worker.nbytes for worker in workers)
        return [worker.address for worker in workers], max(0, open_ - running), running, held_bytes

    def log_event(self, topic: str, msg: Any) -> None:
        """An event was sent to those who want it."""
        if not topic.startswith(TOPIC):
            return
        if topic.removeprefix(TOPIC) in self._scheduler.clients:
            self._scheduler._broker.truncate(topic)
        else:  # a call that goes on after its client has gone
            self._forget(topic)

    def remove_client(self, scheduler: Any, client: str) -> None:
        self._forget(TOPIC + client)

    def _forget(self, topic: str) -> None:
        self._scheduler._broker._topics.pop(topic, None)

    def update_graph(self, scheduler: Any, *, annotations: dict[str, dict[Any, Any]], **_: Any) -> None:
        for key, retries in annotations.get(RETRIES, {}).items():
            task = scheduler.tasks.get(key)
            if task is not None:
                task.suspicious = scheduler.allowed_failures - retries
