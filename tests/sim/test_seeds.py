"""Seeds: hundreds that are always the same, a few that are new each time, and every point at which a host can die."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kos_cluster.sim.faults import KINDS
from kos_cluster.sim.report import replay
from kos_cluster.sim.run import Options, crash_points, run_seed

FIXED_SEEDS = 200
FRESH_SEEDS = 8
GROUP = 20


def check(seed: int, options: Options) -> int:
    """Run a seed; returns how many crashes there were."""
    result = run_seed(seed, options)
    assert not result.rule, f"{result.what}\nto replay: {replay(seed, options)}"
    return result.crashes


@pytest.mark.parametrize("first", range(0, FIXED_SEEDS, GROUP))
def test_fixed_seeds_hold_every_invariant(first: int):
    options = Options(seconds=7.0)
    for seed in range(first, first + GROUP):
        assert check(seed, options) >= 1


def test_fresh_seeds_hold_every_invariant(record_property: Callable[[str, object], None]):
    options = Options(seconds=20.0)
    seeds = random.SystemRandom().sample(range(1 << 31), FRESH_SEEDS)
    record_property("fresh seeds of the simulator", ", ".join(map(str, seeds)))
    for seed in seeds:
        assert check(seed, options) >= 1


@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_other_sizes_hold_too(nodes: int):
    for seed in range(6):
        check(seed, Options(nodes, 8.0))


def test_nothing_fails_where_nothing_is_made_to_fail():
    result = run_seed(1, Options(seconds=20.0, kinds=()))
    assert not result.rule, result.what
    assert result.terms == 2 and result.crashes == 0  # the founding term, and one election
    assert result.answered > 100


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_alone_holds(kind: str):
    for seed in range(3):
        check(seed, Options(seconds=8.0, kinds=(kind,)))


@pytest.mark.parametrize(("host", "who"), [("n2", "leader"), ("n1", "follower")])
def test_a_host_can_die_at_every_point_of_every_write(host: str, who: str):
    options = Options(seconds=3.0, kinds=("crash",), membership=False)
    results = list(crash_points(2, options, host, writes=12))
    assert len(results) == 48
    assert [result.what for result in results if result.rule] == []
    assert all(result.crashes >= 1 for result in results), who
