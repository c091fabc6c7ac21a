"""The machine of one node (skeleton: the API is settled, the body follows)."""

from __future__ import annotations

from random import Random

from kos_cluster.core.raft.events import Effect, Event
from kos_cluster.core.raft.values import Membership, Restored, Role, Timing


class Raft:
    """One node of one group. `start` first, then `handle` and `tick`; `now` is monotonic seconds."""

    def __init__(
        self, node: str, group: str, restored: Restored, random: Random, now: float, timing: Timing = Timing()
    ) -> None:
        self.node = node
        self.group = group

    def start(self) -> list[Effect]:
        """RestoreSnapshot and Apply of what the disk holds as committed. Once, before anything else."""
        raise NotImplementedError

    def handle(self, event: Event, now: float) -> list[Effect]:
        raise NotImplementedError

    def tick(self, now: float) -> list[Effect]:
        raise NotImplementedError

    @property
    def deadline(self) -> float:
        """When the next `tick` can matter."""
        raise NotImplementedError

    # what others may ask: role, term, leader, membership, commit, applied, last_index, first_index, halted, status()
    role: Role
    term: int
    leader: str | None
    membership: Membership
    commit: int
    applied: int
    last_index: int
    halted: str
