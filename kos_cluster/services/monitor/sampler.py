"""Makes snapshots of a live cluster, for a model.

Theory of operation. What a client hears anyway (members, loads, its own jobs) costs no message; the jobs of others are
asked of one node, and each `ENGINES_EVERY_S`, in a thread of their own, the registers in which engines stand. What is
not answered stands as it was told last. A connection that was
closed, or of a cluster that was formed anew, is made anew.

Rules: nothing is raised for a cluster that does not answer; the model is told why, in a sentence. Blocks for at most
`ANSWER_TIMEOUT_S` a question, and the time that connecting takes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from kos_cluster.core.records import JobSummary
from kos_cluster.errors import KosError, UnreachableError
from kos_cluster.services.engines.heads import as_seen
from kos_cluster.services.engines.registers import records
from kos_cluster.services.monitor.snapshot import (
    EngineSight,
    Missed,
    Snapshot,
    engine_sights,
    job_sight,
    node_sights,
)
from kos_cluster.tasks.cluster import Cluster, connect

ANSWER_TIMEOUT_S = 2.0  # for one node to tell the jobs of others
ENGINES_EVERY_S = 2.0
SILENT_S = 5.0  # loads of all nodes that are older than this: no node answers any more


class Sampler:
    """Looks at one cluster, the one of this name or the one that `connect` finds."""

    def __init__(self, name: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self._name = name
        self._clock = clock
        self._cluster: Cluster | None = None
        self._told: list[JobSummary] = []
        self._engines: tuple[EngineSight, ...] = ()
        self._engines_s = float("-inf")  # when they were asked for
        self._asks = False

    def cluster(self) -> Cluster:
        """The connection, made when there is none that works. Raises what `connect` raises."""
        if self._cluster is None or not self._cluster.usable:
            self._cluster = connect(self._name)
        return self._cluster

    def sample(self) -> Snapshot | Missed:
        """The cluster now, or why it cannot be told."""
        try:
            return self._snapshot(self.cluster())
        except CancelledError:  # the connection was closed meanwhile, and is made anew the next time
            return Missed(self._clock(), "The connection to the cluster was closed.")
        except KosError as error:
            self._cluster = None  # it may have been formed anew: then there is another to connect to
            return Missed(self._clock(), str(error))

    def _snapshot(self, cluster: Cluster) -> Snapshot:
        heard = cluster.heard()
        nodes = node_sights(heard.members or (), heard.loads, heard.coordinator, heard.voters)
        if not any(node.up and node.id in heard.loads and node.load_age_s < SILENT_S for node in nodes):
            raise UnreachableError(
                f"No node of cluster {cluster.name!r} answers.", "Type 'kos status', and 'kos up' if it was stopped."
            )
        own = {job.job: job for job in cluster.own_jobs()}
        listed = {job.job: job for job in self._jobs_told(cluster)} | own
        jobs = tuple(job_sight(job, own=id_ in own) for id_, job in listed.items())
        return Snapshot(
            self._clock(), cluster.name, cluster.peer.name, cluster.peer.role, nodes, jobs, self._engines_told(cluster)
        )

    def _engines_told(self, cluster: Cluster) -> tuple[EngineSight, ...]:
        if not self._asks and self._clock() - self._engines_s >= ENGINES_EVERY_S:
            self._asks = True
            threading.Thread(target=self._ask_for_engines, args=(cluster,), name="kos-engines", daemon=True).start()
        return self._engines

    def _ask_for_engines(self, cluster: Cluster) -> None:
        """In a thread, as it takes long while nobody decides."""
        try:
            with contextlib.suppress(KosError, CancelledError):  # nobody decides, or a register holds something else
                self._engines = engine_sights(
                    as_seen(record, cluster.heard().members or (), self._clock())
                    for record in records(cluster.registers())
                )
        finally:
            self._engines_s = self._clock()
            self._asks = False

    def _jobs_told(self, cluster: Cluster) -> list[JobSummary]:
        with contextlib.suppress(UnreachableError):  # it is going, and the nodes will be seen to be one fewer
            self._told = cluster.jobs_told(ANSWER_TIMEOUT_S)
        return self._told
