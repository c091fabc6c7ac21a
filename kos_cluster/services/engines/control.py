"""Engines from a client's side: started, listed, scaled, stopped, and connected to.

Theory of operation. All of it goes through the cluster's registers (see `spec`): a start submits the supervisor as a
detached job and waits until the record says that the engine serves; scaling and stopping write a wish and wait for its
answer. So it works from any machine that may submit, and an engine needs none of those who use it.

Rules. What can be told before anything is started is: a wrong spec, a name that is taken, a package that a node lacks,
a link that would not be encrypted. A start that is interrupted or takes too long leaves nothing running.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from kos_cluster.core.capacity import slots_told
from kos_cluster.core.quantities import check_whole
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import (
    EngineError,
    KosError,
    LimitError,
    NoSuchTaskError,
    PlacementError,
    StateError,
    TaskLostError,
    UsageError,
)
from kos_cluster.services.engines.engine import Connection
from kos_cluster.services.engines.heads import as_seen, ending
from kos_cluster.services.engines.kinds import check_installed, check_installed_here, check_plaintext, engine_of
from kos_cluster.services.engines.looking import LOOPBACK
from kos_cluster.services.engines.registers import decoded, encoded, forget, is_record_of, records, strangers
from kos_cluster.services.engines.spec import (
    WORKERS_LIMIT,
    Record,
    Spec,
    State,
    Wanted,
    check,
    name_taken,
    record_of,
    wanted_of,
)
from kos_cluster.services.engines.supervisor import supervise
from kos_cluster.tasks.detached import ENDED, DetachedJob
from kos_cluster.tasks.registers import FAILOVER_S

if TYPE_CHECKING:
    from kos_cluster.core.records import JobSummary
    from kos_cluster.tasks.cluster import Cluster

LASTS_S = 5.0  # of a start, after which who waits is told of its job
START_TIMEOUT_S = 240.0  # for slots and ranks
PACKAGES_TIMEOUT_S = 3.0  # for nodes to tell what they have; of one that does not, its ranks will say
STOP_TIMEOUT_S = 30.0
SCALE_TIMEOUT_S = 60.0
POLL_S = 0.1  # between two looks at the registers while one waits
JOB_POLL_S = 0.5  # between two looks at the supervisor's job
SUPERVISOR = "engine "  # the beginning of the name of its job
_ID_BYTES = 8


def spec_of(
    cluster: Cluster,
    kind: str,
    *,
    name: str = "",
    workers: int | None = None,
    cpus: int = 1,
    memory_bytes: int = 0,
    restarts: int = 0,
    plaintext: bool = False,
) -> Spec:
    """What is to be started, checked. By default a worker for each node, as far as the slots hold the head beside."""
    if workers is None:
        workers = _default_workers(cluster, cpus)
    spec = Spec(name or kind, kind, secrets.token_hex(_ID_BYTES), workers, cpus, memory_bytes, restarts, plaintext)
    engine = engine_of(kind)
    check(spec)
    check_plaintext(engine, plaintext)
    return spec


def start(cluster: Cluster, spec: Spec, lasts: Callable[[DetachedJob], object] = lambda _: None) -> Record:
    """Start an engine; returns when it serves. `lasts` is called with its supervisor's job if it takes a while.

    Raises EngineError, PlacementError, UsageError. Interrupted, it leaves nothing that runs.
    """
    check_installed(engine_of(spec.kind), _packages(cluster))
    taken = _named(cluster.registers(), spec.name)
    if taken is not None and _job_state(cluster, taken) == JobState.CANCELLED:  # it had no time to remove its record
        forget(cluster, taken.name, taken.id)
    elif taken is not None:
        raise name_taken(_as_it_is(cluster, taken))
    job = cluster.detach(supervise, [spec], name=f"{SUPERVISOR}{spec.name} ({spec.kind})")
    try:
        return _started(cluster, spec, job, lasts)
    except BaseException:
        with suppress(KosError):
            job.cancel()
        raise


def engines(cluster: Cluster, patience_s: float = FAILOVER_S) -> list[Record]:
    """All engines of the cluster, by name, those that have failed too. Raises UnreachableError."""
    return _seen(cluster, cluster.registers(patience_s))


def unreadable(cluster: Cluster) -> list[StateError]:
    """What is in registers that are named as those of engines are, and is none. Raises UnreachableError."""
    return strangers(cluster.registers())


def is_supervisor(job: JobSummary) -> bool:
    """Whether a job in a listing is an engine's supervisor, by its name: there is an engine, then."""
    return bool(job.driver) and job.name.startswith(SUPERVISOR)


