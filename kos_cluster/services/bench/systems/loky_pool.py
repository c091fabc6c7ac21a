"""loky: a process pool on this machine, without a network. A reference row, not a peer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import WORKERS, Noop, System

CHUNK = 1000


class LokyPool:
    """A plain ProcessPoolExecutor of loky."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._noop = noop
        self._pool = importlib.import_module("loky").ProcessPoolExecutor(max_workers=WORKERS)

    def sync(self, item: int) -> Any:
        return self._pool.submit(self._noop, item).result()

    def submits(self, items: range) -> list[Any]:
        futures = [self._pool.submit(self._noop, item) for item in items]
        return [future.result() for future in futures]

    def map(self, items: range) -> list[Any]:
        return list(self._pool.map(self._noop, items, chunksize=1))

    def map_chunked(self, items: range) -> list[Any]:
        return list(self._pool.map(self._noop, items, chunksize=CHUNK))

    def stop(self) -> None:
        self._pool.shutdown(wait=True)


open_system: type[System] = LokyPool
