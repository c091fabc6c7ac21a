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
import multiprocessing.context
import multiprocessing.pool

import kos_cluster
from kos_cluster.tasks import multiprocessingpool, scriptpool
from kos_cluster.tasks.afterloading import after_loading
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
    after_loading(JOBLIB, _redirect_joblib)


def _cpu_count(_: object = None) -> int:
    """The slots of the cluster."""
    return slots_of(kos_cluster.connect())


def _redirect_joblib() -> None:
    from kos_cluster.tasks import joblibbackend

    joblibbackend.redirect()
