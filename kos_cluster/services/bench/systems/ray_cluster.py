"""Ray: one local node, started by `ray.init`; several, by `ray.cluster_utils`."""

from __future__ import annotations

import importlib
import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.systems import NODES, WORKERS, Nodes, Noop, System
from kos_cluster.services.bench.tasks import add, last, leaf, nap, ones, spin

OBJECT_STORE_BYTES = 256 << 20
LOOPBACK = "127.0.0.2"  # a client that is told 127.0.0.1 looks for the cluster at the machine's address instead
REACHED_TIMEOUT_S = 60


def _ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    return importlib.import_module("ray")


class RayCluster:
    """Tasks of the default kind: one CPU each, results through the object store or inline as Ray decides."""

    def start(self, folder: Path, noop: Noop) -> None:
        self._ray = _ray()
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


class _RayNodes:
    """A head without CPUs, to which the client is linked, and four nodes with an object store each."""

    cpus = 1

    def start(self, folder: Path) -> None:
        self._ray = _ray()
        utils = importlib.import_module("ray.cluster_utils")
        (Path(tempfile.gettempdir()) / "ray").mkdir(exist_ok=True)  # it writes the address there, and does not make it
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "r")}
        store = {"object_store_memory": OBJECT_STORE_BYTES, "node_ip_address": LOOPBACK}
        self._cluster = utils.Cluster(initialize_head=True, head_node_args=head | store)
        self._nodes = [self._cluster.add_node(num_cpus=self.cpus, **store) for _ in range(NODES)]
        self._cluster.wait_for_nodes(REACHED_TIMEOUT_S)
        self._ray.init(
            address=self._cluster.address, _node_ip_address=LOOPBACK, log_to_driver=False, configure_logging=False
        )

    def stop(self) -> None:
        self._ray.shutdown()
        self._cluster.shutdown()


class RayNodes(_RayNodes):
    """With one CPU each."""

    def start(self, folder: Path) -> None:
        super().start(folder)
        self._spin, self._leaf, self._add = (self._ray.remote(fn) for fn in (spin, leaf, add))
        self._last, self._ones, self._nap = (self._ray.remote(fn) for fn in (last, ones, nap))

    def spins(self, items: range) -> list[Any]:
        return list(self._ray.get([self._spin.remote(item) for item in items]))

    def tree(self, items: range) -> Any:
        level = [self._leaf.remote(item) for item in items]
        while len(level) > 1:
            level = [self._add.remote(left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
        return self._ray.get(level[0])

    def argument(self, array: Any) -> list[Any]:
        ref = self._ray.put(array)
        return list(self._ray.get([self._on(number, self._last).remote(ref) for number in range(NODES)]))

    def made(self, size_bytes: int) -> Any:
        ref = self._on(0, self._ones).remote(size_bytes)
        self._ray.wait([ref], fetch_local=False)
        return ref

    def used(self, made: Any) -> Any:
        return self._ray.get(self._on(1, self._last).remote(made))

    def joblib(self) -> AbstractContextManager[Any]:
        import joblib

        importlib.import_module("ray.util.joblib").register_ray()
        return joblib.parallel_config("ray")  # type: ignore[no-any-return]  # joblib has no types

    def begin_naps(self, items: range, seconds: float, folder: str) -> Any:
        return [self._nap.remote(item, seconds, folder) for item in items]

    def end_naps(self, pending: Any) -> list[Any]:
        return list(self._ray.get(pending))

    def kill_node(self) -> None:
        self._nodes[-1].kill_all_processes(check_alive=False, allow_graceful=False, wait=False)

    def _on(self, number: int, remote: Any) -> Any:
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        strategy = strategies.NodeAffinitySchedulingStrategy(self._nodes[number].node_id, soft=False)
        return remote.options(scheduling_strategy=strategy)


class RayGangs(_RayNodes):
    """With two CPUs each."""

    cpus = 2

    def gang(self, ranks: int) -> list[Any]:
        groups = importlib.import_module("ray.util.placement_group")
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        group = groups.placement_group([{"CPU": 1}] * ranks, strategy="SPREAD")
        self._ray.get(group.ready())
        remote = self._ray.remote(num_cpus=1)(_Rank)
        actors = [
            remote.options(
                scheduling_strategy=strategies.PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=number
                )
            ).remote(number)
            for number in range(ranks)
        ]
        numbers = self._ray.get([actor.number.remote() for actor in actors])
        for actor in actors:
            self._ray.kill(actor)
        groups.remove_placement_group(group)
        return list(numbers)


class _Rank:
    """An actor. That all have answered takes the place of a barrier."""

    def __init__(self, number: int) -> None:
        self._number = number

    def number(self) -> int:
        return self._number


open_system: type[System] = RayCluster
open_nodes: type[Nodes] = RayNodes
open_gangs = RayGangs
