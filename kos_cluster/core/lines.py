"""The batches that wait on a node, one line per (user, job), and what each line has had of the node's slots.

Theory of operation. Users take turns, and within each user's share that user's jobs do (`turns`); within a job the
first come goes first. What is shared are slots times seconds: a batch is charged what the line's batches have taken so
far as it starts, more as it runs longer, and what it has taken in truth when it ends. The time for which it lends its
slots is not charged. A job's share of its user's grows with its priority; between users a priority says nothing.

A batch that lacks only slots may be passed by others that fit into what is free. Once it is first in turn, that ends
after `PASSED_S`: for twice as long nothing starts, so that slots gather for it; then others pass twice as long again,
and so on by turns that double; only the time counts in which it is first. So it starts, however long the others last,
and at most two thirds of the time are lost to them meanwhile.

Rules. An entry waits in its line, or is counted as running until it is over; never both. A line is kept while it has
either.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import log2
from typing import Generic, Protocol, TypeVar

from kos_cluster.core.capacity import Demand
from kos_cluster.core.turns import SHARERS_LIMIT, Turns, weight_of

PASSED_S = 1.0  # a batch that is first in turn and lacks only slots is passed by others for so long
FIRST_GUESS_S = 0.02  # slots times seconds that a line's first batch, which is one task, is taken to need
SMOOTHING = 0.3  # weight of the newest batch in what the next one is taken to need


class Sharing(Demand, Protocol):
    """What a batch takes, and how its job stands to others of its user."""

    @property
    def priority(self) -> int: ...


@dataclass(slots=True, eq=False)
class Waiter:
    """A batch in its line, or counted as running."""

    spec: Sharing
    line: tuple[str, str]  # (user, job)
    passed_s: float = 0.0  # for how long it has been first in turn and did not fit
    since_s: float | None = None  # since when it uses slots that are not in `used_s`
    used_s: float = 0.0  # slots times seconds
    charged_s: float = 0.0


W = TypeVar("W", bound=Waiter)


@dataclass(slots=True)
class _Line(Generic[W]):
    waiting: deque[W] = field(default_factory=deque)
    running: int = 0
    guess_s: float = FIRST_GUESS_S
    weight: float = 1.0


def gathers(waited_s: float) -> bool:
    """Whether slots are kept free now for one that has been first in turn for so long."""
    return int(log2(waited_s / PASSED_S + 1)) % 2 == 1


class Lines(Generic[W]):
    """All lines of one node."""

    def __init__(self) -> None:
        self._lines: defaultdict[tuple[str, str], _Line[W]] = defaultdict(_Line)
        self._users: Turns[str] = Turns()
        self._jobs: defaultdict[str, Turns[str]] = defaultdict(Turns)  # of each user
        self._waiting = 0
        self._first: W | None = None  # in turn at the last look, where it did not fit
        self._looked_s = 0.0

    def __len__(self) -> int:
        """How many batches wait."""
        return self._waiting

    def add(self, entry: W, *, first: bool = False) -> None:
        """It waits at the end of its line, or (again) in front of it."""
        user, job = entry.line
        line = self._lines[entry.line]
        line.weight = weight_of(entry.spec.priority)
        (line.waiting.appendleft if first else line.waiting.append)(entry)
        self._waiting += 1
        self._users.come(user)
        self._jobs[user].come(job)

    def remove(self, entry: W) -> bool:
        """It waits no longer; False when it did not."""
        line = self._lines.get(entry.line)
        if line is None or entry not in line.waiting:
            return False
        line.waiting.remove(entry)
        if self._first is entry:
            self._first = None
        self._left(entry.line, line)
        return True

    def next(self, fits: Callable[[Sharing], bool], but_for_slots: Callable[[Sharing], bool], now: float) -> W | None:
        """The first batch in turn that fits, counted as running from now on; None when there is none, or none may."""
        if self._first is not None:
            self._first.passed_s += now - self._looked_s
        self._first, self._looked_s = None, now
        for user in self._users:
            for job in self._jobs[user]:
                entry = self._lines[user, job].waiting[0]
                if fits(entry.spec):
                    return self._start(entry, now)
                if self._first is None:
                    self._first = entry
                    if gathers(entry.passed_s) and but_for_slots(entry.spec):
                        return None
        return None

    def put_back(self, entry: W, now: float) -> None:
        """It could not be started after all, and is in front again."""
        self.over(entry, now, used=False)
        self.add(entry, first=True)

    def over(self, entry: W, now: float, *, used: bool = True) -> None:
        """It does not run any more. With `used` what it has taken tells of those to come."""
        line = self._lines[entry.line]
        self.lends(entry, now)
        self._charge(entry, line, (entry.used_s if used else 0.0) - entry.charged_s)
        if used:
            line.guess_s += SMOOTHING * (entry.used_s - line.guess_s)
        entry.used_s = entry.charged_s = 0.0
        line.running -= 1
        self._drop_if_unused(entry.line, line)

    def lends(self, entry: W, now: float) -> None:
        """Its slots serve others from now on."""
        if entry.since_s is not None:
            entry.used_s += (now - entry.since_s) * entry.spec.cpus
            entry.since_s = None

    def goes_on(self, entry: W, now: float) -> None:
        """It uses slots from now on."""
        entry.since_s = now

    def charge_running(self, running: Iterable[W], now: float) -> None:
        """Charge those that run for what they have taken beyond the guess."""
        for entry in running:
            if entry.since_s is not None:
                self.lends(entry, now)
                self.goes_on(entry, now)
                self._charge(entry, self._lines[entry.line], max(0.0, entry.used_s - entry.charged_s))

    def _start(self, entry: W, now: float) -> W:
        user, job = entry.line
        line = self._lines[entry.line]
        line.waiting.popleft()
        line.running += 1
        entry.charged_s, entry.passed_s = line.guess_s, 0.0
        self.goes_on(entry, now)
        self._users.served(user, line.guess_s)
        self._jobs[user].served(job, line.guess_s / line.weight)
        self._left(entry.line, line)
        return entry

    def _charge(self, entry: W, line: _Line[W], more_s: float) -> None:
        if more_s:
            user, job = entry.line
            entry.charged_s += more_s
            self._users.charge(user, more_s)
            self._jobs[user].charge(job, more_s / line.weight)

    def _left(self, key: tuple[str, str], line: _Line[W]) -> None:
        """One fewer waits in this line."""
        self._waiting -= 1
        if not line.waiting:
            user, job = key
            jobs = self._jobs[user]
            jobs.go(job)
            if not len(jobs):
                self._users.go(user)
        self._drop_if_unused(key, line)

    def _drop_if_unused(self, key: tuple[str, str], line: _Line[W]) -> None:
        if not line.waiting and not line.running:
            del self._lines[key]
            if len(self._jobs) > SHARERS_LIMIT and not len(self._jobs[key[0]]):
                del self._jobs[key[0]]
