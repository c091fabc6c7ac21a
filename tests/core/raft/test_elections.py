"""Who leads: one node a term, found soon, and not disturbed by those that were cut off."""

from __future__ import annotations

import msgspec

from kos_cluster.core.raft import (
    Entry,
    HardState,
    Kind,
    Persisted,
    Received,
    Role,
    RoleChanged,
    Send,
    Timing,
    WriteFailed,
)
from kos_cluster.core.raft.messages import (
    Append,
    Heartbeat,
    HeartbeatResponse,
    Message,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from tests.core.raft.network import GROUP, Network

TIMING = Timing()


def vote_request(term: int, last_index: int = 1, last_term: int = 1, **more: bool) -> VoteRequest:
    return VoteRequest(group=GROUP, term=term, last_index=last_index, last_term=last_term, **more)


def replies(network: Network, kind: type[Message]) -> list[Message]:
    return [message for _, _, message in network.messages if isinstance(message, kind)]


def test_one_node_leads_itself_once_its_vote_is_durable() -> None:
    network = Network("a")
    host = network["a"]
    network.now = host.raft.deadline
    host.tick()
    assert host.raft.role is Role.CANDIDATE
    network.settle()
    assert host.raft.role is Role.LEADER
    assert host.raft.commit == host.raft.last_index == 2


def test_a_group_elects_one_leader_and_all_follow_it() -> None:
    for seed in range(20):
        network = Network("abcde", seed)
        leader = network.elect()
        assert {host.raft.leader for host in network.hosts.values()} == {leader.node}
        assert {host.raft.term for host in network.hosts.values()} == {leader.raft.term}
        assert leader.seen(RoleChanged)[-1] == RoleChanged(Role.LEADER, leader.raft.term, leader.node)


def test_a_lost_leader_is_replaced_within_the_promised_time() -> None:
    """On a perfect network, that is: two timeouts at most, one for nearly all."""
    times = []
    for seed in range(60):
        network = Network("abcde", seed)
        network.elect().crash()
        start = network.now
        while not any(h.up and h.raft.role is Role.LEADER for h in network.hosts.values()):
            network.run(0.01)
        times.append(network.now - start)
    times.sort()
    assert times[len(times) // 2] <= 1.0, times
    assert times[-1] <= 2.0, times


def test_a_vote_leaves_only_when_it_is_durable() -> None:
    network = Network("abc")
    host = network["a"]
    host.handle(Received("b", vote_request(2)))
    assert replies(network, VoteResponse) == []
    host.finish_write()
    assert host.disk.hard_state == HardState(2, "b", 1)
    assert [reply.granted for reply in replies(network, VoteResponse)] == [True]  # type: ignore[attr-defined]


def test_a_vote_survives_a_crash() -> None:
    network = Network("abc")
    host = network["a"]
    host.handle(Received("b", vote_request(2)))
    host.finish_write()
    host.crash()
    host.start()
    network.messages.clear()
    host.handle(Received("c", vote_request(2)))
    host.finish_write()
    assert [reply.granted for reply in replies(network, VoteResponse)] == [False]  # type: ignore[attr-defined]
    host.handle(Received("b", vote_request(2)))
    assert [reply.granted for reply in replies(network, VoteResponse)] == [False, True]  # type: ignore[attr-defined]


def test_a_candidate_does_not_count_its_own_vote_before_it_is_durable() -> None:
    network = Network("abc")
    host = network["a"]
    network.now = host.raft.deadline
    host.tick()
    host.handle(Received("b", VoteResponse(group=GROUP, term=2, granted=True, pre=True)))
    assert host.raft.role is Role.CANDIDATE
    host.handle(Received("b", VoteResponse(group=GROUP, term=2, granted=True)))
    assert host.raft.role is Role.CANDIDATE
    host.finish_write()
    assert host.raft.role is Role.LEADER


def test_an_older_write_does_not_make_the_own_vote_durable() -> None:
    network = Network("a")
    host = network.elect()
    host.crash()
    host.start()
    network.join("x")
    strange = Append(group=GROUP, term=2, prev_index=2, prev_term=2, commit=2, entries=(Entry(3, 2, Kind.COMMAND),))
    host.handle(Received("x", strange))
    assert host.pending_write is not None
    network.now = host.raft.deadline
    host.tick()
    host.finish_write()  # the entry, not yet the vote
    assert host.disk.hard_state.term == 2
    assert host.raft.role is Role.CANDIDATE
    host.finish_write()
    assert host.raft.role is Role.LEADER


def test_an_older_log_gets_no_vote() -> None:
    network = Network("abc")
    leader = network.elect()
    network.propose(leader, b"1")
    network.run(1.0)
    follower = next(host for host in network.hosts.values() if host is not leader)
    network.now += 2.0
    last_index, last_term, term = follower.raft.last_index, follower.raft.term, follower.raft.term + 1
    for index, log_term, granted in (
        (last_index - 1, last_term, False),
        (last_index + 9, last_term - 1, False),
        (last_index, last_term, True),
    ):
        network.messages.clear()
        follower.handle(Received(leader.node, vote_request(term, index, log_term, pre=True)))
        assert [reply.granted for reply in replies(network, VoteResponse)] == [granted]  # type: ignore[attr-defined]


def test_a_node_that_was_cut_off_raises_no_terms_and_disturbs_nobody() -> None:
    network = Network("abc")
    leader = network.elect()
    term = leader.raft.term
    lonely = next(host for host in network.hosts.values() if host is not leader)
    network.cut(lonely.node)
    network.run(30.0)
    assert lonely.raft.role is Role.PRE_CANDIDATE
    assert lonely.raft.term == term
    network.heal()
    network.run(3.0)
    assert network.leader() is leader
    assert leader.raft.term == term
    assert lonely.raft.leader == leader.node


def test_who_hears_a_leader_gives_no_vote_not_even_for_a_higher_term() -> None:
    network = Network("abc")
    leader = network.elect()
    follower = next(host for host in network.hosts.values() if host is not leader)
    network.messages.clear()
    follower.handle(Received("c", vote_request(99, 99, 99)))
    follower.handle(Received("c", vote_request(99, 99, 99, pre=True)))
    leader.handle(Received("c", vote_request(99, 99, 99)))
    assert network.messages == []
    assert follower.raft.term == leader.raft.term == 2
    assert leader.raft.role is Role.LEADER


def test_a_leader_without_a_quorum_steps_down_within_an_election_timeout() -> None:
    network = Network("abcde")
    leader = network.elect()
    others = [node for node in network.hosts if node != leader.node]
    network.cut(leader.node, others[0])
    network.run(TIMING.election_max_s + 0.01)
    assert leader.raft.role is not Role.LEADER
    assert RoleChanged(Role.FOLLOWER, 2, None) in leader.effects


def test_a_leader_with_a_quorum_stays() -> None:
    network = Network("abcde")
    leader = network.elect()
    others = [node for node in network.hosts if node != leader.node]
    network.cut(*others[:2])
    network.run(10.0)
    assert leader.raft.role is Role.LEADER


def test_a_leader_that_only_sends_steps_down_and_another_follows() -> None:
    network = Network("abc")
    leader = network.elect()
    network.cuts = {(node, leader.node) for node in network.hosts}
    network.run(5.0)
    assert leader.raft.role is not Role.LEADER
    assert network.leader().raft.term > 2


def test_a_leader_of_an_older_term_is_told_and_steps_down() -> None:
    network = Network("abc")
    leader = network.elect()
    network.settle()
    follower = next(host for host in network.hosts.values() if host is not leader)
    follower.disk.hard_state = HardState(9, None, follower.raft.commit)
    follower.crash()
    follower.start()
    network.messages.clear()
    follower.handle(Received(leader.node, Heartbeat(group=GROUP, term=2, commit=0)))
    assert [reply.term for reply in replies(network, HeartbeatResponse)] == [9]
    network.run(5.0)
    assert network.leader().raft.term > 9


def test_without_a_vote_nobody_stands_for_election() -> None:
    network = Network("abc")
    network.elect()
    learner = network.join("x")
    network.run(10.0)
    assert learner.raft.role is Role.FOLLOWER
    assert not learner.seen(RoleChanged)
    learner.handle(Received("a", TimeoutNow(group=GROUP, term=2)))
    assert learner.raft.role is Role.FOLLOWER


def test_late_and_doubled_votes_make_no_second_leader() -> None:
    for seed in range(30):
        network = Network("abc", seed)
        seen: list[tuple[str, str, Message]] = []

        def remember(sender: str, to: str, message: Message, seen: list[tuple[str, str, Message]] = seen) -> bool:
            seen.append((sender, to, message))
            return False

        network.lose = remember
        network.elect().crash()
        network.run(3.0)
        network.random.shuffle(seen)
        for sender, to, message in seen[:200]:
            network.deliver(sender, to, message)  # Truth refuses a second leader of a term
        network.settle()


def test_a_disk_that_takes_no_write_makes_the_node_hand_over_and_halt() -> None:
    network = Network("abc")
    leader = network.elect()
    leader.handle(WriteFailed("the disk is full"))
    assert leader.raft.halted == "the disk is full"
    assert leader.raft.role is Role.FOLLOWER
    assert leader.raft.deadline == float("inf")
    leader.up = False
    network.run(0.1)
    assert network.leader() is not leader


def test_a_halted_node_says_so_and_does_nothing() -> None:
    network = Network("abc")
    host = network["a"]
    host.handle(WriteFailed("the disk is full"))
    outcome = network.propose(host, b"1")
    assert "halted: the disk is full" in msgspec.structs.asdict(outcome)["reason"]  # type: ignore[arg-type]
    assert host.raft.tick(1e9) == []
    assert host.raft.handle(Received("b", vote_request(9)), 1e9) == []
    assert host.raft.handle(Persisted(1), 1e9) == []


def test_a_clock_that_goes_back_stops_nothing() -> None:
    network = Network("abc")
    leader = network.elect()
    effects = leader.raft.tick(-1000.0)
    assert leader.raft.role is Role.LEADER
    assert all(isinstance(effect, Send) for effect in effects)


def test_two_leaders_of_one_term_are_told_apart_from_late_messages() -> None:
    network = Network("abc")
    leader = network.elect()
    followers = [host for host in network.hosts.values() if host is not leader]
    append = Append(group=GROUP, term=2, prev_index=1, prev_term=1, commit=1)
    followers[0].handle(Received(followers[1].node, append))
    assert "claims to lead in term 2" in followers[0].effects[-1].why  # type: ignore[union-attr]
    leader.handle(Received(followers[1].node, append))
    assert "claims to lead in term 2" in leader.effects[-1].why  # type: ignore[union-attr]
