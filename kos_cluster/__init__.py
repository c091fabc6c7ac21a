"""KOS: the machines on a desk, in a lab or in a rack as one computer for a notebook.

    import kos_cluster as kos

    cluster = kos.connect()
    squares = list(cluster.map(lambda x: x * x, range(10)))

What is named in `__all__` is the public interface; it is loaded when it is first used, so that importing the package is
cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kos_cluster.tasks.blocks import BlockRef, stay
    from kos_cluster.tasks.cluster import Cluster, connect
    from kos_cluster.tasks.comm.communicator import Communicator
    from kos_cluster.tasks.comm.ranks import checkpoint, comm, restored
    from kos_cluster.tasks.daskgraph import dask_get
    from kos_cluster.tasks.executor import Executor
    from kos_cluster.tasks.futures import Future
    from kos_cluster.tasks.gangs import Gang
    from kos_cluster.tasks.locking import Lock
    from kos_cluster.tasks.mapresult import MapResult
    from kos_cluster.tasks.pool import Pool
    from kos_cluster.tasks.registers import Register
    from kos_cluster.tasks.streaming import Stream

__version__ = "0.1.0"
__all__ = [
    "BlockRef",
    "Cluster",
    "Communicator",
    "Executor",
    "Future",
    "Gang",
    "Lock",
    "MapResult",
    "Pool",
    "Register",
    "Stream",
    "__version__",
    "checkpoint",
    "comm",
    "connect",
    "dask_get",
    "restored",
    "stay",
]

_HOMES = {
    "BlockRef": "kos_cluster.tasks.blocks",
    "Cluster": "kos_cluster.tasks.cluster",
    "MapResult": "kos_cluster.tasks.mapresult",
    "Lock": "kos_cluster.tasks.locking",
    "Register": "kos_cluster.tasks.registers",
    "stay": "kos_cluster.tasks.blocks",
    "connect": "kos_cluster.tasks.cluster",
    "Executor": "kos_cluster.tasks.executor",
    "Future": "kos_cluster.tasks.futures",
    "Stream": "kos_cluster.tasks.streaming",
    "Gang": "kos_cluster.tasks.gangs",
    "Communicator": "kos_cluster.tasks.comm.communicator",
    "checkpoint": "kos_cluster.tasks.comm.ranks",
    "comm": "kos_cluster.tasks.comm.ranks",
    "restored": "kos_cluster.tasks.comm.ranks",
    "Pool": "kos_cluster.tasks.pool",
    "dask_get": "kos_cluster.tasks.daskgraph",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
