"""Samples a cluster while somebody looks, in a thread of its own, and not otherwise.

Theory of operation. Who looks says so, and again at least each `LOOK_LEASE_S`; a lease that runs out ends the looking,
as of a browser that went away without a word. With nobody left the thread waits and costs nothing. Each sample is
followed by a call of `after`, under the lock that guards the model.

Rules: between `hold` and `release` leases do not run out: a kernel that runs a cell may be unable to hear who looks.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable

from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.sampler import Sampler

INTERVAL_S = 1.0
LOOK_LEASE_S = 30.0


class Pacing:
    """Keeps a model up to date while somebody looks."""

    def __init__(
        self,
        sampler: Sampler,
        model: Model,
        after: Callable[[], None],
        interval_s: float = INTERVAL_S,
        lease_s: float = LOOK_LEASE_S,
    ) -> None:
        self.lock = threading.RLock()  # guards the model
        self._held = False
        self._sampler = sampler
        self._model = model
        self._after = after
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._lookers: dict[str, float] = {}  # who looks -> until when (monotonic)
        self._changed = threading.Condition()
        self._ended = False
        self._thread: threading.Thread | None = None

    def look(self, who: str) -> None:
        """Somebody looks, or still does."""
        with self._changed:
            self._lookers[who] = time.monotonic() + self._lease_s
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._run, name="kos-monitor", daemon=True)
                self._thread.start()
            self._changed.notify()

    def look_away(self, who: str) -> None:
        with self._changed:
            self._lookers.pop(who, None)

    def hold(self) -> None:
        """From now on nobody may be able to say that he looks."""
        with self._changed:
            self._held = True

    def release(self) -> None:
        """Whoever looked has another lease to say so again."""
        with self._changed:
            self._held = False
            self._lookers = dict.fromkeys(self._lookers, time.monotonic() + self._lease_s)

    def looked_at(self) -> bool:
        """Whether somebody looks; leases that ran out are ended."""
        with self._changed:
            now = time.monotonic()
            if not self._held:
                self._lookers = {who: until for who, until in self._lookers.items() if until > now}
            return bool(self._lookers)

    def end(self) -> None:
        """Stop for good. Safe to call twice."""
        with self._changed:
            self._ended = True
            self._lookers.clear()
            self._changed.notify()

    def _run(self) -> None:
        next_s = time.monotonic()
        while self._wait(next_s):
            next_s = max(next_s + self._interval_s, time.monotonic())
            try:
                self._sample()
            except Exception:  # a defect in what is shown must not end the showing
                sys.stderr.write("kos: the monitor could not take a sample:\n")
                traceback.print_exc()

    def _sample(self) -> None:
        seen = self._sampler.sample()  # takes its time, without the lock
        with self.lock:
            self._model.handle(seen)
            self._after()

    def _wait(self, until_s: float) -> bool:
        """Wait until it is time, and somebody looks. False when it has ended."""
        with self._changed:
            while not self._ended:
                left_s = until_s - time.monotonic()
                if not self.looked_at():
                    self._changed.wait()
                elif left_s <= 0:
                    return True
                else:
                    self._changed.wait(left_s)
            return False
