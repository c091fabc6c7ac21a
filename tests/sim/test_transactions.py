"""Two-phase commits in the simulator: what is judged, and what a coordinator must not be stopped by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.core import twophase
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.replicated.replies import Decision
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.sim.invariants import Violation
from kos_cluster.sim.transactions import Judge

BEGIN = commands.BeginTransaction({"n1": b"x", "n2": b"x"}, 2.0)


def begun() -> ClusterState:
    state = ClusterState()
    state.apply(1, commands.encode(commands.Proposal(1000.0, BEGIN)))
    return state


def outcome(decision: Decision, repeated: bool = False) -> replies.Outcome:
    return replies.Outcome(replies.TransactionState(1, decision), (), repeated)


def judge(prepared: tuple[str, ...]) -> Judge:
    transactors: Any = {name: SimpleNamespace(prepared={1: b"x"} if name in prepared else {}) for name in ("n1", "n2")}
    judge = Judge(transactors)
    judge.see(BEGIN, outcome(Decision.OPEN))
    return judge


def test_a_coordinator_whose_wall_clock_was_set_back_goes_on_asking_for_votes():
    coordinator = twophase.Coordinator(begun())
    assert len(coordinator.tick(1000.1)) == 2
    assert coordinator.tick(1000.2) == []
    assert len(coordinator.tick(900.0)) == 2
    assert coordinator.tick(900.1) == []


def test_a_commit_needs_every_reservation():
    judge(("n1", "n2")).see(commands.Tick(), outcome(Decision.COMMITTED))
    with pytest.raises(Violation, match="n2 has not reserved"):
        judge(("n1",)).see(commands.Tick(), outcome(Decision.COMMITTED))


def test_a_decision_stands_and_is_what_is_carried_out():
    judged = judge(("n1", "n2"))
    with pytest.raises(Violation, match="carries out 1 with commit True; the log says None"):
        judged.carried("n1", 1, True)
    judged.see(commands.Tick(), outcome(Decision.COMMITTED))
    judged.carried("n1", 1, True)
    with pytest.raises(Violation, match="commit False; the log says True"):
        judged.carried("n2", 1, False)
    with pytest.raises(Violation, match="decided both ways"):
        judged.see(commands.Tick(), outcome(Decision.ABORTED))


def test_what_time_ends_is_seen_beside_a_repeated_command():
    judged = judge(("n1", "n2"))
    judged.see(
        commands.Tick(),
        replies.Outcome(replies.Done(), (replies.TransactionChanged(1, Decision.ABORTED),), repeated=True),
    )
    judged.carried("n1", 1, False)
    assert judged.in_doubt() == {("n1", 1), ("n2", 1)}
