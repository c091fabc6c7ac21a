"""What of KOS runs inside Ray's worker processes: calls, and the relay by which they say something.

Theory of operation. Ray passes on what a task returns, and nothing before; its own way for output mixes that of all
tasks. So a connection has an actor, the relay, which keeps texts until the connection takes them. A call says how many
texts it has handed over, and its future is done when as many have come. The call runs in a thread, as Ray stops a task
by an interrupt of the main one: that sets the task's `stopped`, and the main thread goes on to wait.

Limits: `PENDING_CHARACTERS` wait in a call's process, and as many in the relay, where calls hand over one lot each at a
time: its texts stay with that question until there is room. Who writes more waits.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from kos_cluster.services.engines.engine import Task

PENDING_CHARACTERS = 1 << 20
POLL_S = 0.1  # between two looks for an interrupt
HEAR_TIMEOUT_S = 5.0  # of one question to the relay

Text = tuple[str, str, str]  # id of the call, stream, text


class Returned(NamedTuple):
    """How a call has ended."""

    texts: int  # that it said
    value: Any = None
    error: BaseException | None = None
    trace: str = ""


class Relay:
    """An actor of Ray: texts of calls on their way to the connection."""

    def __init__(self) -> None:
        self._texts: list[Text] = []
        self._characters = 0
        self._changed = asyncio.Condition()

    async def say(self, texts: list[Text]) -> None:
        """Returns when there was room for these."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._characters < PENDING_CHARACTERS)
            self._texts += texts
            self._characters += sum(len(text) for *_, text in texts)
            self._changed.notify_all()

    async def hear(self) -> list[Text]:
        """All that there is, as soon as there is something."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: bool(self._texts)), HEAR_TIMEOUT_S)
            except TimeoutError:
                return []
            texts, self._texts, self._characters = self._texts, [], 0
            self._changed.notify_all()
            return texts


def run(call: Callable[[Task], Any], id_: str, relay: Any) -> Returned:
    """A call as a task of Ray."""
    task = _Task(id_, relay)
    ended: list[Returned] = []

    def work() -> None:
        try:
            value = call(task)
        except BaseException as error:
            ended.append(Returned(task.close(), error=error, trace=traceback.format_exc()))
        else:
            ended.append(Returned(task.close(), value))

    thread = threading.Thread(target=work, name="kos-call", daemon=True)
    thread.start()
    while thread.is_alive():
        try:
            thread.join(POLL_S)
        except KeyboardInterrupt:
            task.stopped.set()
    return ended[0]


class _Task:
    """Implements `engine.Task`."""

    def __init__(self, id_: str, relay: Any) -> None:
        self.stopped = threading.Event()
        self._id = id_
        self._relay = relay
        self._texts: list[Text] = []
        self._characters = 0
        self._said = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, stream: str, text: str) -> None:
        if self._relay is None:
            return
        with self._changed:
            self._changed.wait_for(lambda: self._characters < PENDING_CHARACTERS or self._closed)
            if self._closed:
                return
            self._texts.append((self._id, stream, text))
            self._characters += len(text)
            self._said += 1
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._pass_on, name="kos-texts", daemon=True)
                self._thread.start()

    def close(self) -> int:
        """Returns when the relay has all; how many texts that were."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        return self._said

    def _pass_on(self) -> None:
        import ray

        try:
            while texts := self._taken():
                ray.get(self._relay.say.remote(texts))
        except ray.exceptions.RayError:  # the connection is gone, and who would read it with it
            self.stopped.set()
        finally:
            with self._changed:  # nobody makes room any more: who waits for it would wait for good
                self._closed = True
                self._changed.notify_all()

    def _taken(self) -> list[Text]:
        """What waits to be passed on; nothing, when nothing comes any more."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._texts) or self._closed)
            texts, self._texts, self._characters = self._texts, [], 0
            self._changed.notify_all()
            return texts
