"""Where a batch goes, with reasons; and how large it is."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core import batching
from kos_cluster.core.batching import Durations
from kos_cluster.core.placement import Candidate, Placement, place
from kos_cluster.core.records import Needs

GIB = 1 << 30


def node(name: str, slots: int = 2, **more: object) -> Candidate:
    return Candidate(name, name, slots, 8 * GIB, memory_available_bytes=4 * GIB, **more)  # type: ignore[arg-type]


def placed(needs: Needs, *nodes: Candidate, prefetch: bool = False, seed: int = 0) -> Placement:
    return place(needs, nodes, random.Random(seed), prefetch=prefetch, now=0.0)


def test_the_free_node_is_taken():
    answer = placed(Needs(), node("a", in_flight=2), node("b"))
    assert answer.node == "b"
    assert answer.reasons == ("b: 2 of 2 slots free",)


def test_the_less_loaded_of_two_is_taken():
    assert {placed(Needs(), node("a", busy=1), node("b"), seed=s).node for s in range(20)} == {"b"}


def test_equal_nodes_share():
    assert {placed(Needs(), node("a"), node("b"), node("c"), seed=s).node for s in range(50)} == {"a", "b", "c"}


def test_among_equals_the_node_of_the_last_batch_is_taken_and_else_the_less_loaded():
    def chosen(*nodes: Candidate) -> set[str | None]:
        return {place(Needs(), nodes, random.Random(s), prefetch=False, now=0.0, last="e").node for s in range(20)}

    others = [node(name) for name in "abcd"]
    assert chosen(*others, node("e")) == {"e"}
    assert "e" not in chosen(*others, node("e", busy=1))


def test_full_nodes_queue_one_more_a_slot_only_with_prefetch():
    full = node("a", slots=1, in_flight=1)
    assert placed(Needs(), full).node is None
    assert placed(Needs(), full, prefetch=True).node == "a"
    assert placed(Needs(), node("a", slots=1, in_flight=2), prefetch=True).node is None


def test_impossible_is_told_apart_from_not_now():
    never = placed(Needs(cpus=4), node("a"))
    assert not never.possible and never.reasons == ("a: needs 4 slots, it has 2",)
    later = placed(Needs(memory_bytes=6 * GIB), node("a"))
    assert later.possible and later.reasons == ("a: needs 6.0 GiB, 4.0 GiB is free",)
    assert not placed(Needs(memory_bytes=16 * GIB), node("a")).possible
    assert not placed(Needs(on="z"), node("a")).possible
    assert placed(Needs()).reasons == ("the cluster has no node that is alive",)


def test_packages_are_preferred_not_required():
    needs = Needs(modules=("pandas",))
    assert {placed(needs, node("a"), node("b", packages=frozenset({"pandas"})), seed=s).node for s in range(9)} == {"b"}
    assert placed(needs, node("a")).node == "a"


def test_a_node_that_cannot_read_the_payload_is_never_taken():
    old = node("a", unreadable={"numpy": "it has numpy 1.26, this side 2.1"})
    assert not placed(Needs(modules=("numpy",)), old).possible
    assert placed(Needs(), old).node == "a"
    assert not placed(Needs(), node("a", unreadable={"": "it has cloudpickle 2"})).possible


def test_a_node_that_refused_is_left_alone_for_a_while():
    answer = placed(Needs(), node("a", refused_until_s=1.0))
    assert answer.node is None and answer.possible and "refused" in answer.reasons[0]


def test_batches_grow_with_what_is_measured_and_shrink_at_the_end():
    durations = Durations()
    assert durations.batch_size(1000, 4) == 1
    durations.measured(1, 0.001)
    assert durations.batch_size(1000, 4) == batching.GROWTH
    durations.measured(16, 0.016)
    assert durations.batch_size(1000, 4) == 20
    assert durations.batch_size(8, 4) == 1
    assert durations.batch_size(1000, 4, each_bytes=batching.BATCH_LIMIT_BYTES) == 1


def test_a_drained_node_gets_nothing_even_when_it_is_asked_for_and_says_why():
    assert placed(Needs(), node("a", drained=True), node("b", busy=2)).node == "b"
    asked = placed(Needs(on="a"), node("a", drained=True), node("b"))
    assert asked == Placement(None, True, ("a: it is drained", "b: the task asks for a"))


def test_long_tasks_travel_alone_and_are_not_queued_ahead():
    durations = Durations()
    durations.measured(1, 1.0)
    assert durations.batch_size(1000, 2) == 1
    assert not durations.short


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 100)), max_size=20), st.integers(1, 10**6), st.integers(1, 99)
)
def test_a_batch_is_never_empty_nor_larger_than_its_limits(
    measured: list[tuple[int, float]], remaining: int, slots: int
):
    durations = Durations()
    for tasks, elapsed_s in measured:
        durations.measured(tasks, elapsed_s)
    assert 1 <= durations.batch_size(remaining, slots) <= min(batching.TASKS_LIMIT, remaining)
