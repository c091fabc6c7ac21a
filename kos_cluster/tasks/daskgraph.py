"""`kos.dask_get`: a Dask scheduler that runs the tasks of a graph on the cluster.

    dask.compute(total, scheduler=kos.dask_get)

Theory of operation. Dask's own walk through a graph (`dask.local.get_async`) decides the order, holds what tasks have
given until nothing needs it any more, and tells Dask's callbacks, such as its progress bar. What it holds are futures:
a task is submitted once its inputs are there, and is passed theirs, so large results go from node to node, and come
here only if they are wanted. Before that the graph is cut down to what is wanted, and chains of tasks are fused, as
Dask does for its own processes.

Rules. At most `IN_FLIGHT` tasks a slot are out at once, so that the order is Dask's, which frees results soon. A failed
task raises its own exception, with the traceback of the node and a note that names the task; what is out then is
cancelled, as it is by an interrupt. A callback that looks at what a task has given sees its future. Dask is imported
when this is first called.
"""

from __future__ import annotations

import graphlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kos_cluster.errors import UsageError
from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.executor import Executor
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.jobgroup import slots_of

IN_FLIGHT = 4  # tasks out at once, for each slot
IN_FLIGHT_LEAST = 32  # so that small tasks travel together, in small clusters too
CYCLE_TOLD_LIMIT = 8  # tasks of a cycle that are named

Task = Callable[[Mapping[Any, Any]], Any]  # called with its inputs by their keys


def dask_get(
    dsk: Any,
    keys: Any,
    num_workers: int | None = None,
    cluster: Cluster | None = None,
    optimize_graph: bool = True,
    **options: Any,
) -> Any:
    """The values of `keys` in a Dask graph. `num_workers` caps how many tasks run at once.

    `options` are those of Dask's own schedulers; tasks are gathered to batches by measurement, not by `chunksize`.
    Raises what a task raised, what `connect` raises, and UsageError for a graph with a cycle.
    """
    local = _dask()
    cluster = cluster or connect()
    ahead = num_workers or max(IN_FLIGHT_LEAST, IN_FLIGHT * slots_of(cluster))
    out: set[Future] = set()
    with Executor(num_workers, cluster) as executor:

        def submit(_: Any, calls: Sequence[Any]) -> _Ending:
            ((key, call, *_),) = calls
            future = executor.submit(run_task, key, *call)
            out.add(future)
            future.add_done_callback(out.discard)
            return _Ending(key, future)

        try:
            graph = _prepared(dsk, keys, optimize_graph)
            return _values(local.get_async(submit, ahead, graph, keys, **{**options, "chunksize": 1}))
        finally:
            for future in list(out):
                future.cancel()


class _Ending:
    """What Dask's walk waits for: the end of one task."""

    def __init__(self, key: Any, future: Future) -> None:
        self._key = key
        self._future = future

    def add_done_callback(self, tell: Callable[[_Ending], object]) -> None:
        self._future.add_done_callback(lambda _: tell(self))

    def result(self) -> list[tuple[Any, Any, bool]]:
        """The key, what Dask is to hold with a worker's name, no failure. Raises what the task raised."""
        settled = self._future.settled()
        if not isinstance(settled, Outcome) or settled.failed:
            self._future.result()
        return [(self._key, (self._future, None), False)]


def run_task(key: Any, task: Task, inputs: Mapping[Any, Any]) -> Any:
    """One task of a graph, in a worker."""
    try:
        return task(inputs)
    except Exception as error:
        error.add_note(f"This was task {key!r} of a Dask graph.")
        raise


def _values(found: Any) -> Any:
    """What was wanted, nested as it was asked for, with values in place of futures."""
    if isinstance(found, Future):
        return found.result()
    return tuple(map(_values, found)) if type(found) is tuple else found


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
