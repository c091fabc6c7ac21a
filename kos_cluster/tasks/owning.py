"""Who holds the table of a job's tasks and has them run: a connection to the mesh, or to an engine.

A job (`tasks.job`) is the same with either; this is all that it asks of them, and what the mesh asks of an engine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kos_cluster.core.records import JobSummary, Needs, Runs, Story

if TYPE_CHECKING:
    from kos_cluster.net.transport import Payload
    from kos_cluster.tasks.inputs import Inputs
    from kos_cluster.tasks.job import Job


class Owner(Protocol):
    """Any thread may ask."""

    @property
    def pid(self) -> int: ...  # of the process that it works in
    @property
    def closed(self) -> bool: ...
    @property
    def blocks(self) -> Blocks: ...
    @property
    def holding(self) -> Holding: ...
    @property
    def jobs(self) -> Jobs: ...
    @property
    def placing(self) -> Placing: ...
    def added(self, job: Job, count: int, size_bytes: int) -> None: ...
    def resumed(self, job: Job, count: int, size_bytes: int, settled: Runs) -> None: ...
    def cancel(self, job: Job, index: int | None, *, waiting: bool = False) -> None: ...
    def close_job(self, job: Job) -> None: ...


class Elsewhere(Protocol):
    """An owner that is not the mesh: its jobs are listed, and cancelled by others, as the mesh's are."""

    def summaries(self) -> list[JobSummary]: ...
    def states(self, job: str) -> bytes: ...  # as JobTable.states
    def stories(self, job: str, indices: Collection[int], /) -> list[Story]: ...
    def cancel_wanted(self, job: str, index: int | None) -> None: ...  # of any job, also of none of its own


class Blocks(Protocol):
    """Counts the payloads of tasks that are not done, for the blocks that they name."""

    def used(self, payload: Payload, /) -> None: ...
    def unused(self, payload: Payload, /) -> None: ...


class Holding(Protocol):
    """Keeps tasks that take the results of others."""

    def admit(self, taken: Collection[Inputs], /) -> None: ...
    def add(self, job: Job, start: int, payloads: Sequence[bytes], inputs: Mapping[int, Inputs], /) -> None: ...


class Jobs(Protocol):
    """Tells of jobs."""

    def summary(self, job: Job, /) -> JobSummary | None: ...
    def stories(self, job: str, indices: Collection[int], /) -> list[Story]: ...


class Placing(Protocol):
    """Tells why tasks wait."""

    def standing(self, job: str, /) -> tuple[Needs, tuple[str, ...]] | None: ...
