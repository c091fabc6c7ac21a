"""The systems that are measured, one module each, behind small interfaces: one for each part of the works.

Rules: a system's packages are imported in `start`, in the process that measures it, and nowhere else, so that every
name here can be listed without them. Each binds to the loopback only and keeps its files in the folder it is given.
`stop` ends everything that `start` began, also what `kill_node` has left of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from kos_cluster.services.bench.figures import Part, Work

WORKERS = 2  # of part "overhead", with one slot each
NODES = 4  # of the parts "work", with one slot each, and "gangs", with two
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


class Nodes(Protocol):
    """What is measured on four nodes of one worker each; the tasks are those of `tasks`."""

    def start(self, folder: Path) -> None:
        """Form the cluster."""

    def spins(self, items: range) -> list[Any]:
        """`spin` of each item, each a task of its own."""

    def tree(self, items: range) -> Any:
        """`leaf` of each item, then `add` of neighbours' results until one is left; no result through this process."""

    def argument(self, array: Any) -> list[Any]:
        """`last` of an array of this process, on each worker."""

    def made(self, size_bytes: int) -> Any:
        """What stands for the result of `ones`, which a task on one node has made."""

    def used(self, made: Any) -> Any:
        """`last` of it, on another node."""

    def joblib(self) -> AbstractContextManager[Any]:
        """A block in which joblib's calls run on the cluster."""

    def begin_naps(self, items: range, seconds: float, folder: str) -> Any:
        """Submit `nap` for each item."""

    def end_naps(self, pending: Any) -> list[Any]:
        """Their results."""

    def kill_node(self) -> None:
        """SIGKILL a node on which a nap runs."""

    def stop(self) -> None:
        """End the cluster."""


class Gangs(Protocol):
    """What is measured on four nodes with room for two ranks each."""

    def start(self, folder: Path) -> None:
        """Form the cluster."""

    def gang(self, ranks: int) -> list[Any]:
        """Start ranks that are all there before any goes on, and end them; each one's number."""

    def allreduce(self, size_bytes: int) -> float:
        """Sum an array of double numbers over 4 ranks, two on each of two nodes; the median seconds of some rounds."""

    def stop(self) -> None:
        """End the cluster."""


class Sleepers(Protocol):
    """What is measured on many daemons of one slot each."""

    def start(self, folder: Path, daemons: int) -> None:
        """Form the cluster."""

    def sleeps(self, items: range) -> list[Any]:
        """`sleep` of each item, each a task of its own."""

    def stop(self) -> None:
        """End the cluster."""


class Entry(msgspec.Struct, frozen=True):
    """A system as it is listed before it is loaded."""

    name: str
    module: str  # in this package
    requires: tuple[str, ...]  # modules that must be installed
    setup: str  # how it is set up, for the report
    map_share: float = 1.0  # of the elements that `map` is run with: slow systems get fewer, rates stay measured
    opens: Mapping[Part, str] = MappingProxyType({Part.OVERHEAD: "open_system"})  # the class of each of its parts
    lacks: tuple[Work, ...] = ()  # of these parts
    programs: tuple[str, ...] = ()  # that must be installed too

    def missing(self) -> list[str]:
        gone = [name for name in self.requires if importlib.util.find_spec(name) is None]
        return gone + [name for name in self.programs if program(name) is None]

    def load(self, part: Part) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{self.module}"), self.opens[part])()


