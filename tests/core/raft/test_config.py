"""Who belongs to the group: one change at a time, never a quorum lost, in force when appended."""

from __future__ import annotations

import pytest

from kos_cluster.core.raft import (
    Accepted,
    AddLearner,
    Change,
    ChangeConfig,
    Demote,
    Membership,
    MembershipChanged,
    Promote,
    Propose,
    Refused,
    Remove,
    Role,
)
from kos_cluster.core.raft import config as rules
from kos_cluster.core.raft.config import CAUGHT_UP_ENTRIES, LEARNERS_LIMIT, VOTERS_LIMIT
from kos_cluster.core.raft.messages import Append, AppendResponse, Message
from tests.core.raft.network import Host, Network


def change(network: Network, host: Host, what: Change) -> Accepted | Refused:
    outcome = network.request(host, lambda id: ChangeConfig(id, what))
    assert isinstance(outcome, Accepted | Refused)
    return outcome


def reason(network: Network, host: Host, what: Change) -> str:
    outcome = change(network, host, what)
    assert isinstance(outcome, Refused), outcome
    return outcome.reason


def follower_of(network: Network, leader: Host) -> Host:
    return next(host for host in network.hosts.values() if host is not leader)


def test_a_node_joins_learns_and_gets_a_vote() -> None:
    network = Network("abc")
    leader = network.elect()
    for number in range(20):
        network.propose(leader, b"%d" % number)
    joined = network.join("x")
    assert isinstance(change(network, leader, AddLearner("x")), Accepted)
    network.run(1.0)
    assert joined.commands == leader.commands
    assert joined.raft.membership == Membership(("a", "b", "c"), ("x",))
    assert isinstance(change(network, leader, Promote("x")), Accepted)
    network.run(1.0)
    for host in network.hosts.values():
        assert host.raft.membership == Membership(("a", "b", "c", "x"))
        assert host.seen(MembershipChanged)[-1].membership == host.raft.membership  # type: ignore[union-attr]


def test_a_group_grows_from_one_to_five_and_survives_two_losses() -> None:
    network = Network("a")
    leader = network.elect()
    for node in "bcde":
        network.join(node)
        change(network, leader, AddLearner(node))
        network.run(0.5)
        assert isinstance(change(network, leader, Promote(node)), Accepted)
        network.run(0.5)
    leader.crash()
    network["b"].crash()
    network.run(4.0)
    new = network.leader()
    network.propose(new, b"1")
    assert new.commands == [b"cmd1"]


def test_a_learner_does_not_count_for_the_majority() -> None:
    network = Network("abc")
    leader = network.elect()
    for node in "xy":
        network.join(node)
        change(network, leader, AddLearner(node))
        network.run(0.5)
    others = [node for node in "abc" if node != leader.node]
    network.cut(*others)
    commit = leader.raft.commit
    leader.handle(Propose(1, b"cmd1"))
    network.run(0.5)
    assert network["x"].raft.last_index == network["y"].raft.last_index == commit + 1
    assert leader.raft.commit == commit


def test_one_change_is_made_at_a_time() -> None:
    network = Network("abc")
    leader = network.elect()
    network.lose = lambda sender, to, message: isinstance(message, AppendResponse)
    first = change(network, leader, AddLearner("x"))
    assert isinstance(first, Accepted)
    assert f"the change at entry {first.index} is not committed yet" in reason(network, leader, AddLearner("y"))
    network.lose = lambda sender, to, message: False
    network.run(1.0)
    assert isinstance(change(network, leader, AddLearner("y")), Accepted)


def test_a_new_leader_changes_nothing_before_it_has_committed_in_its_term() -> None:
    """The flaw of the first published single-server change."""
    network = Network("abc")
    network.lose = lambda sender, to, message: isinstance(message, AppendResponse)
    network.run(2.5)
    leader = network.leader()
    assert leader.raft.role is Role.LEADER
    assert "has not committed an entry of its term yet" in reason(network, leader, AddLearner("x"))


def test_a_change_is_in_force_when_appended_and_rolled_back_when_cut_off() -> None:
    network = Network("abc")
    old = network.elect()
    before = old.raft.membership
    network.cut(old.node)
    change(network, old, AddLearner("x"))
    assert old.raft.membership == Membership(("a", "b", "c"), ("x",))
    network.run(3.0)
    network.propose(network.leader(), b"1")
    network.heal()
    network.run(3.0)
    assert old.raft.membership == before
    assert old.seen(MembershipChanged)[-1].membership == before  # type: ignore[union-attr]
    assert network.leader().raft.membership == before


def test_the_last_voter_is_not_removed() -> None:
    network = Network("a")
    leader = network.elect()
    assert "a is the last voter" in reason(network, leader, Remove("a"))
    assert "a is the last voter" in reason(network, leader, Demote("a"))


def test_a_change_that_would_lose_the_quorum_is_refused_with_the_arithmetic() -> None:
    network = Network("abcde")
    leader = network.elect()
    others = [node for node in "abcde" if node != leader.node]
    for node in others[:2]:
        network[node].crash()
    network.run(2.0)
    assert reason(network, leader, Remove(others[2])) == (
        "the change would lose the quorum: of the 4 voters after it 3 must answer, "
        f"and 2 do ({others[0]}, {others[1]} silent)"
    )
    assert isinstance(change(network, leader, Remove(others[0])), Accepted)


