"""Parsl: a HighThroughputExecutor with one block of workers on this machine. A reference row, not a peer."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import NODES, WORKERS, Noop, System
from kos_cluster.services.bench.tasks import add, last, leaf, ones, spin

CHUNK = 1000


class _Parsl:
    """Every task is an app; results pass through the client."""

    def up(self, folder: Path, workers: int) -> None:
        self._parsl = importlib.import_module("parsl")
        executors = importlib.import_module("parsl.executors")
        providers = importlib.import_module("parsl.providers")
        executor = executors.HighThroughputExecutor(
            label="bench",
            address="127.0.0.1",
            max_workers_per_node=workers,
            cores_per_worker=1e-6,  # else it makes no more than there are cores
            provider=providers.LocalProvider(init_blocks=1, max_blocks=1),
        )
        self._kernel = self._parsl.load(
            self._parsl.Config(
                executors=[executor],
                run_dir=str(folder / "parsl"),
                usage_tracking=0,
                initialize_logging=False,
            )
        )

    def app(self, fn: Any) -> Any:
        return self._parsl.python_app(fn)

    def stop(self) -> None:
        self._kernel.cleanup()
        self._parsl.clear()


class ParslExecutor(_Parsl):
    """Two workers."""

    def start(self, folder: Path, noop: Noop) -> None:
        self.up(folder, WORKERS)
        self._noop = self.app(noop)

        def chunk(items: list[int], fn: Any) -> list[Any]:
            return [fn(item) for item in items]

        self._plain, self._chunk = noop, self.app(chunk)

    def sync(self, item: int) -> Any:
        return self._noop(item).result()

    def submits(self, items: range) -> list[Any]:
        return [future.result() for future in [self._noop(item) for item in items]]

    def map(self, items: range) -> list[Any]:
        return self.submits(items)

    def map_chunked(self, items: range) -> list[Any]:
        starts = range(0, len(items), CHUNK)
        pending = [self._chunk(list(items[start : start + CHUNK]), self._plain) for start in starts]
        return [value for future in pending for value in future.result()]


class ParslNodes(_Parsl):
    """Four workers. An array goes to four tasks; nothing says on which workers they run."""

    def start(self, folder: Path) -> None:
        self.up(folder, NODES)
        self._spin, self._leaf, self._add, self._last, self._ones = map(self.app, (spin, leaf, add, last, ones))

    def spins(self, items: range) -> list[Any]:
        return [future.result() for future in [self._spin(item) for item in items]]

    def tree(self, items: range) -> Any:
        level = [self._leaf(item) for item in items]
        while len(level) > 1:
            level = [self._add(left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
        return level[0].result()

    def argument(self, array: Any) -> list[Any]:
        return [future.result() for future in [self._last(array) for _ in range(NODES)]]

    def made(self, size_bytes: int) -> Any:
        future = self._ones(size_bytes)
        future.result()
        return future

    def used(self, made: Any) -> Any:
        return self._last(made).result()


open_system: type[System] = ParslExecutor
open_nodes = ParslNodes
