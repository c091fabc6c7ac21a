"""The measurements of membership, in short forms; the bounds are those that the long ones must hold."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core.swim import LAN
from kos_cluster.sim import membership


def test_an_update_reaches_all_in_few_rounds_and_silence_costs_the_same_at_any_size():
    spreads = [membership.dissemination(count, seed=5, updates=2, quiet_s=5.0) for count in (30, 100, 1000)]
    assert all(spread.ratio <= 1.5 for spread in spreads)
    assert max(s.quiet_bytes_s for s in spreads) < 1.3 * min(s.quiet_bytes_s for s in spreads) < 150


def test_the_model_needs_the_rounds_that_theory_gives():
    rng = random.Random(1)
    rounds = [membership.push_rounds(1000, rng) for _ in range(10)]
    assert 7 <= sum(rounds) / 10 <= 10  # log4(1000) + ln(1000) / 3 is 7.3


@pytest.mark.parametrize(("profile", "p50_s", "p99_s"), [("lan", 5.0, 8.0), ("fast", 2.0, 2.0)])
def test_a_crash_is_seen_in_time(profile: str, p50_s: float, p99_s: float):
    found = membership.detection(profile, crashes=40, seed=5)
    assert found.p50_s <= p50_s and found.p99_s <= p99_s


def test_no_healthy_node_is_declared_dead_while_others_stall():
    found = membership.stalls("lan", hours=0.2, seed=5)
    assert found.stalls > 50 and found.healthy_declared_dead == 0
    assert found.stalled_declared_dead > 0  # so the watch sees deaths
    assert found.back_s < 5.0


def test_the_same_seed_measures_the_same():
    assert membership.dissemination(30, 1, 1, 2.0) == membership.dissemination(30, 1, 1, 2.0)
    assert membership.detection("lan", 3, 1) == membership.detection("lan", 3, 1)
    assert membership.stalls("lan", 0.02, 1) == membership.stalls("lan", 0.02, 1)


def test_all_is_measured_by_one_call():
    report = membership.measure(seed=1, sizes=(10,), updates=1, crashes=2, stall_hours=0.01)
    assert [s.nodes for s in report.spread] == [10]
    assert [d.profile for d in report.detection] == [s.profile for s in report.stalls] == list(membership.PROFILES)


def test_a_stalled_node_handles_what_came_meanwhile_when_it_wakes():
    effects = []
    nodes = membership.Nodes(3, LAN, "stalled", lambda number, effect: effects.append((number, effect)))
    nodes.run(2.0)
    nodes.stall(0)
    nodes.run(4.0)
    before = nodes.sent_bytes
    nodes.resume(0)
    assert nodes.sent_bytes > before
    nodes.run(5.0)
    assert all(m.state == "alive" for swim in nodes.swims for m in swim.members())