def test_a_learner_that_is_silent_or_was_never_there_is_not_promoted() -> None:
    network = Network("abc")
    leader = network.elect()
    change(network, leader, AddLearner("ghost"))  # a short log: it lacks few entries
    network.join("x")
    change(network, leader, AddLearner("x"))
    assert reason(network, leader, Promote("ghost")) == "ghost does not answer"
    network.run(1.0)
    network["x"].crash()
    network.run(3.0)
    assert reason(network, leader, Promote("x")) == "x does not answer"


def test_a_learner_that_lags_is_not_promoted() -> None:
    network = Network("abc")
    leader = network.elect()
    network.join("x")
    change(network, leader, AddLearner("x"))
    network.lose = lambda sender, to, message: to == "x" and isinstance(message, Append)
    for _ in range(CAUGHT_UP_ENTRIES + 10):
        network.propose(leader, b"1")
    assert "x has not caught up: it lacks" in reason(network, leader, Promote("x"))
    network.lose = lambda sender, to, message: False
    network.run(2.0)
    assert isinstance(change(network, leader, Promote("x")), Accepted)


def test_a_leader_that_is_removed_sees_it_committed_and_hands_over() -> None:
    for what in (Remove, Demote):
        network = Network("abc")
        leader = network.elect()
        assert isinstance(change(network, leader, what(leader.node)), Accepted)
        network.run(0.2)  # at once, not after a timeout
        new = network.leader()
        assert new is not leader
        assert leader.raft.role is Role.FOLLOWER
        assert leader.node not in new.raft.membership.voters
        network.run(5.0)
        network.propose(new, b"1")
        assert new.commands == [b"cmd1"]
        assert network.leader() is new


@pytest.mark.parametrize("what", [Remove, Demote])
def test_a_leader_that_alone_has_the_entry_of_its_leaving_still_stands(what: type[Remove | Demote]) -> None:
    """The other cannot win without its vote, and does not have the longer log (thesis 4.2.2)."""
    network = Network("ab")
    leader = network.elect()
    other = follower_of(network, leader)
    network.lose = lambda sender, to, message: isinstance(message, Append)
    network.request(leader, lambda id: ChangeConfig(id, what(leader.node)))
    assert leader.raft.membership.voters == (other.node,)
    leader.crash()
    network.lose = lambda sender, to, message: False
    network.run(2.0)
    leader.start()
    network.run(5.0)
    assert other.raft.role is Role.LEADER
    assert other.raft.membership.voters == (other.node,)
    network.propose(other, b"1")
    assert other.commands == [b"cmd1"]


def test_a_removed_node_learns_of_it_and_stays_quiet() -> None:
    network = Network("abc")
    leader = network.elect()
    removed = follower_of(network, leader)
    change(network, leader, Remove(removed.node))
    network.run(0.5)
    assert removed.node not in removed.raft.membership.members
    assert removed.raft.applied == leader.raft.commit
    sent: list[Message] = []

    def count(sender: str, to: str, message: Message) -> bool:
        if removed.node in (sender, to):
            sent.append(message)
        return False

    network.lose = count
    network.run(20.0)
    assert sent == []
    assert removed.raft.role is Role.FOLLOWER


def test_a_node_that_missed_its_removal_disturbs_nobody() -> None:
    network = Network("abc")
    leader = network.elect()
    removed = follower_of(network, leader)
    network.cut(removed.node)
    network.run(2.0)
    change(network, leader, Remove(removed.node))
    network.run(0.5)
    network.heal()
    term = leader.raft.term
    network.run(20.0)
    assert removed.raft.role is Role.PRE_CANDIDATE
    assert network.leader() is leader
    assert leader.raft.term == term


MEMBERSHIP = Membership(("a", "b", "c"), ("x",))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (AddLearner("y"), ""),
        (AddLearner(""), "needs a name"),
        (AddLearner("x"), "x is a member already"),
        (AddLearner("a"), "a is a member already"),
        (Promote("x"), ""),
        (Promote("a"), "a is not a learner"),
        (Promote("z"), "z is not a learner"),
        (Demote("a"), ""),
        (Demote("x"), "x is not a voter"),
        (Remove("x"), ""),
        (Remove("z"), "z is not a member"),
    ],
)
def test_what_may_become_of_a_node(what: Change, expected: str) -> None:
    text = rules.why_refuse(MEMBERSHIP, what, 0, lambda node: True)
    assert expected in text
    assert bool(text) == bool(expected)
    if not expected:
        after = rules.changed(MEMBERSHIP, what)
        assert rules.is_valid(after)
        assert len(set(after.voters) ^ set(MEMBERSHIP.voters)) <= 1


def test_the_group_is_bounded() -> None:
    full = Membership(tuple(f"v{i}" for i in range(VOTERS_LIMIT)), tuple(f"l{i}" for i in range(LEARNERS_LIMIT)))
    assert "the most it can have" in rules.why_refuse(full, AddLearner("y"), 0, lambda node: True)
    assert "the most it can have" in rules.why_refuse(full, Promote("l1"), 0, lambda node: True)


def test_only_a_membership_with_voters_and_no_doubles_is_read() -> None:
    assert rules.decode(rules.encode(MEMBERSHIP)) == MEMBERSHIP
    for bad in (b"", b"\xff", rules.encode(Membership()), rules.encode(Membership(("a",), ("a",)))):
        assert rules.decode(bad) is None
