"""Who votes: the right number, one step at a time, never a step that loses agreement."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core.records import MemberState
from kos_cluster.core.voters import (
    GRACE_S,
    Blocked,
    Candidate,
    Demote,
    HandOver,
    Promote,
    change_refused,
    choose_voters,
    loss_sentence,
    majority,
    undecided_sentence,
    voters_wanted,
)

NOW = 1000.0
ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


def node(id: str, state: MemberState = ALIVE, *, machine: str = "", since_s: float = 0.0, **more: bool) -> Candidate:
    return Candidate(id, f"node-{id}", machine or f"machine-{id}", state, since_s, **{"ready": True, **more})


def settle(candidates: list[Candidate], voters: list[str], leader: str) -> list[str]:
    """Make steps until there are none; the leader is told by a star."""
    current = list(voters)
    for _ in range(20):
        match choose_voters(candidates, current, leader, NOW):
            case Promote(id, _):
                current.append(id)
            case Demote(id, _):
                current.remove(id)
            case HandOver(id, _):
                leader = id
            case _:
                return [id + "*" * (id == leader) for id in current]
    raise AssertionError(f"no end of steps: {current}")


@pytest.mark.parametrize(("nodes", "voters"), [(1, 1), (2, 1), (3, 3), (6, 3), (7, 5), (50, 5)])
def test_a_cluster_grows_to_as_many_voters_as_it_should_have(nodes: int, voters: int):
    ids = [chr(ord("a") + number) for number in range(nodes)]
    assert voters_wanted(nodes) == voters
    assert len(settle([node(id) for id in ids], ["a"], "a")) == voters


def test_a_dead_voter_is_replaced_after_its_grace_and_the_dead_one_goes_first():
    def step(dead_since_s: float) -> object:
        candidates = [node("a"), node("b"), node("c", DEAD, since_s=dead_since_s), node("d")]
        return choose_voters(candidates, ["a", "b", "c"], "a", NOW)

    assert step(NOW - GRACE_S + 1) is None
    demoted = step(NOW - GRACE_S)
    assert isinstance(demoted, Demote) and demoted.id == "c" and "node-d takes its place" in demoted.why
    assert settle([node("a"), node("b"), node("c", DEAD), node("d")], ["a", "b", "c"], "a") == ["a*", "b", "d"]


def test_a_dead_voter_stays_when_nobody_can_take_its_place():
    assert choose_voters([node("a"), node("b"), node("c", DEAD)], ["a", "b", "c"], "a", NOW) is None
    lagging = [node("a"), node("b"), node("c", DEAD), node("d", ready=False)]
    assert choose_voters(lagging, ["a", "b", "c"], "a", NOW) is None


def test_a_voter_that_left_goes_at_once():
    candidates = [node("a"), node("b"), node("c", LEFT, since_s=NOW), node("d")]
    step = choose_voters(candidates, ["a", "b", "c"], "a", NOW)
    assert isinstance(step, Demote) and step.id == "c"
    assert settle(candidates, ["a", "b", "c"], "a") == ["a*", "b", "d"]


def test_two_nodes_end_with_one_voter_and_it_is_the_leader():
    assert settle([node("a"), node("b"), node("c", LEFT)], ["a", "b", "c"], "b") == ["b*"]


def test_no_even_set_without_the_next_step_ready():
    assert choose_voters([node("a"), node("b"), node("c", ready=False)], ["a"], "a", NOW) is None
    assert isinstance(choose_voters([node("a"), node("b"), node("c")], ["a"], "a", NOW), Promote)


def test_a_drained_voter_is_replaced():
    candidates = [node("a"), node("b", drained=True), node("c"), node("d")]
    assert settle(candidates, ["a", "b", "c"], "a") == ["a*", "c", "d"]


def test_a_drained_leader_hands_over_before_it_is_replaced():
    candidates = [node("a", drained=True), node("b"), node("c"), node("d")]
    step = choose_voters(candidates, ["a", "b", "c"], "a", NOW)
    assert step == HandOver("b", "node-a is drained")
    assert settle(candidates, ["a", "b", "c"], "a") == ["b*", "c", "d"]


def test_the_only_voter_is_drained_by_way_of_a_second_one():
    assert settle([node("a", drained=True), node("b")], ["a"], "a") == ["b*"]
    assert settle([node("a", drained=True), node("b", ready=False)], ["a"], "a") == ["a*"]


def test_voters_spread_over_machines():
    crowded = [node("a", machine="m"), node("b", machine="m"), node("c", machine="m"), node("d"), node("e")]
    assert sorted(settle(crowded, ["a", "b", "c"], "b")) == ["b*", "d", "e"]
    assert len(settle([node(id, machine="m") for id in "abc"], ["a"], "a")) == 3


def test_a_change_that_would_lose_agreement_is_refused_with_the_arithmetic():
    assert change_refused(["a", "b", "c"], ["a", "b"], remove="c") == ""
    refusal = change_refused(["a", "b", "c"], ["a", "b"], remove="b")
    assert refusal == "Of 2 voters 2 would have to agree, but only 1 would be reachable."
    assert "last voter" in change_refused(["a"], ["a"], remove="a")
    assert change_refused(["a", "b", "c"], ["a", "b"], add="d") != ""  # d cannot be reached
    blocked = choose_voters(
        [node("a"), node("b", DEAD), node("c", DEAD), node("d", LEFT), node("e", LEFT)], list("abcde"), "a", NOW
    )
    assert isinstance(blocked, Blocked) and "must agree" in blocked.reason


def test_random_clusters_settle_without_ever_losing_agreement():
    for seed in range(3000):
        rng = random.Random(seed)
        ids = [f"n{number}" for number in range(rng.randint(1, 9))]
        leader = rng.choice(ids)
        candidates = [
            node(
                id,
                ALIVE if id == leader else rng.choice((ALIVE, ALIVE, ALIVE, SUSPECT, DEAD, LEFT)),
                machine=f"m{rng.randint(0, 4)}",
                ready=rng.random() < 0.8,
                drained=rng.random() < 0.2,
            )
            for id in ids
        ]
        alive = {c.id for c in candidates if c.state is ALIVE}
        voters = sorted({leader, *rng.sample(ids, min(len(ids), rng.randint(1, 5)))})
        before = None
        for count in range(30):
            reachable = len(alive & set(voters)) >= majority(len(voters))
            step = choose_voters(rng.sample(candidates, len(candidates)), voters, leader, NOW)
            if step is None or isinstance(step, Blocked):
                break
            if isinstance(step, HandOver):
                assert step.id in alive & set(voters), f"seed {seed}: {step}"
                leader = step.id
            elif isinstance(step, Promote):
                voters = sorted({*voters, step.id})
            else:
                voters = sorted(set(voters) - {step.id})
            kept = len(alive & set(voters)) >= majority(len(voters))
            assert kept, f"seed {seed}, step {count}: {step} leaves {voters} of which {alive} are alive"
            assert leader in voters, f"seed {seed}: the leader was dropped by {step}"
            assert reachable, f"seed {seed}: {step} without agreement"
            before = step
        else:
            pytest.fail(f"seed {seed}: no end of steps, the last {before}")


@pytest.mark.parametrize(
    ("voters", "alive", "nodes", "says"),
    [
        (1, 1, 1, "only node"),
        (1, 1, 2, "third node"),
        (3, 3, 3, "outlives the loss of any one voter"),
        (3, 2, 3, "one more voter stops agreement"),
        (3, 1, 3, "3 voters, 1 taking part, 2 needed: nothing can be agreed on until 1 more does"),
        (5, 5, 7, "any 2 voters"),
        (2, 2, 3, "one more voter stops agreement"),
        (5, 1, 5, "until 2 more do; running"),
    ],
)
def test_what_a_loss_would_mean(voters: int, alive: int, nodes: int, says: str):
    assert says in loss_sentence(voters, alive, nodes)


def test_why_nothing_was_decided_is_said_with_the_numbers() -> None:
    assert "2 of its 3 voters must agree, and only 1 can be reached" in undecided_sentence(3, 1)
    assert "3 of its 5 voters must agree, and none can be reached" in undecided_sentence(5, 0)
    assert "2 of its 3 voters must agree, 2 can be reached, and they did not" in undecided_sentence(3, 2)
    assert "does not know yet who votes" in undecided_sentence(0, 0)
