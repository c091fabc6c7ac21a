"""The simulator catches every defect it knows, here from a seed near the one that does; `make mutants` hunts from 0."""

from __future__ import annotations

import pytest

from kos_cluster.sim import mutants
from kos_cluster.sim.mutants import MUTANTS, SEEDS_LIMIT, hunt
from kos_cluster.sim.run import Options, run_seed

CAUGHT_BY = {
    "vote-not-durable": "durable before said",
    "ack-not-durable": "durable before said",
    "ordering-releases": "durable before said",
    "merge-drops-entries": "",
    "torn-tail-believed": "durable before said",
    "apply-not-durable": "durable before said",
    "no-pre-vote": "elections",
    "pre-votes-as-votes": "elections",
    "votes-for-any-log": "leader completeness",
    "old-leader-heard": "",
    "counts-own-unwritten": "commit",
    "counts-learners": "commit",
    "heartbeats-commit": "state-machine safety",
    "append-cuts": "log matching",
    "append-unchecked": "log matching",
    "two-voter-changes": "voter changes",
    "snapshot-forgets-voters": "voter changes",
    "snapshot-forgets-sessions": "state-machine safety",
    "no-check-quorum": "check-quorum",
    "read-before-commit": "linearizable reads",
    "dedup-forgotten": "session dedup",
    "swap-unchecked": "linearizable history",
    "commit-goes-back": "monotony",
    "commit-lacks-votes": "atomic commitment",
    "abort-while-open": "atomic commitment",
    "reservation-forgotten": "atomic commitment",
    "stale-epoch": "epochs",
    "second-result": "epochs",
    "stamps-leap": "leases",
    "lease-without-fencing": "fencing",
    "token-given-twice": "fencing",
    "swim-old-incarnation": "precedence",
    "merge-forgets-vote": "durable before said",
    "votes-across-terms": "elections",
    "votes-twice": "election safety",
    "answers-across-terms": "commit",
    "commits-old-terms": "commit",
    "early-voter-change": "voter changes",
    "snapshot-latest-voters": "voter changes",
    "read-without-round": "linearizable reads",
    "stamps-by-wall-clock": "progress",
    "swim-no-refutation": "progress",
    "swim-dead-for-good": "progress",
}
# Where the hunt for those begins that are caught late, so that it is short.
FIRST_SEED = {
    "merge-forgets-vote": 10,
    "votes-across-terms": 35,
    "answers-across-terms": 35,
    "early-voter-change": 20,
    "swim-dead-for-good": 65,
}
SEEDS = 100


@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_caught(name: str):
    first = FIRST_SEED.get(name, 0)
    assert first + SEEDS <= SEEDS_LIMIT
    catch = hunt(name, first, SEEDS)
    assert catch.rule, f"{name} was not caught within {SEEDS} seeds from {first} on"
    assert CAUGHT_BY[name] in ("", catch.rule), catch.what


def test_there_are_enough_and_each_says_what_it_does_wrong():
    assert len(MUTANTS) >= 12
    assert len({mutant.what for mutant in MUTANTS.values()}) == len(MUTANTS)
    assert set(CAUGHT_BY) == set(MUTANTS)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_changes_something_that_exists(name: str):
    for owner, attribute, replacement in MUTANTS[name].patches:
        assert getattr(owner, attribute) is not replacement, attribute


def test_a_defect_is_gone_after_the_hunt():
    catch = hunt("no-pre-vote", limit=3)
    assert catch.rule == "elections"
    mutant = MUTANTS["no-pre-vote"]
    result = run_seed(catch.seed, Options(kinds=mutant.kinds, membership=mutant.membership))
    assert not result.rule, result.what


def test_what_is_not_caught_is_said(monkeypatch: pytest.MonkeyPatch):
    harmless = mutants.Mutant("nothing", (), (), seconds=1.0)
    monkeypatch.setitem(MUTANTS, "harmless", harmless)
    catch = hunt("harmless", limit=2)
    assert (catch.rule, catch.seeds) == ("", 2)
