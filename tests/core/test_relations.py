"""Jobs that are to be near to others or apart from them, as one owner places them."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core import ownership as own
from kos_cluster.core.placement import Inputs
from kos_cluster.core.records import Layout, Member, Needs, Versions

GIB = 1 << 30


@pytest.fixture
def core() -> own.Ownership:
    """Four nodes of four slots."""
    machine = own.Ownership(random.Random(7))
    for number in range(4):
        name = f"n{number}"
        machine.handle(own.NodeUp(Member(name, name, "h", 1, 4, Versions("", 1, "", "", ""), 1)), 0.0)
    return machine


def opened(core: own.Ownership, job: str, count: int, needs: Needs, **more: object) -> list[own.Dispatch]:
    core.handle(own.Opened(own.JobSpec(job, f"name of {job}", needs, **more)), 1.0)  # type: ignore[arg-type]
    return sent(core.handle(own.Added(job, count), 1.0))


def sent(effects: list[own.Effect]) -> list[own.Dispatch]:
    return [effect for effect in effects if isinstance(effect, own.Dispatch)]


def ended(core: own.Ownership, dispatch: own.Dispatch, elapsed_s: float = 1.0) -> list[own.Dispatch]:
    outcomes = own.Outcomes(dispatch.batch, dispatch.node, dispatch.runs, frozenset(), elapsed_s)
    return sent(core.handle(outcomes, 2.0))


def test_spread_puts_as_many_on_each_node_and_pack_fills_one_after_the_other(core: own.Ownership):
    spread = [d.node for d in opened(core, "s", 8, Needs(layout=Layout.SPREAD))]
    assert {node: spread.count(node) for node in spread} == {f"n{number}": 2 for number in range(4)}
    packed = [d.node for d in opened(core, "p", 4, Needs(layout=Layout.PACK))]
    assert len(set(packed)) == 2


@pytest.mark.parametrize("called", ["w", "name of w"])
def test_near_goes_where_the_other_job_is_and_was(core: own.Ownership, called: str):
    (web,) = opened(core, "w", 1, Needs())
    assert {d.node for d in opened(core, "near", 3, Needs(near=(called,)))} == {web.node}
    ended(core, web)
    assert {d.node for d in opened(core, "later", 1, Needs(near=(called,)))} <= {web.node}


def test_apart_never_shares_a_node_and_waits_when_there_is_no_other(core: own.Ownership):
    webs = opened(core, "w", 3, Needs(cpus=4))
    (last,) = {f"n{number}" for number in range(4)} - {d.node for d in webs}
    apart = opened(core, "a", 6, Needs(apart=("w",)))
    assert {d.node for d in apart} == {last} and len(apart) == 4
    told = core.standing("a", 2.0)
    assert told is not None and any("it has tasks of w, and the two are to be apart" in why for why in told[1])
    freed = ended(core, webs[0])
    assert {d.node for d in freed} == {webs[0].node}


def test_apart_goes_both_ways(core: own.Ownership):
    (alone,) = opened(core, "a", 1, Needs(apart=("w",)))
    assert alone.node not in {d.node for d in opened(core, "w", 16, Needs())}


def test_a_job_apart_from_itself_has_one_task_a_node(core: own.Ownership):
    assert sorted(d.node for d in opened(core, "a", 9, Needs(apart=("a",)))) == ["n0", "n1", "n2", "n3"]


def test_the_jobs_of_others_count_as_last_told(core: own.Ownership):
    assert core.unknown_jobs(["web"]) == ["web"]
    core.handle(own.JobsElsewhere({"web": frozenset({"n1", "n2", "n3"})}), 1.0)
    assert core.unknown_jobs(["web"]) == []
    assert {d.node for d in opened(core, "a", 2, Needs(apart=("web",)))} == {"n0"}
    assert "n0" not in {d.node for d in opened(core, "b", 2, Needs(near=("web",)))}


def test_a_job_that_is_forgotten_is_not_known_any_more(core: own.Ownership):
    (web,) = opened(core, "w", 1, Needs(apart=("x",)))
    ended(core, web)
    core.forget("w")
    assert core.unknown_jobs(["w", "name of w"]) == ["w", "name of w"]
    assert len(opened(core, "x", 1, Needs())) == 1


def test_tasks_wait_for_the_node_of_their_bytes_but_not_for_ever(core: own.Ownership):
    """1 GiB takes 10.7 s to move; the node that has it is full, with tasks of about a second."""
    fillers = opened(core, "f", 1, Needs(cpus=4, on="n2"))
    inputs = Inputs(GIB, {"n2": GIB})
    assert opened(core, "r", 1, Needs(), inputs=inputs) == []
    told = core.standing("r", 1.5)
    assert told is not None and "1 GiB of its inputs are on n2" in told[1][0]
    assert sent(core.tick(5.0)) == []
    (gone,) = sent(core.tick(20.0))
    assert gone.node != "n2"
    assert opened(core, "again", 1, Needs(), inputs=inputs) == []
    assert {d.node for d in ended(core, fillers[0])} == {"n2"}
