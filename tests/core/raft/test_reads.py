"""Reads that see all that was committed before them, without a write, whatever became of the leader."""

from __future__ import annotations

import pytest

from kos_cluster.core.raft import ReadIndex, ReadReady, Received, Refused, Role, Timing
from kos_cluster.core.raft.messages import (
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadRequest,
    ReadResponse,
)
from kos_cluster.core.raft.reads import READS_LIMIT
from tests.core.raft.network import GROUP, Host, Network


def read(network: Network, host: Host) -> ReadReady | Refused | None:
    outcome = network.request(host, ReadIndex)
    assert outcome is None or isinstance(outcome, ReadReady | Refused)
    return outcome


def follower_of(network: Network, leader: Host) -> Host:
    return next(host for host in network.hosts.values() if host is not leader)


@pytest.mark.parametrize("nodes", ["a", "abc", "abcde"])
def test_leader_and_followers_read_what_is_committed(nodes: str) -> None:
    network = Network(nodes)
    leader = network.elect()
    network.propose(leader, b"1")
    for host in network.hosts.values():
        outcome = read(network, host)
        assert isinstance(outcome, ReadReady)
        assert outcome.index == leader.raft.commit


def test_a_deposed_leader_that_knows_nothing_of_it_answers_no_read() -> None:
    network = Network("abc")
    old = network.elect()
    network.cut(old.node)
    network.now = max(host.raft.deadline for host in network.hosts.values())
    for host in network.hosts.values():
        if host is not old:
            host.tick()
    network.settle()
    network.run(0.0)
    for host in network.hosts.values():
        if host is not old:
            network.now = max(network.now, host.raft.deadline)
            host.tick()
            network.settle()
    new = max(network.hosts.values(), key=lambda host: host.raft.term)
    assert new.raft.role is Role.LEADER
    assert old.raft.role is Role.LEADER
    network.propose(new, b"1")
    assert read(network, old) is None
    network.heal()
    network.run(1.0)
    assert isinstance(old.outcome(network.ids), Refused)


def test_a_new_leader_answers_only_after_it_has_committed_in_its_term() -> None:
    network = Network("abc")
    network.lose = lambda sender, to, message: isinstance(message, AppendResponse)
    network.run(2.5)
    leader = network.leader()
    assert read(network, leader) is None
    noop = leader.raft.last_index
    network.lose = lambda sender, to, message: False
    network.run(1.0)
    assert leader.outcome(network.ids) == ReadReady(network.ids, noop)


def test_answers_to_rounds_before_the_read_do_not_confirm_it() -> None:
    network = Network("abc")
    leader = network.elect()
    old: list[tuple[str, str, Message]] = []

    def keep(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, HeartbeatResponse):
            old.append((sender, to, message))
            return True
        return False

    network.lose = keep
    network.run(0.5)
    network.ids += 1
    leader.handle(ReadIndex(network.ids))
    for sender, _, message in old:
        leader.handle(Received(sender, message))
    assert leader.outcome(network.ids) is None
    network.lose = lambda sender, to, message: False
    network.settle()
    assert isinstance(leader.outcome(network.ids), ReadReady)


def test_a_lost_round_is_asked_again() -> None:
    network = Network("abc")
    leader = network.elect()
    network.lose = lambda sender, to, message: isinstance(message, Heartbeat)
    assert read(network, leader) is None
    network.lose = lambda sender, to, message: False
    network.run(Timing().heartbeat_s)
    assert isinstance(leader.outcome(network.ids), ReadReady)


def test_many_reads_share_two_rounds() -> None:
    network = Network("abc")
    leader = network.elect()
    rounds: set[int] = set()

    def note(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, Heartbeat):
            rounds.add(message.round)
        return False

    network.lose = note
    for id in range(1000):
        leader.handle(ReadIndex(id))
    network.settle()
    assert len(rounds) == 2
    assert all(isinstance(leader.outcome(id), ReadReady) for id in (0, 500, 999))


def test_a_follower_gives_up_when_the_leader_does_not_answer() -> None:
    network = Network("abc")
    leader = network.elect()
    follower = follower_of(network, leader)
    network.lose = lambda sender, to, message: isinstance(message, ReadRequest)
    assert read(network, follower) is None
    network.run(Timing().election_max_s)
    outcome = follower.outcome(network.ids)
    assert isinstance(outcome, Refused)
    assert "did not answer in time" in outcome.reason


def test_a_follower_gives_up_when_the_leader_changes() -> None:
    network = Network("abc")
    leader = network.elect()
    follower = follower_of(network, leader)
    leader.crash()
    assert read(network, follower) is None
    network.run(3.0)
    outcome = follower.outcome(network.ids)
    assert isinstance(outcome, Refused)
    assert "the leader changed" in outcome.reason or "in time" in outcome.reason


def test_without_a_leader_a_read_is_refused() -> None:
    network = Network("abc")
    outcome = read(network, network["a"])
    assert isinstance(outcome, Refused)
    assert outcome.reason == "no leader is known"


def test_an_answer_from_another_than_the_leader_is_not_believed() -> None:
    network = Network("abc")
    leader = network.elect()
    follower, other = [host for host in network.hosts.values() if host is not leader]
    network.ids += 1
    follower.handle(ReadIndex(network.ids))
    lie = ReadResponse(group=GROUP, term=leader.raft.term, id=network.ids, index=0)
    follower.handle(Received(other.node, lie))
    assert follower.outcome(network.ids) is None
    other.handle(Received(follower.node, ReadRequest(group=GROUP, term=leader.raft.term, id=7)))
    refusal = network.messages[-1][2]
    assert isinstance(refusal, ReadResponse)
    assert "not the leader" in refusal.refused


def test_waiting_reads_are_bounded() -> None:
    network = Network("abc")
    leader = network.elect()
    network.cut(leader.node)
    for host in (leader, follower_of(network, leader)):
        for id in range(READS_LIMIT + 1):
            host.handle(ReadIndex(id))
        outcome = host.outcome(READS_LIMIT)
        assert isinstance(outcome, Refused)
        assert outcome.reason == f"{READS_LIMIT} reads wait already"


def test_reads_of_a_leader_that_steps_down_are_refused() -> None:
    network = Network("abc")
    leader = network.elect()
    network.cut(leader.node)
    assert read(network, leader) is None
    network.run(Timing().election_max_s + 0.1)
    outcome = leader.outcome(network.ids)
    assert isinstance(outcome, Refused)
    assert outcome.reason == "this node no longer leads"
