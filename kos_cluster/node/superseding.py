"""Work of a detached job's former driver, freed here as soon as another node was given the job.

Theory of operation. A driver that is silent is given `OWNER_LEASE_S`, as any owner is, since silence is not death. But
a detached job has one driver at a time, and which one is agreed: when the cluster names another, under the next epoch,
nothing of what the former one still runs can be committed any more. So every node that has work of the job from the
client of the former driver's machine ends that work at once, and takes no more of it. Where the nodes of one home have
one client, as in an embedded cluster, that one may speak for the present driver, and nothing is ended by it: the former
driver's process was on this machine, and its end is seen.

Rules: only what the cluster has agreed counts, never what a driver says. Work is matched by the job and by the
authenticated identity, which came with the former driver's node; the same job of another identity is left alone.
"""

from __future__ import annotations

import logging

from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.owners import Owners

log = logging.getLogger(__name__)

LOOK_S = 0.5


class Superseding:
    """Used in the daemon's loop. `run` does not return."""

    def __init__(self, consensus: Consensus, owners: Owners) -> None:
        self._consensus = consensus
        self._owners = owners
        self._drivers: dict[str, str] = {}  # job -> the node that drives it, as it was at the last look
        self._former: dict[str, set[str]] = {}  # job -> nodes that drove it before

    async def run(self) -> None:
        while True:
            self.look()
            await self._consensus.moved(LOOK_S)

    def look(self) -> None:
        """Free what another node has to do now."""
        jobs = {job.id: job for job in self._consensus.state.jobs.snapshot()}
        self._former = {id_: former for id_, former in self._former.items() if id_ in jobs}
        for id_, job in jobs.items():
            before = self._drivers.pop(id_, "")
            self._former.get(id_, set()).discard(job.driver)
            if job.driver and job.state is not JobState.CANCELLED:
                self._drivers[id_] = job.driver
            if before and before != self._drivers.get(id_):
                self._former.setdefault(id_, set()).add(before)
                self._free(id_)
        self._drivers = {id_: driver for id_, driver in self._drivers.items() if id_ in jobs}

    def is_former(self, identity: str, job: str) -> bool:
        """Whether this identity is the client of a node that drove the job before, and does no more."""
        known = self._consensus.state.identities.get(identity)
        return known is not None and known.came_with in self._former.get(job, ()) and self._drives_with_another(job)

    def _drives_with_another(self, job: str) -> bool:
        """Whether the present driver has a client of its own. Nodes that share a home share the first one's."""
        driver = self._drivers.get(job, "")
        return not driver or any(i.came_with == driver for i in self._consensus.state.identities.identities())

    def _free(self, job: str) -> None:
        for owner in self._owners:
            if owner.has(job) and self.is_former(owner.peer.id, job):
                log.info("Job %s has another driver: what %s runs of it here ends.", job, owner.peer)
                self._owners.end(owner)
