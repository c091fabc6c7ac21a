"""The process that measures one system once: `python -m kos_cluster.services.bench.measure JOB`.

JOB is a JSON `Assignment`. Samples are appended to `samples.jsonl` in its folder as they are made, so what was
measured before a failure is kept. Each work is preceded by a short run of itself that is not counted. The process, and
all that it starts, keeps to as many cores as there are workers, so that machines with more of them compare.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster.services.bench.figures import Sample, Work
from kos_cluster.services.bench.systems import ENTRIES, WORKERS, Entry, System

SAMPLES_FILE = "samples.jsonl"


class Plan(msgspec.Struct, frozen=True):
    """How much of each work is run."""

    sync_s: float
    submits: int
    map_items: int
    warm_up: int  # tasks before each work that are not counted


FULL = Plan(sync_s=1.5, submits=5_000, map_items=100_000, warm_up=200)
QUICK = Plan(sync_s=0.3, submits=300, map_items=2_000, warm_up=20)


class Assignment(msgspec.Struct, frozen=True):
    """What to measure. `began_s` is the monotonic clock, which all processes share, before this one was started."""

    system: str
    plan: Plan
    folder: str
    began_s: float


def noop(item: int) -> int:
    """The task. As this module is run as a script, it is pickled by value, like a notebook's function."""
    return item


def main(job: str) -> None:
    """Measure, and leave the samples in the folder."""
    assignment = msgspec.json.decode(job, type=Assignment)
    entry = ENTRIES[assignment.system]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:WORKERS])
    folder = Path(assignment.folder)
    system = entry.load()
    system.start(folder, noop)
    try:
        _checked(range(1), [system.sync(0)])
        first_s = time.monotonic() - assignment.began_s
        with open(folder / SAMPLES_FILE, "ab", buffering=0) as file:

            def keep(work: Work, value: float, items: int) -> None:
                file.write(msgspec.json.encode(Sample(work, entry.name, value, items)) + b"\n")

            keep(Work.FIRST_RESULT, first_s, 1)
            _measure_rates(system, entry, assignment.plan, keep)
    finally:
        system.stop()


def _measure_rates(system: System, entry: Entry, plan: Plan, keep: Callable[[Work, float, int], None]) -> None:
    _checked(range(plan.warm_up), system.submits(range(plan.warm_up)))
    keep(Work.SYNC, *_round_trips(system, plan))
    for work, call, count in (
        (Work.SUBMITS, system.submits, plan.submits),
        (Work.MAP, system.map, int(plan.map_items * entry.map_share)),
        (Work.MAP_CHUNKED, system.map_chunked, plan.map_items),
    ):
        _checked(range(plan.warm_up), call(range(plan.warm_up)))
        keep(work, _rate(call, range(count)), count)


def _round_trips(system: System, plan: Plan) -> tuple[float, int]:
    """Round trips a second, and how many were made."""
    for item in range(plan.warm_up):
        system.sync(item)
    gc.collect()
    count = 0
    began = now = time.perf_counter()
    while now - began < plan.sync_s:
        if system.sync(count) != count:
            raise RuntimeError(f"Round trip {count} brought a wrong result.")
        count += 1
        now = time.perf_counter()
    return count / (now - began), count


def _rate(call: Callable[[range], list[Any]], items: range) -> float:
    gc.collect()
    began = time.perf_counter()
    results = call(items)
    elapsed = time.perf_counter() - began
    _checked(items, results)
    return len(items) / elapsed


def _checked(items: range, results: list[Any]) -> None:
    if results != list(items):
        raise RuntimeError(f"{len(items)} no-ops brought {len(results)} results, or wrong ones.")


if __name__ == "__main__":
    main(sys.argv[1])
