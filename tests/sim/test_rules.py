"""Rules that no mutant breaks, each shown what it forbids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.core import swim
from kos_cluster.core.raft import following
from kos_cluster.core.raft.elections import Elections
from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.sim.invariants import Violation
from kos_cluster.sim.patching import patched
from kos_cluster.sim.run import UNEXPECTED, Options, run_seed
from kos_cluster.sim.swimrules import SwimRules
from kos_cluster.sim.workload import Resource

QUIET = Options(seconds=3.0, kinds=(), membership=False)


def changed(id_: str, state: MemberState, incarnation: int) -> swim.MemberChanged:
    member = Member(id_, id_, id_, 1, 1, Versions("0", 1, "3", "", ""), incarnation, state)
    return swim.MemberChanged(member, None, 1)


def seen_by(name: str, incarnation: int = 5) -> Any:
    return SimpleNamespace(host=SimpleNamespace(name=name), incarnation=incarnation)


def swim_rules(calm: bool = False) -> SwimRules:
    rules = SwimRules(calm)
    rules.booted(seen_by("n1"))
    rules.booted(seen_by("n2"))
    return rules


@pytest.mark.parametrize(
    ("rule", "calm", "beliefs"),
    [
        ("refutation", False, [("n1", MemberState.SUSPECT, 5)]),
        ("own incarnation", False, [("n2", MemberState.ALIVE, 6)]),
        ("precedence", False, [("n2", MemberState.DEAD, 5), ("n2", MemberState.ALIVE, 5)]),
        ("calm", True, [("n2", MemberState.DEAD, 5)]),
    ],
)
def test_a_membership_rule_is_broken_by_what_it_forbids(
    rule: str, calm: bool, beliefs: list[tuple[str, MemberState, int]]
):
    rules, viewer = swim_rules(calm), seen_by("n1")
    *allowed, forbidden = beliefs
    for belief in allowed:
        rules.changed(viewer, changed(*belief))
    with pytest.raises(Violation) as caught:
        rules.changed(viewer, changed(*forbidden))
    assert caught.value.rule == rule


def test_a_forged_record_among_honest_peers_is_a_violation():
    with pytest.raises(Violation, match="signature"):
        swim_rules().ignored(seen_by("n1"), swim.Ignored(swim.Why.FORGED, "n2", "n2"))
    swim_rules().ignored(seen_by("n1"), swim.Ignored(swim.Why.OLDER, "n2", "n2"))


def test_who_does_not_agree_is_named():
    views = {
        "n1": {"n1": MemberState.ALIVE, "n2": MemberState.DEAD},
        "n2": dict.fromkeys(("n1", "n2"), MemberState.ALIVE),
    }
    memberships: Any = {name: SimpleNamespace(states=lambda view=view: view) for name, view in views.items()}
    assert SwimRules.apart(memberships) == "n1 holds n2 to be dead"
    views["n1"]["n2"] = MemberState.ALIVE
    assert SwimRules.apart(memberships) == ""


def test_a_machine_that_halts_without_cause_is_a_violation():
    def halt(self: Any, sender: str, message: Any) -> None:
        self._state.halt("for fun")

    with patched([(following.Following, "heartbeat", halt)]):
        assert run_seed(1, QUIET).rule == "halt"


def test_a_machine_that_says_its_peer_sent_nonsense_is_a_violation():
    def ignore(self: Any, sender: str, message: Any) -> None:
        self._state.ignore(sender, "nonsense")

    with patched([(following.Following, "heartbeat", ignore)]):
        assert run_seed(1, QUIET).rule == "honest peers"


def test_a_term_that_goes_back_is_a_violation():
    def forget(self: Any, sender: str, message: Any) -> None:
        self._state.term -= 1

    with patched([(following.Following, "heartbeat", forget)]):
        result = run_seed(1, QUIET)
    assert result.rule == "monotony" and "went from term" in result.what


def test_an_exception_of_a_machine_is_a_finding_with_its_place():
    def fail(self: Any, sender: str, message: Any) -> None:
        raise ZeroDivisionError("planted")

    with patched([(following.Following, "heartbeat", fail)]):
        result = run_seed(1, QUIET)
    assert result.rule == UNEXPECTED
    assert "ZeroDivisionError: planted" in result.what and "test_rules.py" in result.what


def test_a_cluster_that_never_elects_is_a_violation():
    with patched([(Elections, "tick", lambda self: self._state.restart_timer())]):
        assert run_seed(1, QUIET).rule == "progress"


def test_a_machine_that_is_always_due_is_a_violation():
    with patched([(Elections, "tick", lambda self: None)]):
        assert run_seed(1, QUIET).rule == "busy"


def test_a_resource_judges_what_its_fence_let_in():
    resource = Resource()
    assert resource.work("a", 3) and not resource.work("b", 2)
    resource.fence.highest = 0
    with pytest.raises(Violation, match="token 2 after a holder with 3"):
        resource.work("b", 2)
    with pytest.raises(Violation, match="both hold token 3"):
        resource.work("c", 3)