def find(cluster: Cluster, name_or_kind: str) -> Record:
    """The engine of this name; else the only one of this kind.

    Raises EngineError when there is none, StateError when there is something else of that name, UsageError.
    """
    if not isinstance(name_or_kind, str):
        raise UsageError(f"The name of an engine is text, not {name_or_kind!r}.", "Give its name, or its kind: 'dask'.")
    registers = cluster.registers()
    known = _seen(cluster, registers)
    if _named(registers, name_or_kind) is not None:
        return next(record for record in known if record.name == name_or_kind)
    found = [record for record in known if record.kind == name_or_kind]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(record.name for record in found)
        raise UsageError(f"There are {len(found)} engines of the kind {name_or_kind} ({names}).", "Name one of them.")
    there = f"there are {', '.join(record.name for record in known)}" if known else "none is started"
    raise EngineError(
        f"There is no engine {name_or_kind[:64]!r}: {there}.", "Type 'kos engine start dask', or 'kos engine list'."
    )


def scale(cluster: Cluster, name: str, workers: int) -> Record:
    """Bring the number of workers to this; returns when the head knows them. Raises EngineError, UsageError.

    What this gives up on, or is interrupted in, is not wanted any more. A newer wish takes the place of one that waits.
    """
    check_whole("workers", workers, 1, WORKERS_LIMIT)
    record = serving(find(cluster, name))
    most = _fitting(cluster, record.cpus)
    if workers > record.wanted and workers + 1 > most:
        raise PlacementError(
            f"{workers} workers of {slots_told(record.cpus)} each do not fit beside the head: the cluster holds {most} "
            "such ranks at most.",
            "Ask for fewer, or add nodes.",
        )
    wish = Wanted(secrets.token_hex(_ID_BYTES), record.id, workers)
    register = cluster.register(wanted_of(record.name))
    register.set(encoded(wish))

    def reached() -> Record | None:
        now = serving(find(cluster, record.name))
        if now.answered == wish.id and now.refusal:
            raise EngineError(
                f"Engine {now.name!r} was not scaled to {workers} workers: {now.refusal.rstrip('.')}.",
                "'kos nodes' shows what there is.",
            )
        if now.answered != wish.id and register.get() != encoded(wish):
            raise EngineError(
                f"Engine {now.name!r} was not scaled to {workers} workers: somebody else has wished something newer.",
                f"Type 'kos engine status {now.name}' to see how many it has.",
            )
        return now if now.answered == wish.id and now.workers == workers else None

    try:
        return _awaited(reached, SCALE_TIMEOUT_S, f"Engine {record.name!r} was not scaled to {workers} workers")
    except BaseException:
        with suppress(KosError):
            register.compare_and_set(encoded(wish), None)
        raise


def stop(cluster: Cluster, name: str) -> Record:
    """Stop an engine; returns when its ranks have been stopped and nothing is written of it. Its last record."""
    record = find(cluster, name)
    cluster.leave_engine(record.id, name, record.name, record.kind)
    wish = Wanted(secrets.token_hex(_ID_BYTES), record.id, stop=True)
    try:
        cluster.register(wanted_of(record.name)).set(encoded(wish))
    except LimitError:  # there is no room for a wish, and the end of its supervisor does the same
        _cancel(cluster, record)
    ended = _Seldom(lambda: _job_ended(cluster, record))

    def gone() -> Record | None:
        held = cluster.register(record_of(record.name)).get()
        there = held is not None and is_record_of(record.name, held, record.id)
        return None if there and not ended.look() else record  # if that has ended, nobody carries the wish out any more

    try:
        _awaited(gone, STOP_TIMEOUT_S, f"Engine {record.name!r} did not stop")
    except EngineError:
        _cancel(cluster, record)
        forget(cluster, record.name, record.id)
        raise
    forget(cluster, record.name, record.id)  # what a supervisor that was killed has left
    return record


def open_engine(cluster: Cluster, name_or_kind: str) -> Connection:
    """A connection to an engine; the caller closes it. Raises EngineError, UnreachableError, AuthError, UsageError."""
    record = serving(find(cluster, name_or_kind))
    if 0 < record.until_s <= time.time():
        raise EngineError(f"Engine {record.name!r} cannot be connected to: {ending(record, time.time())}.")
    engine = engine_of(record.kind)
    check_installed_here(engine)
    return engine.connect(record.address, cluster.engine_keys(record.id, LOOPBACK))


# ---- inside


