"""Stamps: the replicated clock goes on at its own pace, whatever wall clocks do."""

from __future__ import annotations

import pytest

from kos_cluster.core.replicated.stamp import RATE_MOST, Stamp


def test_before_anything_is_applied_it_is_the_wall_clock():
    assert Stamp().now_s(1000.0, 5.0) == 1000.0


def test_after_a_wall_clock_that_was_ahead_time_goes_on():
    stamp = Stamp()
    stamp.applied(4600.0, 1, 10.0)  # somebody's clock is an hour ahead
    assert [stamp.now_s(1000.0 + passed, 10.0 + passed) for passed in (0.0, 1.0, 30.0)] == [4600.0, 4601.0, 4630.0]


def test_after_its_own_wall_clock_was_set_back_time_goes_on():
    stamp = Stamp()
    stamp.applied(1000.0, 1, 10.0)
    assert stamp.now_s(1002.0, 12.0) == 1002.0
    assert stamp.now_s(400.0, 13.0) == 1003.0


def test_what_is_applied_again_or_older_changes_nothing():
    stamp = Stamp()
    stamp.applied(1000.0, 1, 10.0)
    stamp.applied(1000.0, 1, 20.0)
    stamp.applied(900.0, 1, 25.0)
    assert stamp.now_s(0.0, 30.0) == 1020.0


def test_a_wall_clock_that_is_right_is_followed():
    stamp = Stamp()
    stamp.applied(1000.0, 1, 10.0)
    assert stamp.now_s(1005.5, 15.0) == 1005.5


def test_a_wall_clock_that_leaps_ahead_is_caught_up_with_by_and_by():
    stamp = Stamp()
    stamp.applied(1000.0, 1, 10.0)
    ahead_s = 3600.0
    assert stamp.now_s(1000.0 + ahead_s, 10.0) == 1000.0
    assert stamp.now_s(1008.0 + ahead_s, 18.0) == 1000.0 + 8.0 * RATE_MOST
    after_s = ahead_s / (RATE_MOST - 1) + 1.0
    assert stamp.now_s(1000.0 + after_s + ahead_s, 10.0 + after_s) == 1000.0 + after_s + ahead_s


def test_commands_one_after_the_other_get_no_further_than_one():
    stamp, clock_s = Stamp(), 1000.0
    stamp.applied(clock_s, 1, 0.0)
    for tick in range(1, 101):
        clock_s = stamp.now_s(9000.0, tick / 10)
        stamp.applied(clock_s, 1, tick / 10)
    assert clock_s == pytest.approx(1000.0 + 10.0 * RATE_MOST)


def test_it_stamps_in_a_term_of_which_it_has_applied_an_entry():
    stamp = Stamp()
    assert not stamp.knows(2)
    stamp.applied(1000.0, 1, 10.0)
    assert stamp.knows(1) and not stamp.knows(2)
    stamp.applied(1000.0, 2, 11.0)
    assert stamp.knows(2)
