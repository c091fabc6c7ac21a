"""loky: a process pool on this machine, without a network. A reference row, not a peer."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import NODES, WORKERS, Noop, System
from kos_cluster.services.bench.tasks import last, spin

CHUNK = 1000


class _Loky:
    """A plain ProcessPoolExecutor of loky."""

    def up(self, workers: int) -> None:
        self._pool = importlib.import_module("loky").ProcessPoolExecutor(max_workers=workers)

    def stop(self) -> None:
        self._pool.shutdown(wait=True)


class LokyPool(_Loky):
    """Two workers."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._noop = noop
        self.up(WORKERS)

    def sync(self, item: int) -> Any:
        return self._pool.submit(self._noop, item).result()

    def submits(self, items: range) -> list[Any]:
        futures = [self._pool.submit(self._noop, item) for item in items]
        return [future.result() for future in futures]

    def map(self, items: range) -> list[Any]:
        return list(self._pool.map(self._noop, items, chunksize=1))

    def map_chunked(self, items: range) -> list[Any]:
        return list(self._pool.map(self._noop, items, chunksize=CHUNK))


class LokyNodes(_Loky):
    """Four workers. An array goes to four tasks; nothing says on which workers they run."""

    def start(self, folder: Path) -> None:
        self.up(NODES)

    def spins(self, items: range) -> list[Any]:
        return list(self._pool.map(spin, items, chunksize=1))

    def argument(self, array: Any) -> list[Any]:
        return [future.result() for future in [self._pool.submit(last, array) for _ in range(NODES)]]

    def joblib(self) -> AbstractContextManager[Any]:
        import joblib

        return joblib.parallel_config("loky")  # type: ignore[no-any-return]  # joblib has no types


open_system: type[System] = LokyPool
open_nodes = LokyNodes
