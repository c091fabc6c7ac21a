"""The network between hosts: what it loses, doubles, delays and cuts.

Theory of operation. `send` is asked once for a message and answers with the delays after which copies of it arrive:
none (lost or cut), one, or two. Each copy draws its own delay, so messages overtake each other; while `stray_rate` is
up some copies linger for seconds and arrive in another term than the one they were sent in. A cut is by direction: a
two-way partition is two cuts. What is in flight when a cut begins still arrives, as it does on real links.

Rules: all randomness is the generator's, drawn only here, so a world with the same seed draws the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random

DELAY_LEAST_S = 0.0002  # of any message
DELAY_MOST_S = 0.002  # of a healthy link
STRAY_MOST_S = 4.0  # how long a stray copy may linger


class Network:
    """The links between hosts, all alike but for the cuts."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._cut: Counter[tuple[str, str]] = Counter()  # a direction -> how many cuts hold it
        self.heal()

    def heal(self) -> None:
        """Every link works again."""
        self._cut.clear()
        self.loss_rate = 0.0
        self.double_rate = 0.0
        self.stray_rate = 0.0
        self.delay_most_s = DELAY_MOST_S

    def cut(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """From now on nothing gets from a source to a target; the way back is not touched."""
        targets = list(targets)
        self._cut.update((source, target) for source in sources for target in targets)

    def mend(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """One cut ends; a direction that another one holds stays cut."""
        targets = list(targets)
        self._cut -= Counter((source, target) for source in sources for target in targets)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def send(self, source: str, target: str) -> tuple[float, ...]:
        """After how many seconds each copy arrives."""
        if (source, target) in self._cut:
            return ()
        draw = self._random.random
        if self.loss_rate and draw() < self.loss_rate:
            return ()
        if self.double_rate and draw() < self.double_rate:
            return (self._delay_s(), self._delay_s())
        return (self._delay_s(),)

    def _delay_s(self) -> float:
        draw = self._random.random
        if self.stray_rate and draw() < self.stray_rate:
            return draw() * STRAY_MOST_S
        return DELAY_LEAST_S + draw() * (self.delay_most_s - DELAY_LEAST_S)
