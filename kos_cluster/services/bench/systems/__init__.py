"""The systems that are measured, one module each, behind one small interface.

Rules: a system's packages are imported in `start`, in the process that measures it, and nowhere else, so that every
name here can be listed without them. Each binds to the loopback only, uses two workers with one slot each and keeps its
files in the folder it is given. `stop` ends everything that `start` began.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

WORKERS = 2
Noop = Callable[[int], int]  # the task: gives its argument back


class System(Protocol):
    """What is measured of a system. Each method returns what the no-op returned, so that results can be checked."""

    def start(self, folder: Path, noop: Noop) -> None:
        """Form the cluster that is to run `noop`; work may be submitted when it returns."""

    def sync(self, item: int) -> Any:
        """Submit one no-op and wait for its result."""

    def submits(self, items: range) -> list[Any]:
        """Submit one no-op an item, each by a call of its own, then wait for all."""

    def map(self, items: range) -> list[Any]:
        """The system's map with one task an element."""

    def map_chunked(self, items: range) -> list[Any]:
        """The system's map with the chunks that its users would choose for work this small."""

    def stop(self) -> None:
        """End the cluster."""


class Entry(msgspec.Struct, frozen=True):
    """A system as it is listed before it is loaded."""

    name: str
    module: str  # in this package; `open_system` in it is the class
    requires: tuple[str, ...]  # modules that must be installed
    setup: str  # how it is set up, for the report
    map_share: float = 1.0  # of the elements that `map` is run with: slow systems get fewer, rates stay measured

    def missing(self) -> list[str]:
        return [name for name in self.requires if importlib.util.find_spec(name) is None]

    def load(self) -> System:
        opened: System = importlib.import_module(f"{__name__}.{self.module}").open_system()
        return opened


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "kos",
            "kos_mesh",
            (),
            "authenticated by certificates; the client, as it is on the nodes' machine, over their UNIX sockets, the "
            "nodes among each other encrypted (CURVE over TCP); 2 daemons with one worker each; `map` and "
            "`map_chunked` are the same call, cluster.map: every element is a task with retries and a story of its own",
        ),
        Entry(
            "bare",
            "bare_path",
            (),
            "encrypted (CURVE over TCP); 2 daemons with one forked worker each; pyzmq alone, without scheduling, "
            "retries or tables: the limit; `map_chunked` sends 1,000 elements a message",
        ),
        Entry(
            "dask",
            "dask_cluster",
            ("distributed", "dask"),
            "not encrypted (its default); LocalCluster of a scheduler and 2 worker processes of one thread over TCP, "
            "no dashboard; `map`: client.map and gather; `map_chunked`: dask.bag of 8 partitions",
            map_share=0.1,
        ),
        Entry(
            "ray",
            "ray_cluster",
            ("ray",),
            "not encrypted (its default); one local node with num_cpus=2, no dashboard, no usage reports; `map`: one "
            "remote call an element and ray.get; `map_chunked`: Pool(2).map of ray.util.multiprocessing",
            map_share=0.2,
        ),
        Entry(
            "ipyparallel",
            "ipyparallel_cluster",
            ("ipyparallel",),
            "signed, not encrypted (its default); a controller and 2 engines on the loopback; `map`: load-balanced "
            "map_sync with chunksize=1; `map_chunked`: map_sync of a direct view, one piece an engine",
            map_share=0.05,
        ),
        Entry(
            "loky",
            "loky_pool",
            ("loky",),
            "one process pool of 2 workers, pipes, no network: a reference; `map`: executor.map; `map_chunked`: the "
            "same with chunksize=1000",
            map_share=0.2,
        ),
    )
}
