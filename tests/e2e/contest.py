"""Clients that contend for one lock while the cluster suffers faults, and the model of a lock for the checker.

What the clients see is recorded as a history (`kos_cluster.sim.recording`). An answer that did not come is recorded as
unknown; the client then gives that lock up, again and again until it is told that it has.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from kos_cluster import errors
from kos_cluster.net import wire
from kos_cluster.sim.linearizability import Operation
from kos_cluster.sim.recording import Recorder
from tests.e2e.fleet import LEASE_S, Fleet

CLIENTS = 4
ASK_S = 1.5  # for one answer
PAUSE_S = 0.05  # after a node did not answer; it may be down, and every try is one more that nobody knows of


class Acquire(msgspec.Struct, frozen=True):
    """Take the lock or be refused at once: its token, or False. An owner acquires once."""

    owner: str


class Release(msgspec.Struct, frozen=True):
    """Give the lock up, if it is this owner's: True in any case."""

    owner: str


class Lock:
    """A lock with fencing tokens: (its owner or "", the largest token that was seen). A model for the checker."""

    def init(self) -> tuple[str, int]:
        return "", 0

    def step(self, state: tuple[str, int], operation: Operation) -> tuple[bool, tuple[str, int]]:
        owner, last = state
        wanted: Acquire | Release = operation.input  # type: ignore[assignment]
        known = operation.returned is not None
        if isinstance(wanted, Release):
            return True, ("", last) if owner == wanted.owner else state
        if not known:
            return True, (wanted.owner, last) if not owner else state
        if operation.output is False:
            return bool(owner), state
        return not owner and int(operation.output) > last, (wanted.owner, int(operation.output))  # type: ignore[call-overload]

    def looks_only(self, operation: Operation) -> bool:
        return operation.returned is not None and operation.output is False

    def partition(self, history: Sequence[Operation]) -> dict[str, tuple[Lock, Sequence[Operation]]]:
        return {"": (self, history)}


class Contest:
    """Clients that take one lock from each other through random nodes, while coordinators are killed and stalled."""

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._recorder = Recorder()
        self._guard = threading.Lock()
        self._rng = rng
        self._ended = threading.Event()

    def history(self) -> list[Operation]:
        threads = [threading.Thread(target=self._contend, args=(f"c{number}",)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            killed = self._fleet.coordinator()
            self._fleet.kill(killed)
            self._fleet.successor(killed)
            self._fleet.start(killed)
            stalled = self._fleet.coordinator()
            self._fleet.freeze(stalled)
            self._fleet.successor(stalled)
            self._fleet.thaw(stalled)
            self._fleet.coordinator()
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()
        return self._recorder.history()

    def _contend(self, process: str) -> None:
        for turn in itertools.count():
            if self._ended.is_set():
                return
            owner = f"{process}-{turn}"
            taken = self._call(process, Acquire(owner), wire.LockWanted("contest", owner, LEASE_S, 0.0))
            while (
                taken is not False and self._call(process, Release(owner), wire.LockReleased("contest", owner)) is None
            ):
                pass

    def _call(self, process: str, input: Acquire | Release, question: wire.Asked) -> object:
        """What was answered; None when nobody knows."""
        with self._guard:
            node = self._rng.choice(list(self._fleet.machines))
            self._recorder.call(process, input, time.monotonic())
        answer: object = None
        with suppress(errors.UnreachableError):
            try:
                if isinstance(question, wire.LockWanted):
                    answer = self._fleet.ask(node, question, wire.LockState, ASK_S).token
                else:
                    answer = self._fleet.ask(node, question, bool, ASK_S)
            except errors.LockHeldError:
                answer = False
        with self._guard:
            if answer is None:
                self._recorder.unknown(process)
            else:
                self._recorder.ok(process, answer, time.monotonic())
        if answer is None:
            time.sleep(PAUSE_S)
        return answer
