"""ipyparallel: a controller and engines on the loopback, as `ipyparallel.Cluster` starts them."""

from __future__ import annotations

import importlib
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import NODES, WORKERS, Noop, System
from kos_cluster.services.bench.tasks import last, spin

START_TIMEOUT_S = 60
_RESULT = "kos_bench_result"  # the name of a result in an engine


class _Ipyparallel:
    """Single tasks go through the load-balanced view, which is what it offers for independent tasks."""

    def up(self, folder: Path, engines: int) -> None:
        ipyparallel = importlib.import_module("ipyparallel")
        self._cluster = ipyparallel.Cluster(
            n=engines,
            controller_ip="127.0.0.1",
            ipython_dir=str(folder / "ipython"),
            log_level=logging.ERROR,
        )
        self._client = self._cluster.start_and_connect_sync(activate=False)
        self._client.wait_for_engines(engines, timeout=START_TIMEOUT_S, interactive=False)
        self._balanced = self._client.load_balanced_view()
        self._direct = self._client[:]

    def stop(self) -> None:
        self._client.close()
        self._cluster.stop_cluster_sync()


class IpyparallelCluster(_Ipyparallel):
    """Two engines."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._noop = noop
        self.up(folder, WORKERS)

    def sync(self, item: int) -> Any:
        return self._balanced.apply_sync(self._noop, item)

    def submits(self, items: range) -> list[Any]:
        pending = [self._balanced.apply_async(self._noop, item) for item in items]
        return [result.get() for result in pending]

    def map(self, items: range) -> list[Any]:
        return list(self._balanced.map_sync(self._noop, items, chunksize=1))

    def map_chunked(self, items: range) -> list[Any]:
        return list(self._direct.map_sync(self._noop, items))


class IpyparallelNodes(_Ipyparallel):
    """Four engines, each of which stands for a node."""

    def start(self, folder: Path) -> None:
        self.up(folder, NODES)

    def spins(self, items: range) -> list[Any]:
        return list(self._balanced.map_sync(spin, items, chunksize=1))

    def argument(self, array: Any) -> list[Any]:
        return list(self._direct.apply_sync(last, array))

    def made(self, size_bytes: int) -> Any:
        self._client[0].execute(f"{_RESULT} = __import__('numpy').ones({size_bytes}, dtype='uint8')", block=True)
        return _RESULT

    def used(self, made: Any) -> Any:
        return self._client[1].apply_sync(last, self._client[0].pull(made, block=True))

    def joblib(self) -> AbstractContextManager[Any]:
        import joblib

        self._balanced.register_joblib_backend()
        return joblib.parallel_config("ipyparallel")  # type: ignore[no-any-return]  # joblib has no types


open_system: type[System] = IpyparallelCluster
open_nodes = IpyparallelNodes
