"""Dask.distributed: a LocalCluster of worker processes, as its documentation starts one; plain, or over TLS."""

from __future__ import annotations

import importlib
import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import NODES, WORKERS, Nodes, Noop, System
from kos_cluster.services.bench.tasks import add, last, leaf, nap, ones, spin

PARTITIONS = 4 * WORKERS
START_TIMEOUT_S = 60


class _Dask:
    """`pure=False` throughout: otherwise Dask answers an equal call from memory without running it."""

    encrypted = False

    def up(self, folder: Path, workers: int) -> None:
        self._distributed = importlib.import_module("distributed")
        security = {"security": self._distributed.Security.temporary()} if self.encrypted else {}
        self._cluster = self._distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="tls://127.0.0.1" if self.encrypted else "127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=str(folder),
            silence_logs=50,
            **security,
        )
        self._client = self._distributed.Client(self._cluster, timeout=START_TIMEOUT_S)

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()


class DaskCluster(_Dask):
    """Two workers."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._bag: Any = None
        self._noop = noop
        self.up(folder, WORKERS)

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


class DaskNodes(_Dask):
    """Four workers, each of which stands for a node."""

    def start(self, folder: Path) -> None:
        self.up(folder, NODES)
        self._client.wait_for_workers(NODES, timeout=START_TIMEOUT_S)
        self._workers = list(self._client.scheduler_info(n_workers=-1)["workers"])

    def spins(self, items: range) -> list[Any]:
        return list(self._client.gather(self._client.map(spin, items, pure=False)))

    def tree(self, items: range) -> Any:
        level = self._client.map(leaf, items, pure=False)
        while len(level) > 1:
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [self._client.submit(add, left, right, pure=False) for left, right in pairs]
        return level[0].result()

    def argument(self, array: Any) -> list[Any]:
        future = self._client.scatter(array, broadcast=True, hash=False)
        calls = [self._client.submit(last, future, workers=[worker], pure=False) for worker in self._workers]
        return list(self._client.gather(calls))

    def made(self, size_bytes: int) -> Any:
        future = self._client.submit(ones, size_bytes, workers=[self._workers[0]], pure=False)
        self._distributed.wait(future)
        return future

    def used(self, made: Any) -> Any:
        return self._client.submit(last, made, workers=[self._workers[1]], pure=False).result()

    def joblib(self) -> AbstractContextManager[Any]:
        import joblib

        return joblib.parallel_config("dask")  # type: ignore[no-any-return]  # joblib has no types

    def begin_naps(self, items: range, seconds: float, folder: str) -> Any:
        return [self._client.submit(nap, item, seconds, folder, pure=False) for item in items]

    def end_naps(self, pending: Any) -> list[Any]:
        return list(self._client.gather(pending))

    def kill_node(self) -> None:
        nanny = next(iter(self._cluster.workers.values()))
        os.kill(nanny.pid, signal.SIGKILL)


class EncryptedDask(DaskCluster):
    """Over TLS."""

    encrypted = True


class EncryptedDaskNodes(DaskNodes):
    """Over TLS."""

    encrypted = True


open_system: type[System] = DaskCluster
open_nodes: type[Nodes] = DaskNodes
open_encrypted: type[System] = EncryptedDask
open_encrypted_nodes: type[Nodes] = EncryptedDaskNodes
