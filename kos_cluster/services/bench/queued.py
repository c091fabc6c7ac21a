"""`kos bench queued`: the memory that queued tasks take of the process that has submitted them.

Theory of operation. A program fills all slots of a cluster that is made for it, then submits tasks, which wait: once
with one `map`, once one by one with their futures kept, each in a process of its own. A figure is by how much the
process has grown when all are queued, its resident pages counted.

Rules: data goes to stdout, progress to stderr. An aim that was not reached is printed as such.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import msgspec

from kos_cluster.errors import KosError
from kos_cluster.services.bench import reports
from kos_cluster.services.bench.fleet import fleet
from kos_cluster.services.bench.reports import Report, circumstances, report_of, target_of

AIM_BYTES = 300  # a task, so 300 MB for a million
WAYS = {"map": "one map", "submit": "separate submits, their futures kept"}
PROBE_TIMEOUT_S = 1800

PROBE = """
import gc, os, sys, time, kos_cluster as kos
way, tasks = sys.argv[1], int(sys.argv[2])
def held_bytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
with kos.connect() as cluster:
    slots = sum(node["slots"] for node in cluster.nodes())
    busy = [cluster.submit(time.sleep, 3600) for _ in range(slots)]
    while sum(job.running for job in cluster.own_jobs()) < slots:
        time.sleep(0.01)
    before_bytes = held_bytes()
    kept = cluster.map(abs, range(tasks)) if way == "map" else [cluster.submit(abs, number) for number in range(tasks)]
    while sum(job.total for job in cluster.own_jobs()) < slots + tasks:
        time.sleep(0.01)
    print(held_bytes() - before_bytes, flush=True)
"""


class Figure(msgspec.Struct, frozen=True):
    """By how much the process grew."""

    way: str
    tasks: int
    grown_bytes: int

    @property
    def each_bytes(self) -> float:
        return self.grown_bytes / self.tasks


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench queued`: `args` has tasks and json. Raises KosError when it cannot be measured."""
    target = target_of(args.json)
    figures = measured(args.tasks)
    report = report_of(figures)
    print(rendered(report))
    reports.write(report, target)
    return 0


def measured(tasks: int) -> list[Figure]:
    """All figures, on one cluster."""
    with fleet(1) as own:
        return [Figure(way, tasks, _grown_bytes(way, tasks, own.environ)) for way in WAYS]


def rendered(report: Report[Figure]) -> str:
    """The report as text for a terminal."""
    lines = []
    for each in report.figures:
        reached = "reached" if each.each_bytes <= AIM_BYTES else "NOT reached"
        lines.append(f"{each.way}: {each.tasks:,} tasks queued by {WAYS[each.way]}")
        lines.append(
            f"  {each.grown_bytes / 1e6:,.0f} MB, {each.each_bytes:.0f} bytes a task; aim {AIM_BYTES}: {reached}"
        )
    return "\n".join([*lines, *circumstances(report.machine, report.versions)])


def _grown_bytes(way: str, tasks: int, environ: dict[str, str]) -> int:
    print(f"measuring {WAYS[way]}", file=sys.stderr, flush=True)
    command = [sys.executable, "-c", PROBE, way, str(tasks)]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        late = f"{tasks:,} tasks were not queued after {PROBE_TIMEOUT_S} s."
        raise KosError(late, "Measure fewer: --tasks N.") from None
    if done.returncode != 0:
        raise KosError("Queued tasks could not be measured.", f"What happened: {done.stderr.strip()[-500:]}")
    return int(done.stdout)
