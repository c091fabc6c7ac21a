"""Rates of links: smoothed, bounded, from transfers that tell something."""

from __future__ import annotations

import pytest

from kos_cluster.core import linkrates
from kos_cluster.core.linkrates import LinkRates

MIB = 1 << 20


def test_a_rate_follows_what_is_measured_and_one_transfer_moves_it_a_little():
    rates = LinkRates()
    rates.measured("a", 100 * MIB, 1.0)
    assert rates.told() == {"a": 100 * MIB}
    rates.measured("a", 10 * MIB, 1.0)
    assert 50 * MIB < rates.told()["a"] < 100 * MIB
    for _ in range(30):
        rates.measured("a", 10 * MIB, 1.0)
    assert rates.told()["a"] == pytest.approx(10 * MIB, rel=0.01)


def test_small_transfers_and_the_impossible_count_for_nothing():
    rates = LinkRates()
    rates.measured("a", MIB - 1, 1.0)
    assert rates.told() == {}
    rates.measured("a", MIB, 0.0)
    assert rates.told()["a"] <= MIB / linkrates.LEAST_S


def test_those_measured_last_are_remembered():
    rates = LinkRates()
    for number in range(2 * linkrates.LINKS_LIMIT):
        rates.measured(f"n{number}", MIB, 1.0)
        rates.measured("n0", MIB, 1.0)
    assert len(rates.told()) == linkrates.LINKS_LIMIT and "n0" in rates.told()
