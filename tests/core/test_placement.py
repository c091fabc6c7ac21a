"""Where a batch goes, with reasons; and how large it is."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kos_cluster.core import batching, reasons
from kos_cluster.core.batching import Durations
from kos_cluster.core.capacity import excess
from kos_cluster.core.nodeindex import NodeIndex
from kos_cluster.core.placement import (
    PLAIN,
    Candidate,
    Inputs,
    Leaning,
    Placement,
    contradiction,
    rank,
    ranks,
    why_never,
)
from kos_cluster.core.records import LabelTerm, Layout, Load, Needs

GIB = 1 << 30


def node(name: str, slots: int = 2, **more: object) -> Candidate:
    return Candidate(name, name, slots, 8 * GIB, memory_available_bytes=4 * GIB, **more)  # type: ignore[arg-type]


def index_of(nodes: Iterable[Candidate], seed: int = 0) -> NodeIndex:
    index = NodeIndex(random.Random(seed))
    for each in nodes:
        index.put(each)
    return index


def placed(
    needs: Needs, *nodes: Candidate, prefetch: bool = False, seed: int = 0, leaning: Leaning = PLAIN
) -> Placement:
    return index_of(nodes, seed).place(needs, 0.0, prefetch=prefetch, leaning=leaning)


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
        return {placed(Needs(), *nodes, seed=s, leaning=Leaning(last="e")).node for s in range(20)}

    others = [node(name) for name in "abcd"]
    assert chosen(*others, node("e")) == {"e"}
    assert chosen(*(node(name, busy=1) for name in "abcd"), node("e", busy=1)) == {"e"}
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
    assert later.possible and later.reasons == ("a: needs 6 GiB, it has 4 GiB free",)
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
    assert durations.batch_size(1000, 4) == batching.TARGET_S * 1000
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


# ---- labels, resources, and other tasks


def declared(name: str, **more: object) -> Candidate:
    return node(name, labels={"zone": name}, **more)


@pytest.mark.parametrize(
    ("needs", "never"),
    [
        (Needs(labels=(LabelTerm("zone", "b"),)), "a: its zone is a, the task asks for b"),
        (Needs(labels=(LabelTerm("disk", "ssd"),)), "a: it has no label disk, the task asks for disk=ssd"),
        (Needs(labels=(LabelTerm("zone", "a", True),)), "a: its zone is a, which the task is to be away from"),
        (Needs(away_from=("a",)), "a: the task is to be away from it"),
        (Needs(gpus=2), "a: needs 2 GPUs, it has 1"),
        (Needs(resources=(("licence", 3),)), "a: needs 3 of licence, it has 2"),
        (Needs(resources=(("scanner", 1),)), "a: needs 1 of scanner, it has 0"),
        (Needs(memory_bytes=16 * GIB), "a: needs 16 GiB, it has 8 GiB"),
    ],
)
def test_what_can_never_run_there_is_refused_with_the_arithmetic(needs: Needs, never: str):
    answer = placed(needs, declared("a", gpus=1, resources={"licence": 2}))
    assert answer == Placement(None, False, (never,))


@pytest.mark.parametrize(
    ("needs", "state", "why"),
    [
        (Needs(gpus=1), {"gpus_in_flight": 1}, "needs 1 GPU, it has 0 free"),
        (Needs(gpus=1), {"gpus_in_use": 1}, "needs 1 GPU, it has 0 free"),
        (Needs(resources=(("licence", 2),)), {"resources_in_use": {"licence": 1}}, "needs 2 of licence, it has 1 free"),
        (Needs(memory_bytes=3 * GIB), {"memory_declared_bytes": 6 * GIB}, "needs 3 GiB, it has 2 GiB free"),
        (Needs(memory_bytes=3 * GIB), {"memory_in_flight_bytes": 6 * GIB}, "needs 3 GiB, it has 2 GiB free"),
        (Needs(), {"over_memory": True}, reasons.OVER_MEMORY),
    ],
)
def test_what_others_or_this_owner_hold_there_is_not_given_twice(needs: Needs, state: dict[str, Any], why: str):
    answer = placed(needs, node("a", gpus=1, resources={"licence": 2}, **state))
    assert answer == Placement(None, True, (f"a: {why}",))


def test_of_several_nodes_the_one_that_comes_nearest_is_named_first():
    nodes = [node("n1", memory_declared_bytes=7 * GIB), node("n2", memory_declared_bytes=5 * GIB), node("n3")]
    answer = placed(Needs(memory_bytes=7 * GIB), *nodes)
    assert answer.reasons[0] == "needs 7 GiB, the largest free is 4 GiB on n3"
    assert placed(Needs(gpus=1), *nodes).reasons[0] == "needs 1 GPU, the most free are 0 on n1"


def test_of_very_many_nodes_only_some_are_told_one_by_one():
    told = placed(Needs(memory_bytes=99 * GIB), *(node(f"n{number}") for number in range(100))).reasons
    assert len(told) == reasons.NODES_TOLD + 2 and told[-1] == f"{100 - reasons.NODES_TOLD} more nodes"


def test_labels_lead_to_nodes_and_away_from_them():
    nodes = [declared(name) for name in "abc"]
    asked = {placed(Needs(labels=(LabelTerm("zone", "b"),)), *nodes, seed=s).node for s in range(20)}
    shunned = {placed(Needs(labels=(LabelTerm("zone", "b", True),)), *nodes, seed=s).node for s in range(40)}
    assert (asked, shunned) == ({"b"}, {"a", "c"})
    assert placed(Needs(labels=(LabelTerm("rack", "1", True),)), node("x")).node == "x"  # it is not in that rack


def test_spread_takes_the_node_with_the_fewest_of_the_job_and_pack_the_fullest_with_room():
    nodes = [node("a", 4, in_flight=1, busy=1), node("b", 4, busy=3), node("c", 4, busy=4)]
    spread = Leaning(layout=Layout.SPREAD, here={"a": 1})
    assert placed(Needs(), *nodes, leaning=spread).node == "b"
    assert placed(Needs(), *nodes, leaning=Leaning(layout=Layout.SPREAD, here={"a": 1, "b": 2})).node == "a"
    assert {placed(Needs(), *nodes, seed=s, leaning=Leaning(layout=Layout.PACK)).node for s in range(20)} == {"b"}


def test_near_is_a_wish_and_apart_is_a_rule():
    nodes = [node("a"), node("b", busy=1), node("c")]
    assert placed(Needs(), *nodes, leaning=Leaning(near={"b"})).node == "b"
    for full in (node("b", in_flight=2), node("b", busy=2)):
        assert placed(Needs(), node("a"), full, leaning=Leaning(near={"b"})).node == "a"
    apart = Leaning(apart={"a", "b", "c"})
    waits = placed(Needs(apart=("web",)), *nodes, leaning=apart)
    assert waits.node is None and waits.possible
    assert "it has tasks of web, and the two are to be apart" in waits.reasons[0]
    assert {placed(Needs(), *nodes, seed=s, leaning=Leaning(apart={"a", "b"})).node for s in range(20)} == {"c"}


# ---- inputs


def reading(size_gib: float, at: dict[str, float], **more: float) -> Leaning:
    inputs = Inputs(int(size_gib * GIB), {name: int(part * GIB) for name, part in at.items()})
    return Leaning(inputs=inputs, **more)


def test_a_task_goes_to_its_bytes():
    nodes = [node(name) for name in "abcdef"]
    assert {placed(Needs(), *nodes, seed=s, leaning=reading(1, {"e": 1})).node for s in range(20)} == {"e"}
    most = reading(3, {"a": 1, "e": 2})
    assert {placed(Needs(), *nodes, seed=s, leaning=most).node for s in range(20)} == {"e"}


def test_it_waits_for_the_node_of_its_bytes_as_long_as_moving_them_takes():
    """1 GiB takes about 11 s at 100 MB/s; one task of 2 s is ahead."""
    nodes = [node("a"), node("b", slots=1, in_flight=1)]
    waits = placed(Needs(), *nodes, leaning=reading(1, {"b": 1}, task_s=2.0))
    assert waits.node is None and waits.held
    assert waits.reasons[0] == "1 GiB of its inputs are on b: moving them takes 10.7 s, waiting there about 2.0 s"
    assert placed(Needs(), *nodes, leaning=reading(1, {"b": 1}, task_s=20.0)).node == "a"
    assert placed(Needs(), *nodes, leaning=reading(1, {"b": 1}, task_s=2.0, waited_s=10.0)).node == "a"
    assert placed(Needs(), *nodes, leaning=reading(0.001, {"b": 0.001}, task_s=2.0)).node == "a"


def test_moving_takes_as_long_as_the_link_was_measured_to_take():
    """1 GiB, and one task ahead of it where it is."""

    def chosen(rate: float, task_s: float) -> str | None:
        nodes = [node("a", links={"b": rate, "c": 1e12}), node("b", slots=1, in_flight=1)]
        return placed(Needs(), *nodes, leaning=reading(1, {"b": 1}, task_s=task_s)).node

    assert chosen(1e6, 20.0) is None
    assert chosen(1e9, 2.0) == "a"


def test_what_lies_behind_a_slow_link_takes_its_time_whatever_comes_over_a_fast_one():
    """Node c has a little of the inputs and shares it with a for nothing; 1 GiB is on b, with one task ahead of it."""

    def chosen(at: dict[str, float], task_s: float) -> str | None:
        nodes = [node("a", links={"c": 1e10}), node("b", slots=1, in_flight=1), node("c", drained=True)]
        return placed(Needs(), *nodes, leaning=reading(1.001, at, task_s=task_s)).node

    assert chosen({"b": 1, "c": 0.001}, 2.0) is None, "it takes 11 s"
    assert chosen({"b": 1, "c": 0.001}, 20.0) == "a"
    assert chosen({"b": 1, "c": 1.001}, 2.0) == "a", "c has a copy of it"


def test_it_does_not_wait_for_a_node_that_cannot_take_it():
    def chosen(**state: object) -> str | None:
        nodes = [node("a"), node("b", slots=1, **state)]
        return placed(Needs(), *nodes, leaning=reading(1, {"b": 1}, task_s=0.001)).node

    assert chosen() == "b"
    assert chosen(drained=True) == "a"
    assert chosen(over_memory=True) == "a"
    assert chosen(in_flight=2, drained=True) == "a"
    nodes = [node("a"), node("b")]
    apart = reading(1, {"b": 1})
    assert placed(Needs(), *nodes, leaning=msgspec.structs.replace(apart, apart={"b"})).node == "a"


# ---- contradictions


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Needs(on="a", away_from=("a",)), "be on a and away from it"),
        (Needs(labels=(LabelTerm("zone", "a"), LabelTerm("zone", "b"))), "be where zone is a and where it is b"),
        (Needs(labels=(LabelTerm("zone", "a", True), LabelTerm("zone", "a"))), "zone is a and away from there"),
        (Needs(near=("web", "db"), apart=("db",)), "be near job db and apart from it"),
        (Needs(labels=(LabelTerm("zone", "a"), LabelTerm("zone", "b", True))), ""),
        (Needs(on="a", away_from=("b",), near=("web",), apart=("db",)), ""),
    ],
)
def test_contradictions_are_named(needs: Needs, said: str):
    assert contradiction(needs).endswith(said) and bool(contradiction(needs)) == bool(said)


# ---- whatever the nodes are


ANY_NEEDS = st.builds(
    Needs,
    cpus=st.integers(1, 4),
    memory_bytes=st.sampled_from([0, GIB, 3 * GIB]),
    on=st.sampled_from(["", "", "", "n1"]),
    modules=st.sampled_from([(), ("numpy",)]),
    gpus=st.integers(0, 2),
    resources=st.sampled_from([(), (("licence", 1),), (("licence", 2),)]),
    labels=st.sampled_from([(), (LabelTerm("zone", "a"),), (LabelTerm("zone", "a", True),)]),
    away_from=st.sampled_from([(), ("n0",)]),
)
ANY_NODE = st.builds(
    dict,
    slots=st.integers(1, 4),
    labels=st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
    gpus=st.integers(0, 2),
    resources=st.sampled_from([{}, {"licence": 2}]),
    drained=st.booleans(),
    over_memory=st.booleans(),
    packages=st.sampled_from([frozenset(), frozenset({"numpy"})]),
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["place", "end", "refuse", "load", "drain", "down", "up"]),
        st.integers(0, 5),
        ANY_NEEDS,
        st.sampled_from(list(Layout)),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY_NODE, min_size=1, max_size=6), CHANGES, st.integers(0, 2**32))
def test_the_index_says_what_a_look_at_every_node_says_and_nothing_is_placed_beyond_what_is_free(
    kinds: list[dict[str, Any]], changes: list[tuple[str, int, Needs, Layout, bool]], seed: int
):
    """After each change: what is chosen may run there, is free there, and no node of a better group was passed over."""
    nodes = {f"n{number}": node(f"n{number}", **kind) for number, kind in enumerate(kinds)}
    index, now, held = index_of(nodes.values(), seed), 0.0, list[tuple[Candidate, Needs]]()
    up = set(nodes)
    for what, number, needs, layout, prefetch in changes:
        now += 0.4
        each = nodes[f"n{number % len(nodes)}"]
        match what:
            case "place":
                answer = index.place(needs, now, prefetch=prefetch, leaning=Leaning(layout=layout))
                alive = [nodes[name] for name in up]
                able = [rank(needs, other, now) for other in alive if rank(needs, other, now) in ranks(prefetch)]
                assert (answer.node is None) == (not able)
                assert answer.possible == any(not why_never(needs, other) for other in alive)
                assert answer.reasons
                if answer.node is not None:
                    chosen = nodes[answer.node]
                    assert rank(needs, chosen, now) == min(able)
                    chosen.hold(needs)
                    index.changed(chosen.id)
                    held.append((chosen, needs))
                    assert not excess(
                        Needs(
                            chosen.in_flight,
                            chosen.memory_in_flight_bytes,
                            gpus=chosen.gpus_in_flight,
                            resources=tuple(chosen.resources_in_flight.items()),
                        ),
                        chosen.slots * 2,
                        chosen.memory_bytes,
                        chosen.gpus,
                        chosen.resources,
                    )
            case "end" if held:
                ended, needs = held.pop(number % len(held))
                ended.hold(needs, -1)
                index.changed(ended.id)
            case "refuse":
                each.refused_until_s = now + 1.0
                index.changed(each.id)
            case "load":
                each.loaded(Load(running=number, memory_available_bytes=number * GIB, gpus_in_use=number % 2))
                index.changed(each.id)
            case "drain":
                each.drained = not each.drained
                index.changed(each.id)
            case "down":
                up.discard(each.id)
                index.remove(each.id)
            case "up":
                each.labels = {"zone": "b"}
                up.add(each.id)
                index.put(each)
    assert index.slots == sum(nodes[name].slots for name in up)
