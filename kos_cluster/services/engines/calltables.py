"""The jobs of this process on one engine, as rows: what `owner` decides about, and what is told of them.

Rules. Changed in the owner's thread alone; told from any. How many tasks are in each state is counted as they change,
since all nodes are told of it with each beat, however many tasks there are.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from dataclasses import dataclass, field

import msgspec

from kos_cluster.core.records import Attempt, AttemptEnd, JobSummary, TaskState
from kos_cluster.services.engines.calls import Ended
from kos_cluster.tasks import blocks
from kos_cluster.tasks.job import Job


@dataclass(eq=False, slots=True)
class Row:
    """One task."""

    index: int
    state: TaskState = TaskState.WAITING
    attempts: list[Attempt] = field(default_factory=list)
    losses: int = 0  # attempts whose worker died beneath the engine's
    sent_s: float = 0.0
    sent: concurrent.futures.Future[Ended] | None = None
    kept: list[blocks.BlockRef] = field(default_factory=list)  # that its call names
    display: str = ""  # what has come of one

    def close(self, end: AttemptEnd, cause: str = "") -> None:
        """The attempt that is open, if there is one, has ended so."""
        if self.attempts and self.attempts[-1].end is AttemptEnd.OPEN:
            self.attempts[-1] = msgspec.structs.replace(self.attempts[-1], ended_s=time.time(), end=end, cause=cause)


@dataclass(eq=False, slots=True, weakref_slot=True)
class Group:
    """Jobs that share a cap."""

    limit: int
    capped: bool  # by whoever made it: what is with the engine is meant to run at once
    out: int = 0
    waiting: deque[tuple[Table, Row]] = field(default_factory=deque)


@dataclass(eq=False, slots=True)
class Table:
    """One job."""

    id: str
    name: str
    user: str
    engine: str  # its name
    job: Job | None  # None: it is over
    group: Group
    rows: list[Row] = field(default_factory=list)
    left: int = 0  # that are not final
    fn: bytes = b""  # as it travels
    kept: list[blocks.BlockRef] = field(default_factory=list)
    since_s: float = field(default_factory=time.time)
    counts: dict[TaskState, int] = field(default_factory=lambda: dict.fromkeys(TaskState, 0))
    nodes: set[str] = field(default_factory=set)  # where attempts have begun
    reruns: int = 0

    def add(self, count: int) -> list[Row]:
        """So many further tasks."""
        rows = [Row(index) for index in range(len(self.rows), len(self.rows) + count)]
        self.rows += rows
        self.left += count
        self.counts[TaskState.WAITING] += count
        return rows

    def move(self, row: Row, state: TaskState) -> None:
        """A task is in another state now."""
        self.counts[row.state] -= 1
        self.counts[state] += 1
        row.state = state

    def began(self, row: Row, node: str) -> None:
        """An attempt at a task runs on a node."""
        self.reruns += bool(row.attempts)
        self.nodes.add(node)
        row.attempts.append(Attempt(1 + len(row.attempts), node, row.sent_s, time.time()))

    def summary(self) -> JobSummary:
        """Its line in a listing."""
        cancelled = self.counts[TaskState.CANCELLED]
        return JobSummary(
            job=self.id,
            name=self.name,
            user=self.user,
            total=len(self.rows),
            done=self.counts[TaskState.DONE],
            failed=self.counts[TaskState.FAILED] + cancelled,
            running=self.counts[TaskState.RUNNING],
            since_s=self.since_s,
            nodes=tuple(sorted(self.nodes.copy())),
            reruns=self.reruns,
            cancelled=cancelled,
            engine=self.engine,
        )
