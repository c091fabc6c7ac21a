"""`kos.dask_get`: a Dask scheduler that runs the tasks of a graph on the cluster.

    dask.compute(total, scheduler=kos.dask_get)

Theory of operation. Dask's own walk through a graph (`dask.local.get_async`) decides the order, holds what tasks have
given until nothing needs it any more, and tells Dask's callbacks, such as its progress bar. A task is submitted once
its inputs are there, which travel with it as values. Before that the graph is cut down to what is wanted, and chains
of tasks are fused, as Dask does for its own processes.

Rules. At most `IN_FLIGHT` tasks a slot are out at once, since each holds its inputs in this process. A failed task
raises its own exception, with the traceback of the node and a note that names the task; what is out then is
cancelled, as it is by an interrupt. Dask is imported when this is first called.
"""

from __future__ import annotations

import concurrent.futures
import graphlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kos_cluster.errors import UsageError
from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.executor import Executor
from kos_cluster.tasks.jobgroup import slots_of

IN_FLIGHT = 4  # tasks out at once, for each slot
IN_FLIGHT_LEAST = 32  # so that small tasks travel together, in small clusters too
CYCLE_TOLD_LIMIT = 8  # tasks of a cycle that are named

Call = tuple[Any, tuple[Callable[[Mapping[Any, Any]], Any], Mapping[Any, Any]]]  # key, (task, its inputs)


def dask_get(
    dsk: Any,
    keys: Any,
    num_workers: int | None = None,
    cluster: Cluster | None = None,
    optimize_graph: bool = True,
    **options: Any,
) -> Any:
    """The values of `keys` in a Dask graph. `num_workers` caps how many tasks run at once.

    `options` are those of Dask's own schedulers. Raises what a task raised, what `connect` raises, and UsageError for
    a graph with a cycle.
    """
    local = _dask()
    cluster = cluster or connect()
    ahead = num_workers or max(IN_FLIGHT_LEAST, IN_FLIGHT * slots_of(cluster))
    out: set[concurrent.futures.Future[Any]] = set()
    with Executor(num_workers, cluster) as executor:

        def submit(_: Any, calls: Sequence[Any]) -> concurrent.futures.Future[Any]:
            future = executor.submit(run_tasks, [call[:2] for call in calls])
            out.add(future)
            future.add_done_callback(out.discard)
            return future

        try:
            return local.get_async(submit, ahead, _prepared(dsk, keys, optimize_graph), keys, **options)
        finally:
            for future in list(out):
                future.cancel()


def run_tasks(calls: Sequence[Call]) -> list[tuple[Any, Any, bool]]:
    """Run tasks of a graph, in a worker; what Dask wants to know of each: its key, (value, worker), no failure."""
    ended = []
    for key, (task, inputs) in calls:
        try:
            ended.append((key, (task(inputs), None), False))
        except Exception as error:
            error.add_note(f"This was task {key!r} of a Dask graph.")
            raise
    return ended


def _dask() -> Any:
    try:
        import dask.local
    except ImportError as error:
        raise UsageError("kos.dask_get needs dask.", "Type: python -m pip install dask") from error
    return dask.local


def _prepared(dsk: Any, keys: Any, fused: bool) -> Mapping[Any, Any]:
    """The tasks that are wanted, with chains of them made one. Raises UsageError when some need their own results."""
    from dask.optimization import cull, fuse
    from dask.utils import ensure_dict

    graph, dependencies = cull(ensure_dict(dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk), keys)
    _check_acyclic(dependencies)
    if fused:
        graph, _ = fuse(graph, keys, dependencies)
    return graph  # type: ignore[no-any-return]


def _check_acyclic(dependencies: Mapping[Any, Any]) -> None:
    """Dask's walk would end in errors of its own, of which some do not name the cycle."""
    try:
        graphlib.TopologicalSorter(dependencies).prepare()
    except graphlib.CycleError as error:
        cycle = [repr(key) for key in reversed(error.args[1])]  # each needs the one after it
        more = " and so on" * (len(cycle) > CYCLE_TOLD_LIMIT)
        raise UsageError(
            f"The Dask graph has a cycle: {' needs '.join(cycle[:CYCLE_TOLD_LIMIT])}{more}.",
            "A task cannot wait for its own result: take one of these out of the arguments of the other.",
        ) from None
