"""A host: what it runs, when it has time for it, and how it dies and comes back.

Theory of operation. A host runs programs, each the carrier of one core machine, as a daemon runs them: one thing at a
time, in the order in which things came. A slow host is busy for a while after each thing it does; a paused one
(SIGSTOP) does nothing and finds everything in its inbox later. `boots` numbers its lives: work that was meant for an
earlier life is dropped.

    state    event            next
    down     restart          up        (programs are made anew, from what the disk kept)
    up       crash            down      (the inbox and every machine are gone)
    up       pause            paused
    paused   its time is over up        (the inbox is worked off)
    paused   crash            down

Rules: programs act through `run` and the agenda, so that a crash between two steps takes the second one away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from kos_cluster.sim.agenda import Agenda
from kos_cluster.sim.clocks import HostClock
from kos_cluster.sim.disk import Crash

INBOX_LIMIT = 2000  # what waits for a busy host; beyond it the oldest go, as a network drops them
TICK_LATE_MOST_S = 0.001  # how late a timer wakes its host


class Program(Protocol):
    """The carrier of one machine."""

    name: str

    def start(self) -> None: ...

    def stop(self, crash: Crash) -> None: ...

    def take(self, sender: str, message: Any) -> None: ...

    def tick(self) -> None: ...

    @property
    def deadline(self) -> float: ...


class Host:
    """One computer of the world."""

    def __init__(self, name: str, agenda: Agenda, random: Random) -> None:
        self.name = name
        self.clock = HostClock()
        self.up = False
        self.boots = 0
        self.lag_s = 0.0  # how long a slow host is busy after each thing
        self.programs: dict[str, Program] = {}
        self._agenda = agenda
        self._random = random
        self._free_at_s = 0.0
        self._inbox: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque(maxlen=INBOX_LIMIT)
        self._plans = self._planned = (
            0  # the number under which working off the inbox stands in the agenda; 0: it does not
        )
        self._wake_at_s: dict[str, float] = {}

    @property
    def now(self) -> float:
        """What its monotonic clock shows."""
        return self.clock.local_s(self._agenda.now_s)

    def restart(self) -> None:
        self.up = True
        self.boots += 1
        self._free_at_s = 0.0
        self.clock.boot(self._agenda.now_s, self._random.random() * 1000.0)
        for program in self.programs.values():
            program.start()
            self.watch(program)

    def crash(self, crash: Crash = Crash.BEFORE) -> None:
        """The host dies at once; `crash` says what becomes of an unsynced write."""
        self.up = False
        self.boots += 1
        self._inbox.clear()
        self._planned = 0
        self._wake_at_s.clear()
        for program in self.programs.values():
            program.stop(crash)

    def pause(self, until_s: float) -> None:
        self._free_at_s = max(self._free_at_s, until_s)

    def resume(self) -> None:
        """No longer slow, no longer paused."""
        self.lag_s = 0.0
        self._free_at_s = min(self._free_at_s, self._agenda.now_s)
        self._planned = 0  # what stands in the agenda is for the end of the pause
        self._plan_work(self.boots)

    def run(self, boot: int, work: Callable[..., object], *values: Any) -> None:
        """Do this now, or as soon as what came before is done; never in another life than `boot`."""
        if boot != self.boots or not self.up:
            return
        if self._inbox or self._free_at_s > self._agenda.now_s:
            self._inbox.append((work, values))
            self._plan_work(boot)
            return
        self._do(work, values)

    def _plan_work(self, boot: int) -> None:
        if self._inbox and not self._planned:
            self._plans += 1
            self._planned = self._plans
            self._agenda.at(self._free_at_s, self._work_off, boot, self._planned)

    def _work_off(self, boot: int, planned: int) -> None:
        if boot != self.boots or planned != self._planned:
            return
        self._planned = 0
        if self._free_at_s <= self._agenda.now_s:  # else it was paused meanwhile
            self._do(*self._inbox.popleft())
        if boot == self.boots:
            self._plan_work(boot)

    def _do(self, work: Callable[..., object], values: tuple[Any, ...]) -> None:
        if self.lag_s:
            self._free_at_s = self._agenda.now_s + self.lag_s * (0.5 + self._random.random())
        work(*values)

    # ---- timers

    def watch(self, program: Program) -> None:
        """See to it that the program ticks at its deadline, or a little later."""
        due_s = self.clock.true_s(program.deadline)
        wake_at_s = self._wake_at_s.get(program.name)
        if wake_at_s is None or due_s < wake_at_s - TICK_LATE_MOST_S:
            at_s = max(due_s, self._agenda.now_s) + self._random.random() * TICK_LATE_MOST_S
            self._wake_at_s[program.name] = at_s
            self._agenda.at(at_s, self._wake, self.boots, program, at_s)

    def _wake(self, boot: int, program: Program, at_s: float) -> None:
        if boot == self.boots and self._wake_at_s.get(program.name) == at_s:
            self.run(boot, self._tick, program)

    def _tick(self, program: Program) -> None:
        self._wake_at_s.pop(program.name, None)
        boot = self.boots
        if self.now >= program.deadline:
            program.tick()
        if boot == self.boots:
            self.watch(program)
