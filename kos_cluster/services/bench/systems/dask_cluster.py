"""Dask.distributed: a LocalCluster of worker processes, as its documentation starts one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import WORKERS, Noop, System

PARTITIONS = 4 * WORKERS
START_TIMEOUT_S = 60


class DaskCluster:
    """`pure=False` throughout: otherwise Dask answers an equal call from memory without running it."""

    def start(self, folder: Path, noop: Noop) -> None:
        distributed = importlib.import_module("distributed")
        self._bag: Any = None
        self._noop = noop
        self._cluster = distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=str(folder),
            silence_logs=40,
        )
        self._client = distributed.Client(self._cluster, timeout=START_TIMEOUT_S)

    def sync(self, item: int) -> Any:
        return self._client.submit(self._noop, item, pure=False).result()

    def submits(self, items: range) -> list[Any]:
        futures = [self._client.submit(self._noop, item, pure=False) for item in items]
        return list(self._client.gather(futures))

    def map(self, items: range) -> list[Any]:
        return list(self._client.gather(self._client.map(self._noop, items, pure=False)))

    def map_chunked(self, items: range) -> list[Any]:
        if self._bag is None:
            self._bag = importlib.import_module("dask.bag")
        bag = self._bag.from_sequence(items, npartitions=PARTITIONS).map(self._noop)
        return list(bag.compute(scheduler=self._client))

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()


open_system: type[System] = DaskCluster
