"""Tasks that wait for tasks: released once, after all of their inputs; failed once, when one of them fails."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kos_cluster.core.dependencies import Dependencies, Dropped, Effect, Ended, Fail, Follow, Held, Release


def test_a_task_is_released_when_its_last_input_has_ended():
    core = Dependencies()
    assert core.handle(Held("t", ("a", "b"))) == [Follow("a"), Follow("b")]
    assert core.handle(Ended("b", False)) == []
    assert core.waits_for("t") == ("a",)
    assert core.handle(Ended("a", False)) == [Release("t")]
    assert core.handle(Ended("a", False)) == [] and len(core) == 0


def test_a_task_without_inputs_is_released_at_once():
    assert Dependencies().handle(Held("t", ())) == [Release("t")]


def test_an_input_is_followed_once_for_all_that_wait_for_it():
    core = Dependencies()
    core.handle(Held("t", ("a",)))
    assert core.handle(Held("u", ("a",))) == []
    assert core.handle(Ended("a", False)) == [Release("t"), Release("u")]
    assert core.handle(Held("v", ("a",))) == [Follow("a")], "it is over: the runtime says so at once"


def test_a_failed_input_fails_its_takers_and_theirs_each_after_its_cause():
    core = Dependencies()
    core.handle(Held("b", ("a",)))
    core.handle(Held("c", ("b", "x")))
    core.handle(Held("d", ("a", "c")))
    assert core.handle(Ended("a", True)) == [Fail("b", "a"), Fail("d", "a"), Fail("c", "b")]
    assert core.handle(Ended("x", False)) == [] and len(core) == 0


def test_what_is_dropped_waits_no_more():
    core = Dependencies()
    core.handle(Held("t", ("a",)))
    core.handle(Held("u", ("a",)))
    core.handle(Dropped("t"))
    assert core.handle(Ended("a", False)) == [Release("u")]
    assert core.handle(Dropped("t")) == []


def test_a_task_cannot_wait_for_itself():
    with pytest.raises(ValueError, match="t cannot wait for itself"):
        Dependencies().handle(Held("t", ("a", "t")))


def test_a_chain_of_many_fails_without_recursion():
    core = Dependencies()
    for number in range(20_000):
        core.handle(Held(str(number + 1), (str(number),)))
    assert len(core.handle(Ended("0", True))) == 20_000


@given(st.data())
def test_in_any_graph_and_order_each_task_ends_once_and_rightly(data: st.DataObject):
    count = data.draw(st.integers(1, 12))
    inputs = {n: data.draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(count)}
    bad = data.draw(st.sets(st.sampled_from([n for n in inputs if not inputs[n]])))
    core, followed, released, failed = Dependencies(), set(), [], []

    def take(effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Follow(task):
                    followed.add(task)
                case Release(task):
                    released.append(int(task))
                case Fail(task, input_):
                    assert int(input_) in inputs[int(task)]
                    failed.append(int(task))

    for task, needs in inputs.items():
        if needs:
            take(core.handle(Held(str(task), tuple(map(str, sorted(needs))))))
    ready = [n for n in inputs if not inputs[n]]
    while ready:
        task = ready.pop(data.draw(st.integers(0, len(ready) - 1)))
        before = len(released)
        if str(task) in followed:
            take(core.handle(Ended(str(task), task in bad)))
        ready += released[before:]
    doomed = set(bad)
    for task, needs in inputs.items():
        if needs & doomed:
            doomed.add(task)
    assert sorted(failed) == sorted(doomed - bad)
    assert sorted(released) == [n for n in inputs if inputs[n] and n not in doomed]
    assert len(core) == 0
