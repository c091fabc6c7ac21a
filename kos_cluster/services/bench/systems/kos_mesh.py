"""KOS as its users start it: `kos up` with two nodes of one slot each, and `kos_cluster.connect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kos_cluster
from kos_cluster.home import Home
from kos_cluster.services import embedded
from kos_cluster.services.bench.systems import WORKERS, Noop, System
from kos_cluster.services.daemons import changing


class KosMesh:
    """KOS_HOME lies in the run's folder, and the run keeps to `WORKERS` cores, which gives each node one slot."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._noop = noop
        home = Home()
        with changing(home):
            self._up = embedded.up(home, WORKERS)
        self._cluster = kos_cluster.connect()

    def sync(self, item: int) -> Any:
        return self._cluster.submit(self._noop, item).result()

    def submits(self, items: range) -> list[Any]:
        return list(self._cluster.gather([self._cluster.submit(self._noop, item) for item in items]))

    def map(self, items: range) -> list[Any]:
        return list(self._cluster.map(self._noop, items))

    def map_chunked(self, items: range) -> list[Any]:
        return self.map(items)

    def stop(self) -> None:
        self._cluster.close()
        with changing(self._up.cluster.home):
            embedded.down(self._up.cluster)


open_system: type[System] = KosMesh
