"""ipyparallel: a controller and engines on the loopback, as `ipyparallel.Cluster` starts them."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import WORKERS, Noop, System

START_TIMEOUT_S = 60


class IpyparallelCluster:
    """Single tasks go through the load-balanced view, which is what it offers for independent tasks."""

    def start(self, folder: Path, noop: Noop) -> None:
        ipyparallel = importlib.import_module("ipyparallel")
        self._noop = noop
        self._cluster = ipyparallel.Cluster(
            n=WORKERS,
            controller_ip="127.0.0.1",
            ipython_dir=str(folder / "ipython"),
            log_level=logging.ERROR,
        )
        self._client = self._cluster.start_and_connect_sync(activate=False)
        self._client.wait_for_engines(WORKERS, timeout=START_TIMEOUT_S, interactive=False)
        self._balanced = self._client.load_balanced_view()
        self._direct = self._client[:]

    def sync(self, item: int) -> Any:
        return self._balanced.apply_sync(self._noop, item)

    def submits(self, items: range) -> list[Any]:
        pending = [self._balanced.apply_async(self._noop, item) for item in items]
        return [result.get() for result in pending]

    def map(self, items: range) -> list[Any]:
        return list(self._balanced.map_sync(self._noop, items, chunksize=1))

    def map_chunked(self, items: range) -> list[Any]:
        return list(self._direct.map_sync(self._noop, items))

    def stop(self) -> None:
        self._client.close()
        self._cluster.stop_cluster_sync()


open_system: type[System] = IpyparallelCluster
