"""Rates of links: smoothed, bounded, from transfers that tell something."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core import linkrates
from kos_cluster.core import ownership as own
from kos_cluster.core.linkrates import LinkRates
from tests.core.test_takingback import member

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


def test_a_link_over_which_a_block_was_shared_counts_as_fast_as_memory_until_something_is_sent():
    rates = LinkRates()
    rates.measured("a", 100 * MIB, 1.0)
    rates.shared("a")
    assert rates.told() == {"a": linkrates.SHARED_BYTES_S}
    for _ in range(20):
        rates.measured("a", 100 * MIB, 1.0)
    assert rates.told()["a"] == pytest.approx(100 * MIB, rel=0.2)


def test_those_measured_last_are_remembered():
    rates = LinkRates()
    for number in range(2 * linkrates.LINKS_LIMIT):
        rates.measured(f"n{number}", MIB, 1.0)
        rates.measured("n0", MIB, 1.0)
        rates.shared(f"s{number}")
    assert len(rates.told()) == linkrates.LINKS_LIMIT and "n0" in rates.told()


def test_an_owner_believes_no_rate_that_cannot_be_and_not_too_many():
    core = own.Ownership(random.Random(0))
    core.handle(own.NodeUp(member("n0", 1)), 0.0)
    core.handle(own.NodeLinks("n0", {"a": 0.0, "b": -1.0, "c": 5e7}), 0.0)
    assert core._nodes["n0"].view.links == {"c": 5e7}
    core.handle(own.NodeLinks("n0", {str(number): 1e8 for number in range(1000)}), 0.0)
    assert len(core._nodes["n0"].view.links) == linkrates.LINKS_LIMIT
