"""Items of a stream: each position once and in order, whoever brings it, within a window."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.streaming import FIRST_ITEMS, WINDOW_BYTES, WINDOW_ITEMS, Reception


def test_items_are_taken_in_order_though_they_come_late_and_twice():
    stream = Reception()
    assert stream.arrived(1, 10)
    assert stream.take() is None and stream.complete == 0
    assert stream.arrived(0, 10)
    assert stream.complete == 2
    assert not stream.arrived(0, 10) and not stream.arrived(1, 10)
    assert [stream.take(), stream.take(), stream.take()] == [0, 1, None]
    assert not stream.arrived(0, 10), "of a second attempt"


def test_small_items_widen_the_window_and_large_ones_narrow_it():
    small, large = Reception(), Reception()
    assert small.until == large.until == FIRST_ITEMS
    small.arrived(0, 100)
    large.arrived(0, 2 * WINDOW_BYTES)
    assert (small.window, small.until) == (WINDOW_ITEMS, WINDOW_ITEMS)
    assert (large.window, large.until) == (1, FIRST_ITEMS)
    large.arrived(1, 2 * WINDOW_BYTES)
    large.take()
    assert large.until == FIRST_ITEMS, "what is here must go first"
    large.take()
    assert large.until == FIRST_ITEMS + 1


def test_what_was_never_asked_for_is_not_taken_in():
    assert not Reception().arrived(FIRST_ITEMS, 1)


@given(st.lists(st.sampled_from(["send", "again", "take"]), max_size=300), st.integers(1, 7))
def test_whatever_comes_each_item_is_taken_once_and_never_more_are_kept_than_the_window(moves: list[str], step: int):
    stream, taken, sent = Reception(), [], 0
    for number, move in enumerate(moves):
        if move == "take":
            position = stream.take()
            if position is not None:
                taken.append(position)
        elif move == "again" and sent:
            assert not stream.arrived(number * step % sent, 1)
        elif sent < stream.until:
            assert stream.arrived(sent, 1)
            sent += 1
        assert sent - len(taken) <= WINDOW_ITEMS
    assert taken == list(range(len(taken)))
