"""The model of a watched cluster: snapshots in, what to show out. Every front end reads this one.

Theory of operation. `handle` compares a snapshot with the one before, notes events, adds to the histories, and keeps
jobs that are not told of any more; or it notes that no node answered. What is shown is read from the attributes.

Rules: pure, and not safe against several threads: whoever samples in a thread holds a lock (`pacing`). Limits:
`JOBS_LIMIT` jobs, of which those that ended first are left out; `EVENTS_LIMIT` events; histories as in `series`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import msgspec

from kos_cluster.services.monitor.changes import Event, Kind, happenings
from kos_cluster.services.monitor.series import History
from kos_cluster.services.monitor.snapshot import GONE, RUNNING, EngineSight, JobSight, Missed, NodeSight, Snapshot

JOBS_LIMIT = 512  # jobs shown; of more, those that ended first are left out
EVENTS_LIMIT = 1000  # events remembered
RATE_OVER_S = 10.0  # the time over which the rate of ended tasks is taken


class Totals(msgspec.Struct, frozen=True):
    """The cluster as a whole. Shares are of 1; tasks are those of the jobs that are shown."""

    nodes: int = 0
    up: int = 0
    slots: int = 0
    busy: int = 0
    queued: int = 0
    cpu_share: float = 0.0  # each node weighs by its slots
    memory_share: float = 0.0  # each node weighs by its memory
    received_bytes_s: int = 0
    sent_bytes_s: int = 0
    jobs_running: int = 0
    waiting: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    reruns: int = 0
    ended_per_s: float = 0.0


class Model:
    """A cluster as it is and was, for one who looks."""

    def __init__(self) -> None:
        self.cluster = ""
        self.identity = ""
        self.role = ""
        self.at_s = 0.0  # of the last snapshot
        self.trouble = ""  # why there is no news, as a sentence; empty while there is
        self.nodes: tuple[NodeSight, ...] = ()
        self.jobs: dict[str, JobSight] = {}  # in the order of their beginning
        self.engines: tuple[EngineSight, ...] = ()
        self.totals = Totals()
        self.history = History()
        self.events: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self.ended_tasks = 0  # tasks that have ended since the beginning
        self.counted: Counter[Kind] = Counter()  # events since the beginning, also those that are forgotten
        self._known: dict[str, JobSight] = {}  # the jobs that are shown, and those that are told of beyond the limit
        self._before: Snapshot | None = None
        self._ended: deque[tuple[float, int]] = deque()  # when, and how many tasks had ended by then
        self._ended_before: dict[str, int] = {}  # job -> its tasks that have ended

    @property
    def coordinator(self) -> NodeSight | None:
        """The node that coordinates, if one is known to."""
        return next((node for node in self.nodes if node.coordinator), None)

    def handle(self, seen: Snapshot | Missed) -> None:
        """Take in the next snapshot, or that there is none."""
        if isinstance(seen, Missed):
            self._missed(seen)
        else:
            self._take(seen)

    def events_after(self, number: int) -> list[Event]:
        """Those that are remembered and came after the one of this number; the oldest first."""
        last = self.events[-1].number if self.events else 0
        fresh = min(len(self.events), max(0, last - number))
        return [self.events[place] for place in range(len(self.events) - fresh, len(self.events))]

    # ---- inside

    def _take(self, seen: Snapshot) -> None:
        if self.trouble:
            self.trouble = ""
            self._note(seen.at_s, Kind.REACHED, seen.cluster, f"Cluster {seen.cluster} answers again.")
        if self._before is not None and self._before.cluster != seen.cluster:
            self._before, self._known, self._ended_before = None, {}, {}
        self.cluster, self.identity, self.role = seen.cluster, seen.identity, seen.role
        self.at_s, self.nodes, self.engines = seen.at_s, seen.nodes, seen.engines
        self._count_ended(seen.jobs)
        kept = msgspec.structs.replace(seen, jobs=self._kept(seen))
        for kind, subject, text in happenings(self._before, kept):
            self._note(seen.at_s, kind, subject, text)
        self._before = kept
        self.totals = self._totals(seen)
        self.history.add(seen.at_s, dict(self._figures()))

    def _missed(self, seen: Missed) -> None:
        if not self.trouble:
            self._note(seen.at_s, Kind.UNREACHABLE, self.cluster, seen.trouble)
        self.trouble = seen.trouble

    def _note(self, at_s: float, kind: Kind, subject: str, text: str) -> None:
        number = self.events[-1].number + 1 if self.events else 1
        self.events.append(Event(number, at_s, kind, subject, text))
        self.counted[kind] += 1

    def _kept(self, seen: Snapshot) -> tuple[JobSight, ...]:
        """The jobs that are told of, and of those that were before as many as are shown."""
        told = {job.id: _dated(job, self._known.get(job.id), seen.at_s) for job in seen.jobs}
        known = {**self._known, **told}
        for id_ in known.keys() - told.keys():
            if known[id_].state == RUNNING:
                known[id_] = msgspec.structs.replace(known[id_], state=GONE, running=0, ended_s=seen.at_s)
        order = sorted(known.values(), key=lambda job: (job.ended_s is not None, -(job.ended_s or 0.0), job.id))
        shown = {job.id for job in order[:JOBS_LIMIT]}
        self._known = {id_: job for id_, job in known.items() if id_ in shown or id_ in told}
        by_age = sorted(self._known.values(), key=lambda job: (job.since_s, job.id))
        self.jobs = {job.id: job for job in by_age if job.id in shown}
        return tuple(by_age)

    def _count_ended(self, jobs: Iterable[JobSight]) -> None:
        before, self._ended_before = self._ended_before, {job.id: job.done + job.failed for job in jobs}
        if self._before is not None:
            self.ended_tasks += sum(max(0, now - before.get(id_, 0)) for id_, now in self._ended_before.items())

    def _totals(self, seen: Snapshot) -> Totals:
        up = [node for node in seen.nodes if node.up]
        slots = sum(node.slots for node in up)
        memory = sum(node.memory_bytes for node in up)
        jobs = self.jobs.values()
        return Totals(
            nodes=len(seen.nodes),
            up=len(up),
            slots=slots,
            busy=sum(node.load.running for node in up),
            queued=sum(node.load.queued for node in up),
            cpu_share=sum(node.cpu_share * node.slots for node in up) / slots if slots else 0.0,
            memory_share=sum(node.memory_share * node.memory_bytes for node in up) / memory if memory else 0.0,
            received_bytes_s=sum(node.load.received_bytes_s for node in up),
            sent_bytes_s=sum(node.load.sent_bytes_s for node in up),
            jobs_running=sum(job.state == RUNNING for job in jobs),
            waiting=sum(job.waiting for job in jobs if job.state == RUNNING),
            running=sum(job.running for job in jobs if job.state == RUNNING),
            done=sum(job.done for job in jobs),
            failed=sum(job.failed for job in jobs),
            reruns=sum(job.reruns for job in jobs),
            ended_per_s=self._rate(seen.at_s),
        )

    def _rate(self, now: float) -> float:
        self._ended.append((now, self.ended_tasks))
        while len(self._ended) > 2 and now - self._ended[1][0] >= RATE_OVER_S:
            self._ended.popleft()
        (since, before), (at, after) = self._ended[0], self._ended[-1]
        return (after - before) / (at - since) if at > since else 0.0

    def _figures(self) -> Iterable[tuple[str, float]]:
        """This sample's value of each series; a node's are named `KEY/ID`."""
        totals = self.totals
        yield "cpu", totals.cpu_share
        yield "memory", totals.memory_share
        yield "busy", totals.busy / totals.slots if totals.slots else 0.0
        yield "ended", totals.ended_per_s
        yield "network", totals.received_bytes_s + totals.sent_bytes_s
        for node in self.nodes:
            if node.up:
                yield f"cpu/{node.id}", node.cpu_share
                yield f"memory/{node.id}", node.memory_share
                yield f"busy/{node.id}", node.busy_share
                yield f"network/{node.id}", node.network_bytes_s


def _dated(job: JobSight, old: JobSight | None, now: float) -> JobSight:
    """With when it was first seen to have ended."""
    if job.state == RUNNING:
        return job
    ended_s = old.ended_s if old is not None and old.ended_s is not None else now
    return msgspec.structs.replace(job, ended_s=ended_s)
