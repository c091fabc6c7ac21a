"""Clients that contend for one lock and one register while the cluster suffers faults, and the checker's lock.

What the clients see is recorded as a history of each (`kos_cluster.sim.recording`). An answer that did not come is
recorded as unknown; the client then gives its lock up, again and again until it is told that it has. Clients of the
register read it, write it, and write it if it still holds what they read.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial

import msgspec

from kos_cluster import errors
from kos_cluster.net.locks import LockReleased, LockState, LockWanted
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.sim.linearizability import Operation
from kos_cluster.sim.recording import Recorder
from kos_cluster.sim.sequential import CompareAndSet, Read, Write
from tests.e2e.fleet import LEASE_S, Fleet, until

CLIENTS = 4
ASK_S = 1.5  # for one answer
CALM_CALLS = 5  # of each kind that writes the register, before the first fault
CUT_OFF_CALLS = 20  # that write the register while a node is cut off that may believe it coordinates
THINK_S = 0.02  # between two requests of a client of the register
REGISTER = "contest"
UNKNOWN = object()  # no answer came
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
    """Clients that take one lock from each other, and others that write one register, through random nodes, while
    coordinators are killed, stalled and cut off from the other nodes. Two histories: of the lock, and of the register.
    """

    def __init__(self, fleet: Fleet, rng: random.Random) -> None:
        self._fleet = fleet
        self._lock, self._register = Recorder(), Recorder()
        self._guard = threading.Lock()
        self._rng = rng
        self._ended = threading.Event()
        self.calls: Counter[type] = Counter(
            {Write: 0, CompareAndSet: 0}
        )  # on the register, that may have done something
        self.calm_s = 0.0  # when the first fault began

    def histories(self) -> tuple[list[Operation], list[Operation]]:
        threads = [
            threading.Thread(target=run, args=(f"c{number}",))
            for number in range(CLIENTS)
            for run in (self._contend, self._write)
        ]
        for thread in threads:
            thread.start()
        try:
            until(lambda: min(self.calls.values()) >= CALM_CALLS, "something was written")
            self.calm_s = time.monotonic()
            killed = self._fleet.coordinator()
            self._fleet.kill(killed)
            self._fleet.successor(killed)
            self._fleet.start(killed)
            stalled = self._fleet.coordinator()
            self._fleet.freeze(stalled)
            self._fleet.successor(stalled)
            self._fleet.thaw(stalled)
            cut_off = self._fleet.coordinator()
            with self._fleet.apart(cut_off):  # clients ask it all the same
                self._fleet.successor(cut_off)
                written = self.calls.total() + CUT_OFF_CALLS
                until(lambda: self.calls.total() >= written, "the others write without it")
            self._fleet.coordinator()
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()
        return self._lock.history(), self._register.history()

    def _contend(self, process: str) -> None:
        for turn in itertools.count():
            if self._ended.is_set():
                return
            owner = f"{process}-{turn}"
            taken = self._call(self._lock, process, Acquire(owner), partial(self._take, owner))
            while taken is not False and self._give_up(process, owner) is UNKNOWN:
                pass

    def _take(self, owner: str, node: str) -> object:
        try:
            wanted = LockWanted("contest", owner, LEASE_S, 0.0)
            return self._fleet.ask(node, wanted, LockState, ASK_S).token
        except errors.LockHeldError:
            return False

    def _give_up(self, process: str, owner: str) -> object:
        released = LockReleased("contest", owner)
        return self._call(
            self._lock, process, Release(owner), lambda node: self._fleet.ask(node, released, bool, ASK_S)
        )

    def _write(self, process: str) -> None:
        """Read before each write, until an answer comes: a history with many open writes is not searched in time."""
        writes = itertools.count()
        while not self._ended.is_set():
            seen = self._call(self._register, process, Read(), partial(self._asked, Read()))
            if seen is not UNKNOWN:
                turn = next(writes)
                value = f"{process}-{turn}"
                wanted = CompareAndSet(seen, value) if turn % 2 else Write(value)
                if self._call(self._register, process, wanted, partial(self._asked, wanted)) is not False:
                    self.calls[type(wanted)] += 1
            time.sleep(THINK_S)

    def _asked(self, wanted: Read | Write | CompareAndSet, node: str) -> object:
        match wanted:
            case Read():
                return self._fleet.ask(node, RegistersAsked(REGISTER), dict[str, str | None], ASK_S)[REGISTER]
            case Write(value):
                return self._fleet.ask(node, RegisterWritten(REGISTER, str(value)), bool, ASK_S)
            case CompareAndSet(expected, value):
                old = None if expected is None else str(expected)
                return self._fleet.ask(node, RegisterWritten(REGISTER, str(value), True, old), bool, ASK_S)

    def _call(self, recorder: Recorder, process: str, input: Hashable, ask: Callable[[str], object]) -> object:
        """What a random node answered; `UNKNOWN` when none came."""
        with self._guard:
            node = self._rng.choice(list(self._fleet.machines))
            recorder.call(process, input, time.monotonic())
        answer: object = UNKNOWN
        with suppress(errors.UnreachableError):
            answer = ask(node)
        with self._guard:
            if answer is UNKNOWN and isinstance(input, Read):
                recorder.failed(process)
            elif answer is UNKNOWN:
                recorder.unknown(process)
            else:
                recorder.ok(process, answer, time.monotonic())
        if answer is UNKNOWN:
            time.sleep(PAUSE_S)
        return answer
