"""`kos bench memory`: what moving large values costs, beside a plain copy and, where it is installed, Dask with TLS.

Theory of operation. Each measure runs in a process of its own, on a cluster of `NODES` nodes on loopback that is made
for it; KOS and Dask alternate. A figure is bytes a second of what was moved, as the program sees it: from the call
until the result is there. Dask's cluster has as many worker processes, and encrypts (`Security.temporary`).

Nodes of one KOS_HOME share the memory of blocks, so between them nothing is moved, while Dask sends it over TCP. What
KOS does between machines is measured on nodes with homes of their own, which send each other blocks over TLS. Each
measure is preceded by one of `WARM_BYTES` that does not count, so that no worker imports numpy in it.

Rules: data goes to stdout, progress to stderr. An aim that was not reached is printed as such.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys

import msgspec

from kos_cluster.errors import KosError
from kos_cluster.home import ClusterHome, Home
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.services import membership
from kos_cluster.services.bench import reports
from kos_cluster.services.bench.fleet import fleet, scratch
from kos_cluster.services.bench.plan import SETTLE_S
from kos_cluster.services.bench.reports import Report, circumstances, report_of, target_of
from kos_cluster.services.ports import LOOPBACK, free_pairs
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh

NODES = 4
PUT_BYTES = 1 << 30
RESULT_BYTES = 100 << 20
BROADCAST_BYTES = 256 << 20
WARM_BYTES = 1 << 20
PROBE_TIMEOUT_S = 300
NAME = "bench"  # of the cluster whose nodes have homes of their own
TOKEN_TTL_S = 60.0
DASK = ("dask", "distributed")
DASK_TLS = "Dask with TLS"
OVER_TLS = "the same over TLS, as between machines"

_PROBE = """
import concurrent.futures, json, os, sys, time, numpy, kos_cluster as kos
put_bytes, result_bytes, broadcast_bytes, warm_bytes, settle_s = map(int, sys.argv[1:])
cluster = kos.connect()
time.sleep(settle_s)
names = [node["name"] for node in cluster.nodes()]
for name in names:
    cluster.submit(abs, 1, on=name).result()
def rate(size, work):
    began = time.perf_counter()
    kept = work()
    return size / (time.perf_counter() - began)
def make(size):
    return numpy.ones(size, dtype=numpy.uint8)
def use(array):
    return int(array[-1])
def result(size):
    future = cluster.submit(make, size, on=names[0])
    concurrent.futures.wait([future])
    return rate(size, lambda: cluster.submit(use, future, on=names[1]).result())
def broadcast(size):
    array = numpy.ones(size, dtype=numpy.uint8)
    def passed():
        ref = cluster.put(array)
        return ref, cluster.gather([cluster.submit(use, ref, on=name) for name in names])
    return rate(size, passed)
def moved():
    result(warm_bytes), broadcast(warm_bytes)
    return {"result": result(result_bytes), "broadcast": broadcast(broadcast_bytes)}
"""

KOS_PROBE = f"""{_PROBE}
array = numpy.ones(put_bytes, dtype=numpy.uint8)
figures = {{"copy": rate(put_bytes, array.copy), "put": rate(put_bytes, lambda: cluster.put(array))}}
had = array.copy()
figures["onto"] = rate(put_bytes, lambda: numpy.copyto(had, array))
del array, had
print(json.dumps(figures | moved()))
"""

APART_PROBE = f"""{_PROBE}
print(json.dumps({{name + "_apart": figure for name, figure in moved().items()}}))
"""

DASK_PROBE = """
import json, sys, time, numpy, distributed
put_bytes, result_bytes, broadcast_bytes, warm_bytes, settle_s = map(int, sys.argv[1:])
def rate(size, work):
    began = time.perf_counter()
    kept = work()
    return size / (time.perf_counter() - began)
def make(size):
    return numpy.ones(size, dtype=numpy.uint8)
def use(array):
    return int(array[-1])
def main():
    with distributed.LocalCluster(
        n_workers=4, threads_per_worker=1, processes=True, host="tls://127.0.0.1", dashboard_address=None,
        worker_dashboard_address=None, silence_logs=40, security=distributed.Security.temporary(),
    ) as cluster, distributed.Client(cluster) as client:
        time.sleep(settle_s)
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        client.gather([client.submit(abs, -number, workers=[worker]) for number, worker in enumerate(workers)])
        def result(size):
            future = client.submit(make, size, workers=[workers[0]])
            distributed.wait(future)
            return rate(size, lambda: client.submit(use, future, workers=[workers[1]]).result())
        def broadcast(size):
            array = numpy.ones(size, dtype=numpy.uint8)
            return rate(size, lambda: client.scatter(array, broadcast=True))
        result(warm_bytes), broadcast(warm_bytes)
        print(json.dumps({"result": result(result_bytes), "broadcast": broadcast(broadcast_bytes)}))
