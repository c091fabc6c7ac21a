"""What draws a job's tasks to the tasks of other jobs or keeps them from them, as one owner knows it.

Theory of operation. Of its own jobs an owner knows where each of their batches is now. Of the jobs of others it knows
the nodes that they were on when it last asked (`JobsElsewhere`). To be apart goes both ways: a job comes to no node
with tasks of one that is to be apart from it, either.

Rules: jobs are named by id or by name. A job that is over draws to the nodes where it was, for what it has left there,
and keeps from none. A job may be apart from itself: then no two of its batches share a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kos_cluster.core.jobrows import JobRow
from kos_cluster.core.placement import PLAIN, UNMEASURED_S, Leaning
from kos_cluster.core.records import Layout, Needs


class Relations:
    """The jobs of one owner, by what they are called, and those of others that they ask about."""

    def __init__(self) -> None:
        self._called: dict[str, set[str]] = {}  # id or name -> ids
        self._jobs: dict[str, JobRow] = {}
        self._shunning: dict[str, set[str]] = {}  # id or name -> ids of jobs that are to be apart from it
        self._elsewhere: Mapping[str, frozenset[str]] = {}  # id or name of a job of others -> node ids

    def opened(self, job: JobRow) -> None:
        self._jobs[job.spec.job] = job
        for name in _names(job):
            self._called.setdefault(name, set()).add(job.spec.job)
        for name in job.spec.needs.apart:
            self._shunning.setdefault(name, set()).add(job.spec.job)

    def forgotten(self, job: JobRow) -> None:
        del self._jobs[job.spec.job]
        for table, names in ((self._called, _names(job)), (self._shunning, job.spec.needs.apart)):
            for name in names:
                table[name].discard(job.spec.job)
                if not table[name]:
                    del table[name]

    def elsewhere(self, jobs: Mapping[str, frozenset[str]]) -> None:
        """Where the jobs of others are, by id or name."""
        self._elsewhere = jobs

    def knows(self, name: str) -> bool:
        """Whether a job is called so."""
        return name in self._called or name in self._elsewhere

    def leaning(self, job: JobRow, now: float) -> Leaning:
        """What speaks for and against nodes for the job's next batch."""
        spec, needs = job.spec, job.spec.needs
        apart = self._apart(job) if needs.apart or self._shunning else ()
        inputs = job.next_reads or spec.inputs
        if needs.layout is Layout.ANY and not needs.near and not apart and inputs is None:
            return Leaning(last=job.last_node) if job.last_node else PLAIN
        return Leaning(
            last=job.last_node,
            layout=needs.layout,
            here=job.at,
            near=self.near(needs),
            apart=apart,
            inputs=inputs,
            task_s=UNMEASURED_S if job.durations.mean_s is None else job.durations.mean_s,
            waited_s=0.0 if job.held_since_s is None else now - job.held_since_s,
        )

    def near(self, needs: Needs) -> frozenset[str]:
        """The nodes with tasks of the jobs that such tasks are to be near to."""
        found: set[str] = set()
        for name in needs.near:
            for job in self._named(name):
                found.update(job.at or job.nodes)
            found.update(self._elsewhere.get(name, ()))
        return frozenset(found)

    def apart(self, needs: Needs) -> frozenset[str]:
        """The nodes with tasks of the jobs that such tasks are to be apart from."""
        found: set[str] = set()
        for name in needs.apart:
            for job in self._named(name):
                found.update(job.at)
            found.update(self._elsewhere.get(name, ()))
        return frozenset(found)

    def _apart(self, job: JobRow) -> frozenset[str]:
        shunning = {id_ for name in _names(job) for id_ in self._shunning.get(name, ())}
        return self.apart(job.spec.needs).union(*(self._jobs[id_].at for id_ in shunning))

    def _named(self, name: str) -> Iterable[JobRow]:
        return [self._jobs[id_] for id_ in self._called.get(name, ())]


def _names(job: JobRow) -> tuple[str, ...]:
    return (job.spec.job, job.spec.name) if job.spec.name else (job.spec.job,)
