"""Ray: one local node, started by `ray.init`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import WORKERS, Noop, System

OBJECT_STORE_BYTES = 256 << 20


class RayCluster:
    """Tasks of the default kind: one CPU each, results through the object store or inline as Ray decides."""

    def start(self, folder: Path, noop: Noop) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
        self._ray = importlib.import_module("ray")
        self._pool: Any = None
        self._noop = noop
        self._ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / "r"),
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
        )
        self._remote = self._ray.remote(self._noop)

    def sync(self, item: int) -> Any:
        return self._ray.get(self._remote.remote(item))

    def submits(self, items: range) -> list[Any]:
        return list(self._ray.get([self._remote.remote(item) for item in items]))

    def map(self, items: range) -> list[Any]:
        return self.submits(items)

    def map_chunked(self, items: range) -> list[Any]:
        if self._pool is None:
            self._pool = importlib.import_module("ray.util.multiprocessing").Pool(WORKERS)
        return list(self._pool.map(self._noop, items))

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.terminate()
        self._ray.shutdown()


open_system: type[System] = RayCluster
