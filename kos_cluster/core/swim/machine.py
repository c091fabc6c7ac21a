"""The SWIM machine (skeleton of its interface; the theory of operation follows with the code)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

from kos_cluster.core.records import Member
from kos_cluster.core.swim.events import Effect, Event, Why
from kos_cluster.core.swim.messages import Known
from kos_cluster.core.swim.profile import Profile


class Swim:
    """One node's membership. `known` is what `known()` gave before a restart; `first_view` must be larger than any
    view number told before. `sign` signs bytes with this node's key, `verify(id, bytes, signature)` checks another's.
    """

    def __init__(
        self,
        member: Member,
        profile: Profile,
        rng: random.Random,
        sign: Callable[[bytes], bytes],
        verify: Callable[[str, bytes, bytes], bool],
        now: float,
        known: Iterable[Known] = (),
        first_view: int = 1,
    ) -> None:
        self.view = first_view
        self.deadline = now
        self.ignored: Counter[Why] = Counter()

    def members(self) -> list[Member]:
        """Every member that is not forgotten, this node first."""
        raise NotImplementedError

    def known(self) -> list[Known]:
        """What to keep for the next start."""
        raise NotImplementedError

    def name_taken(self, name: str) -> bool:
        """Whether a member that has not left holds this name."""
        raise NotImplementedError

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event in."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        raise NotImplementedError
