"""Stamps: the replicated clock goes on at its own pace, whatever wall clocks do."""

from __future__ import annotations

from kos_cluster.core.replicated.stamp import Stamp


def test_before_anything_is_applied_it_is_the_wall_clock():
    assert Stamp().now_s(1000.0, 5.0) == 1000.0


def test_after_a_wall_clock_that_was_ahead_time_goes_on():
    stamp = Stamp()
    stamp.applied(4600.0, 10.0)  # somebody's clock is an hour ahead
    assert [stamp.now_s(1000.0 + passed, 10.0 + passed) for passed in (0.0, 1.0, 30.0)] == [4600.0, 4601.0, 4630.0]


def test_after_its_own_wall_clock_was_set_back_time_goes_on():
    stamp = Stamp()
    stamp.applied(1000.0, 10.0)
    assert stamp.now_s(1002.0, 12.0) == 1002.0
    assert stamp.now_s(400.0, 13.0) == 1003.0


def test_what_is_applied_again_or_older_changes_nothing():
    stamp = Stamp()
    stamp.applied(1000.0, 10.0)
    stamp.applied(1000.0, 20.0)
    stamp.applied(900.0, 25.0)
    assert stamp.now_s(0.0, 30.0) == 1020.0


def test_a_wall_clock_that_is_right_is_followed():
    stamp = Stamp()
    stamp.applied(1000.0, 10.0)
    assert stamp.now_s(1005.5, 15.0) == 1005.5
