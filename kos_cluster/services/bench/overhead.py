"""Part "overhead": no-ops on two workers. Each work is preceded by a short run of itself that is not counted."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kos_cluster.services.bench.figures import Part, Work
from kos_cluster.services.bench.plan import Plan
from kos_cluster.services.bench.systems import Entry, Noop, System


class Keep(Protocol):
    """Writes a sample down."""

    def __call__(self, work: Work, value: float, items: int = 1) -> None: ...


def measure(entry: Entry, folder: Path, plan: Plan, keep: Keep, noop: Noop, since_start: Callable[[], float]) -> None:
    """All works of the part. `since_start`: seconds since this process was started."""
    system: System = entry.load(Part.OVERHEAD)
    system.start(folder, noop)
    try:
        checked(range(1), [system.sync(0)])
        keep(Work.FIRST_RESULT, since_start())
        time.sleep(plan.settle_s)
        checked(range(plan.warm_up), system.submits(range(plan.warm_up)))
        keep(Work.SYNC, *_round_trips(system, plan))
        for work, call, count in (
            (Work.FEW_SUBMITS, system.submits, plan.submits // 5),
            (Work.SUBMITS, system.submits, plan.submits),
            (Work.MAP, system.map, int(plan.map_items * entry.map_share)),
            (Work.MAP_CHUNKED, system.map_chunked, plan.map_items),
        ):
            checked(range(plan.warm_up), call(range(plan.warm_up)))
            keep(work, count / timed(call, range(count)), count)
    finally:
        system.stop()


def timed(call: Callable[[range], list[Any]], items: range) -> float:
    """The seconds that a call takes which gives back its items."""
    gc.collect()
    began = time.perf_counter()
    results = call(items)
    elapsed_s = time.perf_counter() - began
    checked(items, results)
    return elapsed_s


def checked(items: range, results: list[Any]) -> None:
    """Raises RuntimeError when these are not the results of no-ops on the items."""
    if results != list(items):
        raise RuntimeError(f"{len(items)} tasks brought {len(results)} results, or wrong ones.")


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
