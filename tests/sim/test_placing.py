"""A workload in virtual time: it ends, repeats, and placing a task looks at as few nodes in a large cluster."""

from __future__ import annotations

import itertools

import pytest

from kos_cluster.core import nodeindex
from kos_cluster.sim.placing import Placed, measure

TASKS = 3000
MANY_TASKS = 10_000  # enough to fill 1,000 nodes


def run(nodes: int, seed: int = 1, tasks: int = TASKS) -> Placed:
    ticks = itertools.count()
    return measure(nodes, tasks, seed, lambda: float(next(ticks)))


def test_every_task_ends_the_slots_are_used_and_a_seed_repeats() -> None:
    first = run(10)
    assert first.used_share > 0.7
    assert run(10) == first != run(10, seed=2)


def test_placing_a_task_looks_at_no_more_nodes_when_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    rank_now = nodeindex.rank_now

    def counted(*args: object) -> int:
        next(looks)
        return rank_now(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(nodeindex, "rank_now", counted)
    run(10, tasks=MANY_TASKS)
    few = next(looks)
    run(1000, tasks=MANY_TASKS)
    many = next(looks) - few
    assert many < 2 * few
