"""Turns: shares by weight, nothing owed for idle time, charges that come late, bounds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from kos_cluster.core import turns
from kos_cluster.core.turns import Turns, weight_of


def serve(line: Turns[str], cost: float = 1.0, weights: dict[str, float] | None = None) -> str:
    key = next(iter(line))
    line.served(key, cost / (weights or {}).get(key, 1.0))
    return key


def test_those_that_always_wait_get_shares_by_weight():
    line: Turns[str] = Turns()
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    for key in weights:
        line.come(key)
    had = Counter(serve(line, weights=weights) for _ in range(700))
    assert had == {"a": 100, "b": 200, "c": 400}


@pytest.mark.parametrize("seed", range(20))
def test_no_sharer_is_ever_further_from_another_than_one_turn_of_each(seed: int):
    rng = random.Random(seed)
    line: Turns[str] = Turns()
    had: Counter[str] = Counter()
    for key in "abc":
        line.come(key)
    for _ in range(1000):
        cost = rng.uniform(0.1, 2.0)
        had[serve(line, cost)] += cost  # type: ignore[assignment]
        assert max(had.values()) - min(had[key] for key in "abc") <= 4.0


def test_who_comes_late_or_back_is_owed_nothing_and_waits_for_nobody():
    line: Turns[str] = Turns()
    line.come("old")
    for _ in range(100):
        serve(line)
    line.come("new")
    assert [serve(line) for _ in range(4)].count("new") == 2
    line.go("new")
    for _ in range(100):
        serve(line)
    line.come("new")
    assert [serve(line) for _ in range(4)].count("new") == 2


def test_what_a_turn_took_beyond_its_guess_is_paid_for_by_those_to_come():
    line: Turns[str] = Turns()
    for key in "ab":
        line.come(key)
    assert serve(line) == "a"
    line.charge("a", 9.0)
    assert [serve(line) for _ in range(9)] == ["b"] * 9
    line.charge("b", -8.0)
    assert serve(line) == "b"


def test_one_that_goes_keeps_what_it_owes():
    line: Turns[str] = Turns()
    for key in "ab":
        line.come(key)
    line.served("a", 5.0)
    line.go("a")
    line.come("a")
    run = [serve(line) for _ in range(7)]
    assert run[:5] == ["b"] * 5 and "a" in run


def test_who_lets_others_pass_is_owed_a_bounded_time_for_it():
    line: Turns[str] = Turns()
    for key in ("wide", "narrow"):
        line.come(key)
    for _ in range(1000):
        line.served("narrow", 1.0)
    run = [serve(line) for _ in range(100)]
    assert run.index("narrow") <= turns.OWED_LIMIT + 2


def test_a_priority_is_a_share_and_never_nothing():
    assert weight_of(1) == 2 * weight_of(0) and weight_of(-1) == weight_of(0) / 2
    assert weight_of(10**9) == 2**turns.PRIORITY_LIMIT and weight_of(-(10**9)) > 0


def test_those_that_are_gone_are_remembered_up_to_a_limit():
    line: Turns[int] = Turns()
    for key in range(5 * turns.SHARERS_LIMIT):
        line.come(key)
        line.served(key, 1e6 + key)
        line.go(key)
    assert len(line._sharers) <= turns.SHARERS_LIMIT