class _Seldom:
    """A look that costs more than those around it: taken each `JOB_POLL_S`, and False in between."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._next_s = float("-inf")

    def look(self) -> bool:
        if time.monotonic() < self._next_s:
            return False
        self._next_s = time.monotonic() + JOB_POLL_S
        return self._look()


def _default_workers(cluster: Cluster, cpus: int) -> int:
    nodes = [node for node in cluster.nodes() if node["state"] == "alive"]
    return max(1, min(len(nodes), _fitting(cluster, cpus) - 1))


def _fitting(cluster: Cluster, cpus: int) -> int:
    """How many ranks of so many slots the nodes hold that are alive, if nothing else runs there."""
    slots = [node["slots"] for node in cluster.nodes() if node["state"] == "alive"]
    return sum(each // cpus for each in slots if each) if cpus > 0 else 0


def _packages(cluster: Cluster) -> dict[str, dict[str, str]]:
    """What each node has; a node that was linked a moment ago has not told yet, and is waited for."""
    until_s = time.monotonic() + PACKAGES_TIMEOUT_S
    while not all((told := cluster.packages()).values()) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    return {name: packages for name, packages in told.items() if packages}


def _seen(cluster: Cluster, registers: Mapping[str, str]) -> list[Record]:
    members = cluster.heard().members or ()
    return [as_seen(_as_it_is(cluster, record), members, time.time()) for record in records(registers)]


def _named(registers: Mapping[str, str], name: str) -> Record | None:
    """The record of an engine as its supervisor wrote it. Raises StateError when there is something else."""
    held = registers.get(record_of(name))
    return None if held is None else decoded(record_of(name), held, Record)


def _as_it_is(cluster: Cluster, record: Record) -> Record:
    """A record, corrected where its supervisor has ended without a word."""
    if record.state is State.FAILED or not _job_ended(cluster, record):
        return record
    why = f"its supervisor has ended; see 'kos attach {record.job}'"
    return msgspec.structs.replace(record, state=State.FAILED, workers=0, why=why, why_s=time.time())


def _cancel(cluster: Cluster, record: Record) -> None:
    """End its supervisor's job, and all that it has started."""
    with suppress(NoSuchTaskError):
        cluster.attach(record.job).cancel()


def _job_ended(cluster: Cluster, record: Record) -> bool:
    state = _job_state(cluster, record)
    return state is None or state in ENDED


def _job_state(cluster: Cluster, record: Record) -> str | None:
    """Of its supervisor's job; None when that ended so long ago that it is forgotten."""
    try:
        return cluster.attach(record.job).state().state
    except NoSuchTaskError:
        return None


def serving(record: Record) -> Record:
    """The record of an engine that can be used. Raises EngineError for any other."""
    if record.state is State.SERVING:
        return record
    told = f": {record.why.rstrip('.')}" if record.why else ""
    hint = f"Type 'kos engine stop {record.name}', then start it again."
    if record.state in (State.STARTING, State.LOST):
        hint = f"Type 'kos engine status {record.name}' to see when it serves."
    raise EngineError(f"Engine {record.name!r} is {record.state}{told}.", hint)


def _started(cluster: Cluster, spec: Spec, job: DetachedJob, lasts: Callable[[DetachedJob], object]) -> Record:
    over = _Seldom(lambda: job.state().state in ENDED)
    tell_s = time.monotonic() + LASTS_S

    def serving() -> Record | None:
        nonlocal tell_s
        if time.monotonic() > tell_s:
            tell_s = float("inf")
            lasts(job)
        record = next((record for record in records(cluster.registers()) if record.id == spec.id), None)
        if record is not None and record.state is State.SERVING:
            return record
        if over.look():
            raise _ended(job)
        return None

    return _awaited(serving, START_TIMEOUT_S, f"Engine {spec.name!r} did not start")


def _ended(job: DetachedJob) -> KosError:
    """How a supervisor's job has ended."""
    try:
        (outcome,) = job.outcomes()
    except TaskLostError:
        return EngineError(f"The supervisor of the engine, job {job.id}, was lost.", f"See 'kos attach {job.id}'.")
    except KosError as error:
        return error
    if not outcome.failed:
        return EngineError("The engine was stopped while it started.", "Start it again.")
    raised = outcome.error()
    if isinstance(raised, KosError):
        return raised
    return EngineError(
        f"The supervisor of the engine, job {job.id}, has ended: {raised!r}.", "This is an error in KOS."
    )


def _awaited(look: Callable[[], Record | None], timeout_s: float, what: str) -> Record:
    """What `look` gives, asked until it gives something. Raises EngineError."""
    until_s = time.monotonic() + timeout_s
    while (found := look()) is None:
        if time.monotonic() > until_s:
            raise EngineError(
                f"{what} within {timeout_s:g} s.", "Type 'kos engine list', and 'kos why ID' of its jobs."
            )
        time.sleep(POLL_S)
    return found
