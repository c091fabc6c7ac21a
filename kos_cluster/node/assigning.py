"""Who drives a detached job: the coordinator's duty towards jobs without a driver, and the choice it shares with nodes.

Rules. A job waits for a driver when it is new, or when the node that drives it is not alive in the coordinator's view.
A coordinator that has just begun gives the nodes `SETTLED_S` to be heard before it takes a job from one. The epoch
makes all of this safe: should the former driver live after all, nothing of what it says counts any more.
"""

from __future__ import annotations

import logging
import time

from kos_cluster.core.driving import Node, choose_driver
from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.replicated.commands import AssignDriver
from kos_cluster.core.replicated.jobs import Job, JobState
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.draining import is_drained
from kos_cluster.node.membership import ALIVE, Membership

log = logging.getLogger(__name__)

SETTLED_S = 2.0


class Assigning:
    """Used in the daemon's loop. `step` is called only while this node coordinates."""

    def __init__(self, consensus: Consensus, membership: Membership) -> None:
        self._consensus = consensus
        self._membership = membership
        self._term = -1
        self._since_s = 0.0  # when this node began to coordinate

    async def step(self) -> bool:
        """Give one job a driver, if one waits for it; whether that was done. Raises KosError."""
        if self._consensus.term != self._term:
            self._term, self._since_s = self._consensus.term, time.monotonic()
        for job in self._consensus.state.jobs.snapshot():
            if self._waits(job):
                node = self.choose(job, avoid=job.driver)
                if node is not None:
                    log.info("Job %s is to be driven by %s.", job.id, node)
                    await self._consensus.propose(AssignDriver(job.id, node, job.epoch))
                    return True
        return False

    def choose(self, job: Job, avoid: str = "") -> str | None:
        """The id of the node that should drive it; None when there is none."""
        jobs = self._consensus.state.jobs.snapshot()
        driven = [other.driver for other in jobs if other.state is JobState.DRIVEN]
        keepers = {holder for holders in job.parts.values() for holder in holders}
        members = [member for member in self._membership.members() if self._may_drive(member)]
        return choose_driver((Node(m.id, m.id in keepers, driven.count(m.id)) for m in members), avoid)

    def _may_drive(self, member: Member) -> bool:
        drained = member.drained or is_drained(self._consensus.state, member.id)
        return member.state is MemberState.ALIVE and not drained

    def _waits(self, job: Job) -> bool:
        if job.state is JobState.WAITING:
            return True
        if job.state is not JobState.DRIVEN or time.monotonic() - self._since_s < SETTLED_S:
            return False
        driver = self._membership.member(job.driver)
        return driver is None or driver.state not in ALIVE
