"""Inside a script that runs on the cluster: its process pools use all of the cluster.

Theory of operation. `install` puts classes of ours in the places where the standard library and joblib keep theirs:
`concurrent.futures.ProcessPoolExecutor` (`scriptpool`), `multiprocessing.pool.Pool`, through which all contexts' pools
are made (`multiprocessingpool`), and joblib's backends "loky" and "multiprocessing" (`joblibbackend`), as soon as the
script has loaded joblib. `multiprocessing.cpu_count` tells the cluster's slots, so that scripts which size a pool by it
use the whole.

Rules. `os.cpu_count` and the affinity stay this machine's, as libraries size their threads by them. Pools of threads
stay where they are.
"""

from __future__ import annotations

import concurrent.futures.process
import importlib.abc
import importlib.machinery
import multiprocessing.context
import multiprocessing.pool
import sys
import types
from collections.abc import Callable, Sequence

import kos_cluster
from kos_cluster.tasks import multiprocessingpool, scriptpool
from kos_cluster.tasks.jobgroup import slots_of

JOBLIB = "joblib.parallel"  # the module that has joblib's backends


def install(path: str) -> None:
    """Redirect the process pools of the script at `path`, which is about to run in this process."""
    scriptpool.begin(path)
    concurrent.futures.ProcessPoolExecutor = scriptpool.ClusterPool  # type: ignore[assignment, misc]
    concurrent.futures.process.ProcessPoolExecutor = scriptpool.ClusterPool  # type: ignore[assignment, misc]
    multiprocessing.pool.Pool = multiprocessingpool.StandIn  # type: ignore[misc]
    multiprocessing.context.BaseContext.cpu_count = _cpu_count  # type: ignore[assignment, method-assign]
    multiprocessing.cpu_count = _cpu_count
    if JOBLIB in sys.modules:
        _redirect_joblib()
    else:
        sys.meta_path.insert(0, _AfterLoading(JOBLIB, _redirect_joblib))


def _cpu_count(_: object = None) -> int:
    """The slots of the cluster."""
    return slots_of(kos_cluster.connect())


def _redirect_joblib() -> None:
    from kos_cluster.tasks import joblibbackend

    joblibbackend.redirect()


class _AfterLoading(importlib.abc.MetaPathFinder):
    """Calls `then` when the module of this name has been loaded."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_then(module: types.ModuleType) -> None:
                load(module)
                self._then()

            spec.loader.exec_module = load_then  # type: ignore[method-assign]
        return spec