def program(name: str) -> str | None:
    """The path of a program: beside this interpreter, else wherever a shell would find it."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


_BOTH = {Part.OVERHEAD: "open_system", Part.WORK: "open_nodes"}
_PASSED_ON = "results pass through the client"

ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "kos",
            "kos_mesh",
            (),
            "authenticated by certificates; the client, as it is on the nodes' machine, over their UNIX sockets, "
            "the nodes among each other encrypted (CURVE over TCP, bulk data TLS 1.3), but for `argument`, "
            "`broadcast` and `result`: nodes of one machine share the memory of blocks, while Dask and Ray copy them "
            "over TCP; 2 daemons with one worker each; `map` and `map_chunked` are the same call, cluster.map: every "
            "element is a task with retries and a story of its own; four nodes for the works after `first_result`; "
            "`argument`: cluster.put; `result`: kos.stay; `gang`: cluster.gang; `recovery`: SIGKILL of a daemon",
            opens={**_BOTH, Part.GANGS: "open_gangs", Part.SCALING: "open_sleepers"},
        ),
        Entry(
            "bare",
            "bare_path",
            (),
            "encrypted (CURVE over TCP); 2 daemons with one forked worker each; pyzmq alone, without scheduling, "
            "retries or tables: a reference; `map_chunked` sends 1,000 elements a message",
        ),
        Entry(
            "dask",
            "dask_cluster",
            ("distributed", "dask"),
            "not encrypted (its default); LocalCluster of a scheduler and 2 (4) worker processes of one thread "
            "over TCP, no dashboard; `map`: client.map and gather; `map_chunked`: dask.bag of 8 partitions; "
            "`argument`: client.scatter(broadcast=True); `recovery`: SIGKILL of a worker process, which its nanny "
            "replaces",
            map_share=0.1,
            opens=_BOTH,
        ),
        Entry(
            "dask-tls",
            "dask_cluster",
            ("distributed", "dask"),
            "encrypted (TLS with distributed.Security.temporary); otherwise as dask",
            map_share=0.1,
            opens={Part.OVERHEAD: "open_encrypted", Part.WORK: "open_encrypted_nodes"},
        ),
        Entry(
            "ray",
            "ray_cluster",
            ("ray",),
            "not encrypted (its default); one local node with num_cpus=2, no dashboard, no usage reports; `map`: "
            "one remote call an element and ray.get; `map_chunked`: Pool(2).map of ray.util.multiprocessing; the "
            "other works on 4 raylets of one CPU (`gang`: two) and a head node without one, by ray.cluster_utils; "
            "`argument`: ray.put; `gang`: a placement group (SPREAD) with an actor a rank; `recovery`: SIGKILL of "
            "a node's processes",
            map_share=0.2,
            opens={**_BOTH, Part.GANGS: "open_gangs"},
            lacks=(Work.ALLREDUCE,),
        ),
        Entry(
            "ipyparallel",
            "ipyparallel_cluster",
            ("ipyparallel",),
            "signed, not encrypted (its default); a controller and 2 (4) engines on the loopback; `map`: load- "
            "balanced map_sync with chunksize=1; `map_chunked`: map_sync of a direct view, one piece an engine; "
            f"`argument`: apply_sync of a direct view; `result`: {_PASSED_ON}; lost tasks do not run again, nor "
            "can a task take another's result",
            map_share=0.05,
            opens=_BOTH,
            lacks=(Work.TREE, Work.RECOVERY),
        ),
        Entry(
            "loky",
            "loky_pool",
            ("loky",),
            "one process pool of 2 (4) workers, pipes, no network: a reference; `map`: executor.map; "
            "`map_chunked`: the same with chunksize=1000",
            map_share=0.2,
            opens=_BOTH,
            lacks=(Work.TREE, Work.RESULT, Work.RECOVERY),
        ),
        Entry(
            "parsl",
            "parsl_executor",
            ("parsl",),
            "encrypted (CURVE, its default); a HighThroughputExecutor of one block on the loopback with 2 (4) "
            f"workers: a reference; `map`: one call an element; `map_chunked`: 1,000 elements a call; {_PASSED_ON}",
            map_share=0.05,
            opens=_BOTH,
            lacks=(Work.SWEEP, Work.RECOVERY),
        ),
        Entry(
            "mpi",
            "mpi_jobs",
            ("mpi4py",),
            "not encrypted; mpiexec and mpi4py; `gang`: a job of 8 processes that meet in a barrier; `allreduce`: "
            "4 processes as two cliques of MPICH, between them TCP (FI_PROVIDER=tcp)",
            opens={Part.GANGS: "open_gangs"},
            programs=("mpiexec",),
        ),
    )
}
