"""The other parts: work on four nodes, gangs, and the scaling with daemons.

Rules. Each work is preceded by a small run of itself that is not counted. A system lacks what it does not offer
(`Entry.lacks`), and has no figure for it. What a work brings is checked; a wrong result fails the part.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kos_cluster.services.bench.figures import SLEEPS, Part, Work
from kos_cluster.services.bench.overhead import Keep, checked, timed
from kos_cluster.services.bench.plan import MIB, Plan
from kos_cluster.services.bench.systems import NODES, Entry, Gangs, Nodes, Sleepers
from kos_cluster.services.bench.tasks import SLEEP_S, SPIN_S

CORES = 2  # that the process, and all that it starts, is confined to
RANKS = 8
NAPS = 8
GANGS = 3  # in a row, of which the mean is the sample
NAP_POLL_S = 0.002
NAP_TIMEOUT_S = 60.0
SETTLE_S = 0.5  # for each daemon of "scaling": what all of them import after they have started takes the cores


def work(entry: Entry, folder: Path, plan: Plan, keep: Keep) -> None:
    """Part "work"; the death of a node comes last."""
    system: Nodes = entry.load(Part.WORK)
    system.start(folder)
    try:
        time.sleep(plan.settle_s)
        for each, measure in (
            (Work.MILLISECONDS, _milliseconds),
            (Work.TREE, _tree),
            (Work.ARGUMENT, _argument),
            (Work.BROADCAST, _broadcast),
            (Work.RESULT, _result),
            (Work.SWEEP, _sweep),
        ):
            if each not in entry.lacks:
                measure(system, plan, keep)
        if Work.RECOVERY not in entry.lacks:
            _recovery(system, folder, plan, keep)
    finally:
        system.stop()


def gangs(entry: Entry, folder: Path, plan: Plan, keep: Keep) -> None:
    """Part "gangs"."""
    system: Gangs = entry.load(Part.GANGS)
    system.start(folder)
    try:
        checked(range(RANKS), system.gang(RANKS))
        keep(Work.GANG, sum(timed(lambda items: system.gang(len(items)), range(RANKS)) for _ in range(GANGS)) / GANGS)
        if Work.ALLREDUCE not in entry.lacks:
            keep(Work.ALLREDUCE, system.allreduce(plan.reduce_bytes))
    finally:
        system.stop()


def scaling(entry: Entry, folder: Path, plan: Plan, keep: Keep) -> None:
    """Part "scaling": another cluster for each count of daemons."""
    for daemons in plan.daemons:
        system: Sleepers = entry.load(Part.SCALING)
        system.start(folder / str(daemons), daemons)
        try:
            time.sleep(daemons * SETTLE_S)
            items = range(daemons * plan.sleeps)
            timed(system.sleeps, range(daemons * 2))
            keep(SLEEPS[daemons], plan.sleeps * SLEEP_S / timed(system.sleeps, items), len(items))
        finally:
            system.stop()


MEASURES: dict[Part, Callable[[Entry, Path, Plan, Keep], None]] = {
    Part.WORK: work,
    Part.GANGS: gangs,
    Part.SCALING: scaling,
}


def _milliseconds(system: Nodes, plan: Plan, keep: Keep) -> None:
    timed(system.spins, range(plan.warm_up))
    keep(Work.MILLISECONDS, plan.spins * SPIN_S / CORES / timed(system.spins, range(plan.spins)), plan.spins)


def _tree(system: Nodes, plan: Plan, keep: Keep) -> None:
    def grown(leaves: int) -> float:
        elapsed_s, total = _taken(lambda: system.tree(range(leaves)))
        _check(total == sum(range(leaves)), f"A tree of {leaves} leaves came to {total}.")
        return elapsed_s

    grown(4)
    keep(Work.TREE, (2 * plan.leaves - 1) / grown(plan.leaves), 2 * plan.leaves - 1)


def _argument(system: Nodes, plan: Plan, keep: Keep) -> None:
    _passed(system, MIB)
    keep(Work.ARGUMENT, _passed(system, plan.argument_bytes))


def _broadcast(system: Nodes, plan: Plan, keep: Keep) -> None:
    _passed(system, MIB)
    keep(Work.BROADCAST, _passed(system, plan.broadcast_bytes))


def _passed(system: Nodes, size_bytes: int) -> float:
    """The seconds that an array takes to a task on each node."""
    import numpy as np

    array = np.full(size_bytes, 7, dtype=np.uint8)
    elapsed_s, seen = _taken(lambda: system.argument(array))
    _check(seen == [7] * NODES, f"The array's last element was {seen} on the nodes.")
    return elapsed_s


def _result(system: Nodes, plan: Plan, keep: Keep) -> None:
    def moved(size_bytes: int) -> float:
        made = system.made(size_bytes)
        elapsed_s, seen = _taken(lambda: system.used(made))
        _check(seen == 1, f"The result's last element was {seen} on the other node.")
        return elapsed_s

    moved(MIB)
    keep(Work.RESULT, moved(plan.result_bytes))


def _sweep(system: Nodes, plan: Plan, keep: Keep) -> None:
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    x, y = load_digits(return_X_y=True)

    def searched(values: int) -> float:
        grid = {"C": np.logspace(2, -1, values).tolist(), "gamma": np.logspace(-3, -4, values).tolist()}
        search = GridSearchCV(SVC(), grid, cv=3, n_jobs=NODES)
        with system.joblib():
            elapsed_s, _ = _taken(lambda: search.fit(x, y))
        _check(search.best_score_ > 0.9, f"The sweep's best score is {search.best_score_}.")
        return elapsed_s

    searched(1)
    keep(Work.SWEEP, searched(plan.sweep_values), 3 * plan.sweep_values**2)


def _recovery(system: Nodes, folder: Path, plan: Plan, keep: Keep) -> None:
    naps = folder / "naps"
    naps.mkdir()
    pending = system.begin_naps(range(NAPS), plan.nap_s, str(naps))
    deadline = time.monotonic() + NAP_TIMEOUT_S
    while len(list(naps.iterdir())) < NODES:
        _check(time.monotonic() < deadline, f"Not {NODES} tasks had begun after {NAP_TIMEOUT_S:g} s.")
        time.sleep(NAP_POLL_S)

    def recovered() -> Any:
        system.kill_node()
        return system.end_naps(pending)

    elapsed_s, results = _taken(recovered)
    checked(range(NAPS), results)
    keep(Work.RECOVERY, elapsed_s, NAPS)


def _taken(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that it took, and what it gave."""
    gc.collect()
    began = time.perf_counter()
    value = call()
    return time.perf_counter() - began, value


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise RuntimeError(problem)
