"""An engine in the place of the mesh: what `map`, `kos.Executor` and a notebook's cells run on, if it is asked for.

Theory of operation. A call becomes the same job as on the mesh, made by the same code; only who holds its tasks is
another (`owner`). So results, futures, executors and cells need not know where a job runs. A process has one
connection to an engine, which is kept for its next job.

Rules. What an engine cannot honour is refused before anything of it is sent: an engine places its tasks itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kos_cluster.errors import UsageError
from kos_cluster.services.engines.owner import EngineOwner
from kos_cluster.tasks import output
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.mapresult import MapResult
from kos_cluster.tasks.options import PLAIN, Options
from kos_cluster.tasks.submission import Submission, current_parent, new_job_id

if TYPE_CHECKING:
    from kos_cluster.tasks.cluster import Cluster
    from kos_cluster.tasks.mesh import Mesh

NOT_HONOURED = (
    "memory",
    "on",
    "gpus",
    "resources",
    "labels",
    "away_from",
    "spread",
    "pack",
    "near",
    "apart",
    "speculate",
    "priority",
)

_owners: dict[tuple[str, int], EngineOwner] = {}  # by the id of the engine, and which of its lives it is
_opening = threading.Lock()


class Launcher:
    """Makes and begins jobs on one engine. Any thread."""

    def __init__(self, submission: Submission, owner: EngineOwner) -> None:
        self._submission = submission
        self._owner = owner

    @property
    def usable(self) -> bool:
        return self._owner.usable

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **keywords: Any) -> MapResult:
        """As `Cluster.map`."""
        spec, payloads, taken = self._submission.mapped("map", fn, iterables, keywords)
        self._owner.admit(taken.values())
        job = self.launch(spec)
        job.add_many(payloads)
        job.close()
        return MapResult(job)

    def launch(self, spec: JobSpec) -> Job:
        """As `Cluster.launch`. Raises UsageError for an option that means nothing to an engine."""
        check(spec.options, self._owner.engine)
        job = Job(new_job_id(), spec, spec.sink or output.default_sink(), self._owner, current_parent())
        self._owner.open(job)
        return job


def check(options: Options, engine: str) -> None:
    """Raises UsageError for an option that the engine cannot honour."""
    for name in NOT_HONOURED:
        if getattr(options, name) != getattr(PLAIN, name):
            raise UsageError(
                f"Engine {engine} places its tasks itself, so it does not take the option {name!r}.",
                "Leave it out, or run on the mesh: without an engine.",
            )


def launcher(cluster: Cluster, mesh: Mesh, submission: Submission, engine: str) -> Launcher:
    """What runs jobs on the engine of that name or kind. Raises EngineError, UnreachableError, AuthError."""
    from kos_cluster.services.engines import control

    record = control.serving(control.find(cluster, engine))
    life = record.id, record.life
    with _opening:
        owner = _owners.get(life)
        if owner is not None and not owner.usable:
            owner.close()
        if owner is None or not owner.usable:
            owner = _owners[life] = EngineOwner(record.name, control.open_engine(cluster, record.name), mesh)
        for key in [key for key, other in _owners.items() if not other.usable]:
            del _owners[key]
        return Launcher(submission, owner)


def leave(engine: str) -> None:
    """The engine of this id is about to be stopped: cancel what this process has there, and let it go."""
    with _opening:
        owners = [_owners.pop(life) for life in list(_owners) if life[0] == engine]
    for owner in owners:
        owner.close()
