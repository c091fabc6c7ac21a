"""An engine in the place of the mesh: what `map`, `kos.Executor` and a notebook's cells run on, if it is asked for.

Theory of operation. A call becomes the same job as on the mesh, made by the same code; only who holds its tasks is
another (`owner`). So results, futures, executors and cells need not know where a job runs. A connection to the cluster
has one owner for an engine, which is kept for its next job.

Rules. What an engine cannot honour is refused before anything of it is sent: an engine places its tasks itself. An
owner ends with the connection that it was made for, whose blocks it uses; one that is let go is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from kos_cluster.core.capacity import slots_told
from kos_cluster.errors import PlacementError, StateError, UsageError
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

Life = tuple[str, int]  # the id of an engine, and which of its lives it is


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
        """As `Cluster.launch`. Raises UsageError for an option that means nothing to an engine, PlacementError."""
        check(spec.options, self._owner.engine)
        wanted, had = spec.options.cpus, self._owner.cpus
        if wanted > had:
            raise PlacementError(
                f"A task needs {slots_told(wanted)}, and each worker of engine {self._owner.engine} has {had}.",
                f"Start an engine with --cpus {wanted}, or run on the mesh: without an engine.",
            )
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


class Owners:
    """Those of one connection to the cluster. Any thread."""

    def __init__(self, cluster: Cluster, mesh: Mesh) -> None:
        self._cluster = cluster
        self._mesh = mesh
        self._by_life: dict[Life, EngineOwner] = {}
        self._opening = threading.Lock()
        self._closed = False

    def of(self, engine: str) -> EngineOwner:
        """That of the engine of that name or kind. Raises EngineError, UnreachableError, AuthError, StateError."""
        from kos_cluster.services.engines import control

        record = control.serving(control.find(self._cluster, engine))
        life = record.id, record.life
        self._let_go(lambda _, owner: not owner.usable)
        with self._opening:
            if self._closed:
                raise StateError("The connection to the cluster is closed.", "Call kos.connect() again.")
            owner = self._by_life.get(life)
            if owner is None:
                connection = control.open_engine(self._cluster, record.name)
                owner = self._by_life[life] = EngineOwner(record.name, record.cpus, connection, self._mesh)
        return owner

    def leave(self, engine: str) -> None:
        """The engine of this id is about to be stopped: cancel what runs there for this connection, and let it go."""
        self._let_go(lambda life, _: life[0] == engine)

    def close(self) -> None:
        """Cancel what is not done, and leave all engines. No more are opened."""
        with self._opening:
            self._closed = True
        self._let_go(lambda *_: True)

    def _let_go(self, which: Callable[[Life, EngineOwner], bool]) -> None:
        with self._opening:
            owners = [self._by_life.pop(life) for life, owner in list(self._by_life.items()) if which(life, owner)]
        for owner in owners:  # without the lock, as it ends futures, whose callbacks may come back here
            owner.close()


def launcher(owners: Owners, submission: Submission, engine: str) -> Launcher:
    """What runs jobs on the engine of that name or kind. Raises what `Owners.of` does."""
    return Launcher(submission, owners.of(engine))