main()
"""


class Figure(msgspec.Struct, frozen=True):
    """Bytes a second, in the order in which they were measured; `peer` of what it is compared with, if anything is.

    `aim`: how many times the peer's median it should be.
    """

    name: str
    meaning: str
    size_bytes: int
    repeats: list[float]
    against: str = ""
    peer: list[float] = []
    aim: float = 0.0

    @property
    def ratio(self) -> float:
        return statistics.median(self.repeats) / statistics.median(self.peer)


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench memory`: `args` has repeats and json. Raises KosError when a measure fails."""
    target = target_of(args.json)
    report = report_of(measured(args.repeats))
    print(rendered(report))
    reports.write(report, target)
    return 0


def measured(repeats: int) -> list[Figure]:
    """All figures. Dask's are left out where it is not installed."""
    ours: list[dict[str, float]] = []
    dask: list[dict[str, float]] = []
    installed = all(importlib.util.find_spec(name) for name in DASK)
    for number in range(1, repeats + 1):
        print(f"measuring, round {number} of {repeats}", file=sys.stderr, flush=True)
        ours.append(_on_kos() | _on_homes())
        if installed:
            dask.append(_probe(DASK_PROBE, dict(os.environ)))
    moved = {name: [figures[name] for figures in dask] for name in ("result", "broadcast")}
    own = {name: [figures[name] for figures in ours] for name in ours[0]}
    result, broadcast = moved["result"], moved["broadcast"]
    scatter = "Dask's scatter(broadcast=True) with TLS"
    return [
        Figure("onto", "a numpy array copied onto memory that the process has", PUT_BYTES, own["onto"]),
        Figure("copy", "the array copied to memory that is new to the process", PUT_BYTES, own["copy"]),
        Figure("put", "cluster.put of the array", PUT_BYTES, own["put"], "the copy to new memory", own["copy"], 0.8),
        Figure(
            "result",
            "a result of one node read on another of the same machine",
            RESULT_BYTES,
            own["result"],
            DASK_TLS,
            result,
            2.0,
        ),
        Figure("result_apart", OVER_TLS, RESULT_BYTES, own["result_apart"], DASK_TLS, result, 2.0),
        Figure("broadcast", f"an array to {NODES} nodes", BROADCAST_BYTES, own["broadcast"], scatter, broadcast, 2.0),
        Figure("broadcast_apart", OVER_TLS, BROADCAST_BYTES, own["broadcast_apart"], scatter, broadcast, 2.0),
    ]


def rendered(report: Report[Figure]) -> str:
    """The report as text for a terminal."""
    lines = []
    for each in report.figures:
        low, high = min(each.repeats), max(each.repeats)
        spread = f"({_gb(low)} to {_gb(high)}, {len(each.repeats)} measurements)"
        lines.append(f"{each.name}: {each.meaning}\n  median {_gb(statistics.median(each.repeats))} {spread}")
        if each.peer:
            reached = "reached" if each.ratio >= each.aim else "NOT reached"
            lines.append(f"  {each.ratio:.2f} times {each.against}; aim {each.aim:g}: {reached}")
        elif each.against:
            lines.append(f"  {each.against} is not installed")
    return "\n".join([*lines, *circumstances(report.machine, report.versions)])


def _on_kos() -> dict[str, float]:
    with fleet(NODES) as own:
        return _probe(KOS_PROBE, own.environ)


def _on_homes() -> dict[str, float]:
    """With a node in each, as on machines of their own."""
    with scratch() as folder:
        first, *others = (Home(folder / name) for name in "abcd"[:NODES])
        port, *ports = free_pairs(NODES)
        membership.create(first, NAME, (LOOPBACK, port), "a")
        mesh = Mesh(ClusterHome(first, NAME))
        mesh.start()
        with Cluster(mesh) as cluster:
            for home, own_port in zip(others, ports, strict=True):
                token = JoinToken.parse(cluster.mint_token("node", TOKEN_TTL_S))
                membership.join(home, NAME, [(LOOPBACK, port)], token, (LOOPBACK, own_port), home.path.name)
        return _probe(APART_PROBE, {**os.environ, "KOS_HOME": str(first.path), "KOS_CLUSTER": NAME})


def _probe(source: str, environ: dict[str, str]) -> dict[str, float]:
    words = [str(number) for number in (PUT_BYTES, RESULT_BYTES, BROADCAST_BYTES, WARM_BYTES, SETTLE_S)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", source, *words],
            env=environ,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise KosError(f"A round was not over after {PROBE_TIMEOUT_S} s.", "Measure on a quiet machine.") from None
    if done.returncode != 0:
        raise KosError("Shared memory could not be measured.", f"What happened: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _gb(bytes_s: float) -> str:
    return f"{bytes_s / 1e9:.2f} GB/s"
