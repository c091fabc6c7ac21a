"""KOS as its users start it: `kos up`, and `kos_cluster.connect`."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import kos_cluster
from kos_cluster.home import Home
from kos_cluster.services import embedded, sweeping
from kos_cluster.services.bench.ranks import REDUCE_RANKS, meet, reduce, stay
from kos_cluster.services.bench.systems import NODES, WORKERS, Gangs, Nodes, Noop, Sleepers, System
from kos_cluster.services.bench.tasks import add, last, leaf, nap, sleep, spin
from kos_cluster.services.daemons import changing


class _Kos:
    """An embedded cluster in the run's folder."""

    def up(self, home: Home, nodes: int, slots: int) -> None:
        with changing(home):
            self._up = embedded.up(home, nodes, slots=slots)
        os.environ["KOS_HOME"] = str(home.path)
        self._cluster = kos_cluster.connect()
        self._names = self._up.nodes

    def stop(self) -> None:
        self._cluster.close()
        with changing(self._up.cluster.home):
            embedded.down(self._up.cluster)


class KosMesh(_Kos):
    """Two nodes with a slot each."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._noop = noop
        self.up(Home(), WORKERS, 1)

    def sync(self, item: int) -> Any:
        return self._cluster.submit(self._noop, item).result()

    def submits(self, items: range) -> list[Any]:
        return list(self._cluster.gather([self._cluster.submit(self._noop, item) for item in items]))

    def map(self, items: range) -> list[Any]:
        return list(self._cluster.map(self._noop, items))

    def map_chunked(self, items: range) -> list[Any]:
        return self.map(items)


class KosNodes(_Kos):
    """Four nodes with a slot each."""

    def start(self, folder: Path) -> None:
        self.up(Home(), NODES, 1)

    def spins(self, items: range) -> list[Any]:
        return list(self._cluster.map(spin, items))

    def tree(self, items: range) -> Any:
        level = [self._cluster.submit(leaf, item) for item in items]
        while len(level) > 1:
            level = [
                self._cluster.submit(add, left, right) for left, right in zip(level[::2], level[1::2], strict=True)
            ]
        return level[0].result()

    def argument(self, array: Any) -> list[Any]:
        ref = self._cluster.put(array)
        return list(self._cluster.gather([self._cluster.submit(last, ref, on=name) for name in self._names]))

    def made(self, size_bytes: int) -> Any:
        return self._cluster.submit(stay, size_bytes, on=self._names[0]).result()

    def used(self, made: Any) -> Any:
        return self._cluster.submit(last, made, on=self._names[1]).result()

    def joblib(self) -> AbstractContextManager[Any]:
        import joblib

        from kos_cluster.tasks import joblibbackend

        joblibbackend.register()
        return joblib.parallel_config("kos")  # type: ignore[no-any-return]  # joblib has no types

    def begin_naps(self, items: range, seconds: float, folder: str) -> Any:
        return [self._cluster.submit(nap, item, seconds, folder) for item in items]

    def end_naps(self, pending: Any) -> list[Any]:
        return list(self._cluster.gather(pending))

    def kill_node(self) -> None:
        ready = sweeping.alive(self._up.cluster, self._names[-1])
        assert ready is not None
        os.kill(ready.pid, signal.SIGKILL)


class KosGangs(_Kos):
    """Four nodes with two slots each."""

    def start(self, folder: Path) -> None:
        self.up(Home(), NODES, 2)

    def gang(self, ranks: int) -> list[Any]:
        return self._cluster.gang(meet, ranks, spread=True).result()

    def allreduce(self, size_bytes: int) -> float:
        seconds: float = self._cluster.gang(reduce, REDUCE_RANKS, size_bytes, pack=True).result()[0]
        return seconds


class KosSleepers(_Kos):
    """As many nodes as are asked for, with a slot each."""

    def start(self, folder: Path, daemons: int) -> None:
        self.up(Home(folder), daemons, 1)

    def sleeps(self, items: range) -> list[Any]:
        return list(self._cluster.map(sleep, items))


open_system: type[System] = KosMesh
open_nodes: type[Nodes] = KosNodes
open_gangs: type[Gangs] = KosGangs
open_sleepers: type[Sleepers] = KosSleepers
