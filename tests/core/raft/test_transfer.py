"""Handing the leadership over: at once, with the whole log, or not at all."""

from __future__ import annotations

from kos_cluster.core.raft import Accepted, AddLearner, ChangeConfig, Propose, Refused, Role, Timing, Transfer
from kos_cluster.core.raft.messages import Append, TimeoutNow
from tests.core.raft.network import Host, Network


def transfer(network: Network, host: Host, to: str) -> object:
    return network.request(host, lambda id: Transfer(id, to))


def followers_of(network: Network, leader: Host) -> list[Host]:
    return [host for host in network.hosts.values() if host is not leader]


def test_another_voter_takes_over_at_once() -> None:
    network = Network("abc")
    leader = network.elect()
    network.propose(leader, b"1")
    target = followers_of(network, leader)[0]
    before = network.now
    assert transfer(network, leader, target.node) is None
    assert network.now == before
    assert target.raft.role is Role.LEADER
    assert leader.raft.leader == target.node
    network.propose(target, b"2")
    assert leader.commands == [b"cmd1", b"cmd2"]


def test_a_target_that_lags_gets_the_log_first() -> None:
    network = Network("abc")
    leader = network.elect()
    target, other = followers_of(network, leader)
    network.lose = lambda sender, to, message: to == target.node and isinstance(message, Append)
    for number in range(20):
        network.propose(leader, b"%d" % number)
    transfer(network, leader, target.node)
    assert leader.raft.role is Role.LEADER
    refused = network.propose(leader, b"late")
    assert isinstance(refused, Refused)
    assert "being handed to" in refused.reason
    network.lose = lambda sender, to, message: False
    network.run(1.0)
    assert network.leader() is target
    assert len(target.commands) == 20
    assert other.raft.leader == target.node


def test_a_transfer_that_fails_is_given_up_and_told() -> None:
    network = Network("abc")
    leader = network.elect()
    target = followers_of(network, leader)[0]
    network.lose = lambda sender, to, message: isinstance(message, TimeoutNow)
    transfer(network, leader, target.node)
    id = network.ids
    network.run(Timing().election_max_s + 0.1)
    outcome = leader.outcome(id)
    assert isinstance(outcome, Refused)
    assert "did not take over in time" in outcome.reason
    assert isinstance(network.propose(leader, b"1"), Accepted)


def test_a_lost_order_is_given_again() -> None:
    network = Network("abc")
    leader = network.elect()
    target = followers_of(network, leader)[0]
    network.lose = lambda sender, to, message: isinstance(message, TimeoutNow)
    transfer(network, leader, target.node)
    network.lose = lambda sender, to, message: False
    network.run(0.5)
    assert network.leader() is target


def test_what_cannot_take_over_is_refused() -> None:
    network = Network("abc")
    leader = network.elect()
    silent, other = followers_of(network, leader)
    network.join("x")
    network.request(leader, lambda id: ChangeConfig(id, AddLearner("x")))
    network.run(0.5)
    silent.crash()
    network.run(2.0)
    for to, reason in (
        (leader.node, "is the leader already"),
        ("x", "x is not a voter"),
        ("nobody", "nobody is not a voter"),
        (silent.node, "does not answer"),
    ):
        outcome = transfer(network, leader, to)
        assert isinstance(outcome, Refused)
        assert reason in outcome.reason
    outcome = transfer(network, other, leader.node)
    assert isinstance(outcome, Refused)
    assert outcome.leader == leader.node


def test_a_second_transfer_is_refused_while_one_is_on() -> None:
    network = Network("abc")
    leader = network.elect()
    first, second = followers_of(network, leader)
    network.lose = lambda sender, to, message: isinstance(message, TimeoutNow)
    transfer(network, leader, first.node)
    outcome = transfer(network, leader, second.node)
    assert isinstance(outcome, Refused)
    assert f"being handed to {first.node}" in outcome.reason


def test_what_was_proposed_before_is_not_lost() -> None:
    for seed in range(20):
        network = Network("abc", seed)
        leader = network.elect()
        for number in range(10):
            leader.handle(Propose(number, b"cmd%d" % number))
        network.ids = 100
        transfer(network, leader, followers_of(network, leader)[seed % 2].node)
        network.run(1.0)
        new = network.leader()
        assert new is not leader
        assert new.commands == [b"cmd%d" % number for number in range(10)]
