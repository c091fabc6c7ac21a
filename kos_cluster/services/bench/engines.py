"""`kos bench engines`: how long Dask takes to start on KOS's nodes, and what a task costs there beside plain Dask.

Theory of operation. An engine of `START_WORKERS` workers is started and stopped again and again, on a cluster of as
many nodes that is made for it. Then the same tasks run on an engine and on a `LocalCluster` with TLS of the same number
of workers; both are up all the time, and the turns of one and the other alternate, so that what else the machine does
meets both. What is compared are medians.

Rules: data goes to stdout, progress to stderr. An aim that was not reached is printed as such.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from typing import Any

import msgspec

import kos_cluster as kos
from kos_cluster.errors import KosError
from kos_cluster.services.bench import reports
from kos_cluster.services.bench.fleet import fleet
from kos_cluster.services.bench.reports import Report, circumstances, report_of, target_of
from kos_cluster.services.engines import control

START_WORKERS = 3
TASK_WORKERS = 2  # on either side
TASKS = 1000  # of one turn
NODES = 3
SLOTS = 4  # of each node
START_AIM_S = 5.0
TASK_AIM = 1.10  # times plain Dask
MEANINGS = {
    "start": f"from `kos engine start dask --workers {START_WORKERS}` to serving",
    "task": f"a task, of {TASKS:,} that are submitted and gathered",
}


class Figure(msgspec.Struct, frozen=True):
    """One measure: seconds of each turn, and of plain Dask's where there is one."""

    name: str
    seconds: list[float]
    beside: list[float]
    aim: float  # seconds; or, with `beside`, times that

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Times plain Dask."""
        return self.median_s / statistics.median(self.beside)

    @property
    def reached(self) -> bool:
        return (self.ratio if self.beside else self.median_s) <= self.aim


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench engines`: `args` has repeats and json. Raises KosError when it cannot be measured."""
    target = target_of(args.json)
    report = report_of(measured(args.repeats))
    print(rendered(report))
    reports.write(report, target)
    return 0


def measured(repeats: int) -> list[Figure]:
    """All figures, on one cluster."""
    with fleet(NODES, slots=SLOTS) as own, kos.connect(own.cluster.name, home=own.cluster.home.path) as cluster:
        return [_starts(cluster, repeats), _tasks(cluster, repeats)]


def told(figure: Figure) -> tuple[str, str, str]:
    """A figure in words: what was measured, what it is beside, and whether its aim was reached."""
    verdict = "reached" if figure.reached else "NOT reached"
    if figure.beside:
        plain_ms = statistics.median(figure.beside) * 1e3
        beside = f"{figure.ratio:.2f} times plain Dask over TLS ({plain_ms:.2f} ms)"
        return f"{figure.median_s * 1e3:.2f} ms", beside, f"{figure.aim:g} times: {verdict}"
    spread = f"{min(figure.seconds):.2f} to {max(figure.seconds):.2f} s"
    return f"{figure.median_s:.2f} s", spread, f"{figure.aim:g} s: {verdict}"


def rendered(report: Report[Figure]) -> str:
    """The report as text for a terminal."""
    lines = []
    for figure in report.figures:
        value, beside, aim = told(figure)
        lines += [f"{figure.name}: {MEANINGS[figure.name]}", f"  {value}; {beside}; aim {aim}"]
    return "\n".join([*lines, *circumstances(report.machine, report.versions)])


def _starts(cluster: kos.Cluster, repeats: int) -> Figure:
    seconds = []
    for turn in range(repeats):
        _progress(f"start {turn + 1} of {repeats}")
        begun_s = time.perf_counter()
        control.start(cluster, control.spec_of(cluster, "dask", workers=START_WORKERS))
        seconds.append(time.perf_counter() - begun_s)
        control.stop(cluster, "dask")
    return Figure("start", seconds, [], START_AIM_S)


def _tasks(cluster: kos.Cluster, repeats: int) -> Figure:
    try:
        import distributed
    except ImportError:
        raise KosError("Dask is not installed here.", "Type: pip install 'kos-cluster[dask]'.") from None
    control.start(cluster, control.spec_of(cluster, "dask", workers=TASK_WORKERS))
    ours: list[float] = []
    plain: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="kos-") as folder,
        control.open_engine(cluster, "dask").client as engine,
        distributed.LocalCluster(
            n_workers=TASK_WORKERS,
            threads_per_worker=1,
            protocol="tls",
            host="127.0.0.1",
            security=distributed.Security.temporary(),
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=folder,
            silence_logs=50,
        ) as local,
        distributed.Client(local) as beside,
    ):
        for client in (engine, beside):
            _turn(client)  # the first one loads what it needs
        for turn in range(repeats):
            _progress(f"tasks, turn {turn + 1} of {repeats}")
            ours.append(_turn(engine))
            plain.append(_turn(beside))
    control.stop(cluster, "dask")
    return Figure("task", ours, plain, TASK_AIM)


def _turn(client: Any) -> float:
    """Seconds a task."""
    begun_s = time.perf_counter()
    client.gather([client.submit(abs, number, pure=False) for number in range(TASKS)])
    return (time.perf_counter() - begun_s) / TASKS


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
