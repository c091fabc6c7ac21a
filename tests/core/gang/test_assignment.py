"""Where the ranks of a gang go, and the words when they do not fit."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from kos_cluster.core.gang.assignment import Room, assign, never, waits
from kos_cluster.core.records import Layout


def rooms(*free: int, most: int | None = None) -> list[Room]:
    return [Room(f"id{n}", f"n{n}", now if most is None else most, now) for n, now in enumerate(free)]


def counts(placed: tuple[str, ...] | None) -> list[int]:
    assert placed is not None
    return sorted(Counter(placed).values(), reverse=True)


def test_the_ranks_of_a_node_are_neighbours_and_no_node_gets_more_than_it_has():
    for free in itertools.product(range(4), repeat=3):
        for ranks, how in itertools.product(range(1, 10), Layout):
            placed = assign(ranks, rooms(*free, most=3), how)
            if placed is None:
                assert how is not Layout.ANY or sum(free) < ranks
                continue
            assert len(placed) == ranks
            assert all(placed.count(f"id{n}") <= free[n] for n in range(3))
            assert len(list(itertools.groupby(placed))) == len(set(placed)), placed


def test_spread_levels_the_nodes_and_waits_rather_than_pile_up():
    assert counts(assign(6, rooms(4, 4, 4), Layout.SPREAD)) == [2, 2, 2]
    assert counts(assign(4, rooms(4, 4, 4), Layout.SPREAD)) == [2, 1, 1]
    assert assign(3, rooms(3, 0, 3, most=3), Layout.SPREAD) is None
    assert counts(assign(8, rooms(8, 1, 1), Layout.SPREAD)) == [
        6,
        1,
        1,
    ]  # more than its share only where others are small


def test_pack_takes_as_few_nodes_as_the_cluster_allows_and_waits_for_them():
    assert counts(assign(3, rooms(2, 3, 4), Layout.PACK)) == [3]
    assert counts(assign(6, rooms(4, 4, 4), Layout.PACK)) == [4, 2]
    assert assign(3, rooms(2, 2, 2, most=4), Layout.PACK) is None


def near(*places: int) -> set[str]:
    return {f"id{n}" for n in places}


def placed(ranks: int, how: Layout, *free: int, beside: set[str], most: int = 4) -> Counter[str]:
    there = [replace(room, near=room.node in beside) for room in rooms(*free, most=most)]
    nodes = assign(ranks, there, how)
    assert nodes is not None
    return Counter(nodes)


def test_ranks_go_near_first_as_far_as_the_shape_leaves_a_choice():
    assert placed(2, Layout.ANY, 4, 2, 3, beside=near(2)) == {"id2": 2}
    assert placed(4, Layout.ANY, 4, 2, 1, beside=near(1, 2)) == {"id0": 1, "id1": 2, "id2": 1}
    assert placed(3, Layout.ANY, 4, 4, 0, beside=near(2)) == {"id0": 3}  # no room there
    assert placed(3, Layout.PACK, 4, 1, 3, beside=near(2)) == {"id2": 3}
    assert placed(4, Layout.PACK, 4, 1, 3, beside=near(2)) == {"id0": 4}
    assert placed(4, Layout.SPREAD, 4, 4, 4, beside=near(2)) == {"id0": 1, "id1": 1, "id2": 2}
    assert placed(4, Layout.SPREAD, 4, 4, 1, beside=near(2)) == {"id0": 2, "id1": 1, "id2": 1}


def test_the_words_have_the_numbers():
    assert never(4, 2, rooms(2, 2)) == ""
    told = "5 ranks of 2 slots each do not fit: the cluster holds 4 of them at most (n0: 2; n1: 2)"
    assert never(5, 2, rooms(2, 2)) == told
    mixed = [Room("a", "n0", 0, 0, "it is drained"), Room("b", "n1", 2, 1)]
    assert never(3, 1, mixed).endswith("(n0: 0, it is drained; n1: 2)")
    assert never(1, 1, []).endswith("(no node is alive)")
    assert waits(2, mixed, Layout.ANY) == "2 ranks do not fit now; there is room for 1 (n0: 0, it is drained; n1: 1)"
    assert "in the shape asked for (pack)" in waits(2, rooms(1, 1, most=2), Layout.PACK)


@pytest.mark.parametrize("how", list(Layout))
def test_equal_input_gives_equal_output(how: Layout):
    assert assign(7, rooms(3, 3, 3), how) == assign(7, rooms(3, 3, 3), how)
