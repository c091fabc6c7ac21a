"""Logs become alike, what is committed stays, and one slow node holds nobody up."""

from __future__ import annotations

import pytest

from kos_cluster.core.raft import Accepted, Apply, Entry, Kind, Persisted, Propose, Received, Refused, Role, Timing
from kos_cluster.core.raft.leadership import COMMAND_LIMIT_BYTES, UNCOMMITTED_BYTES, UNCOMMITTED_LIMIT
from kos_cluster.core.raft.messages import Append, AppendResponse, Heartbeat, Message
from kos_cluster.core.raft.progress import APPEND_BYTES, INFLIGHT_BYTES, INFLIGHT_LIMIT, UNFILLED_INFLIGHT, Mode
from tests.core.raft.network import GROUP, Host, Network


def followers_of(network: Network, leader: Host) -> list[Host]:
    return [host for host in network.hosts.values() if host is not leader]


def appends(network: Network, to: str) -> list[Append]:
    return [message for _, node, message in network.messages if node == to and isinstance(message, Append)]


def test_a_proposal_is_applied_everywhere_in_order() -> None:
    network = Network("abc")
    leader = network.elect()
    for number in range(10):
        assert isinstance(network.propose(leader, b"%d" % number), Accepted)
    for host in network.hosts.values():
        assert host.commands == [b"cmd%d" % number for number in range(10)]


def test_followers_hear_of_a_commit_without_waiting_for_a_heartbeat() -> None:
    network = Network("abc")
    leader = network.elect()
    network.propose(leader, b"1")  # time stands still meanwhile
    assert {host.raft.applied for host in network.hosts.values()} == {leader.raft.last_index}


def test_the_answer_tells_where_the_command_went() -> None:
    network = Network("abc")
    leader = network.elect()
    outcome = network.propose(leader, b"1")
    assert isinstance(outcome, Accepted)
    entry = next(e for apply in leader.seen(Apply) for e in apply.entries if e.index == outcome.index)  # type: ignore[union-attr]
    assert (entry.term, entry.data) == (outcome.term, b"cmd1")


def test_another_node_refuses_and_names_the_leader() -> None:
    network = Network("abc")
    leader = network.elect()
    outcome = network.propose(followers_of(network, leader)[0], b"1")
    assert isinstance(outcome, Refused)
    assert outcome.leader == leader.node


def test_a_leader_counts_its_own_log_only_when_it_is_durable() -> None:
    network = Network("abc")
    leader = network.elect()
    b, c = followers_of(network, leader)
    network.cut(c.node)
    leader.handle(Propose(99, b"cmd1"))
    assert leader.pending_write is not None
    for message in appends(network, b.node):  # it leaves beside the leader's own write
        b.handle(Received(leader.node, message))
    b.finish_write()
    commit = leader.raft.commit
    for sender, to, message in list(network.messages):
        if to == leader.node:
            leader.handle(Received(sender, message))
    assert leader.raft.commit == commit
    leader.finish_write()
    assert leader.raft.commit == commit + 1


def test_an_acknowledgement_waits_for_the_disk_also_for_a_doubled_append() -> None:
    network = Network("abc")
    leader = network.elect()
    b = followers_of(network, leader)[0]
    leader.handle(Propose(99, b"cmd1"))
    (append,) = appends(network, b.node)
    network.messages.clear()
    b.handle(Received(leader.node, append))
    b.handle(Received(leader.node, append))
    assert network.messages == []
    b.finish_write()
    answers = [message for _, _, message in network.messages]
    assert [(a.index, a.rejected) for a in answers if isinstance(a, AppendResponse)] == [
        (leader.raft.last_index, False)
    ] * 2


def test_entries_of_an_older_term_are_not_committed_by_counting() -> None:
    """Figure 3.7 of the thesis: a majority may hold an older entry, and it may still be replaced."""
    network = Network("abc")
    leader = network.elect()
    b, c = followers_of(network, leader)
    network.lose = lambda sender, to, message: isinstance(message, AppendResponse)
    leader.handle(Propose(99, b"cmdold"))
    network.settle()
    assert leader.raft.commit < leader.raft.last_index  # stored everywhere, known nowhere
    old = leader.raft.last_index
    leader.crash()
    network.lose = lambda sender, to, message: (
        isinstance(message, Append) and any(entry.kind == Kind.NOOP for entry in message.entries)
    )
    network.run(3.0)
    new = network.leader()
    assert new in (b, c)
    assert new.raft.last_index == old + 1
    new.handle(Received((c if new is b else b).node, AppendResponse(group=GROUP, term=new.raft.term, index=old)))
    assert new.raft.commit < old
    network.lose = lambda sender, to, message: False
    network.run(3.0)
    assert new.commands == [b"cmdold"]


def test_a_log_that_went_another_way_is_repaired() -> None:
    network = Network("abc")
    old = network.elect()
    network.cut(old.node)
    for number in range(20):
        old.handle(Propose(1000 + number, b"cmdlost%d" % number))
    network.run(3.0)
    new = network.leader()
    assert new is not old
    for number in range(5):
        network.propose(new, b"%d" % number)
    network.heal()
    network.run(3.0)
    assert old.disk.entries == new.disk.entries
    assert old.commands == [b"cmd%d" % number for number in range(5)]


def test_a_far_divergence_is_repaired_in_few_messages() -> None:
    network = Network("abc")
    old = network.elect()
    network.cut(old.node)
    for number in range(500):
        old.handle(Propose(1000 + number, b"cmdlost"))
    network.run(3.0)
    new = network.leader()
    for _ in range(500):
        network.propose(new, b"kept")
    refusals = 0

    def count(sender: str, to: str, message: Message) -> bool:
        nonlocal refusals
        refusals += isinstance(message, AppendResponse) and message.rejected
        return False

    network.lose = count
    network.heal()
    network.run(3.0)
    assert old.disk.entries == new.disk.entries
    assert refusals <= 3


def test_a_lost_append_is_sent_again() -> None:
    network = Network("abc")
    leader = network.elect()
    b = followers_of(network, leader)[0]
    network.lose = lambda sender, to, message: to == b.node and isinstance(message, Append)
    network.propose(leader, b"1")
    assert b.commands == []
    network.lose = lambda sender, to, message: False
    network.run(1.0)
    assert b.commands == [b"cmd1"]


def test_doubled_and_reordered_messages_change_nothing() -> None:
    for seed in range(30):
        network = Network("abc", seed)
        leader = network.elect()
        seen: list[tuple[str, str, Message]] = []

        def remember(sender: str, to: str, message: Message, seen: list[tuple[str, str, Message]] = seen) -> bool:
            seen.append((sender, to, message))
            return False

        network.lose = remember
        for number in range(10):
            leader.handle(Propose(number, b"cmd%d" % number))
        network.settle()
        network.random.shuffle(seen)
        for sender, to, message in list(seen):
            network.deliver(sender, to, message)
        network.settle()
        assert leader.raft.role is Role.LEADER
        for host in network.hosts.values():
            assert host.commands == [b"cmd%d" % number for number in range(10)]


def test_small_entries_share_appends_while_some_are_under_way() -> None:
    network = Network("abc")
    leader = network.elect()
    b = followers_of(network, leader)[0]
    network.messages.clear()
    for number in range(50):
        leader.handle(Propose(number, b"cmd%d" % number))
    assert len(appends(network, b.node)) == UNFILLED_INFLIGHT
    network.settle()
    assert len(b.commands) == 50


def test_appends_under_way_are_bounded_in_number_and_bytes() -> None:
    network = Network("abc")
    leader = network.elect()
    b = followers_of(network, leader)[0]
    network.messages.clear()
    for number in range(12):
        leader.handle(Propose(number, b"cmd" + bytes(COMMAND_LIMIT_BYTES - 3)))
    sizes = [sum(len(entry.data) for entry in message.entries) for message in appends(network, b.node)]
    assert sum(sizes) <= INFLIGHT_BYTES + COMMAND_LIMIT_BYTES
    assert max(sizes) <= max(APPEND_BYTES, COMMAND_LIMIT_BYTES)
    assert len(sizes) <= INFLIGHT_LIMIT
    network.settle()
    assert len(b.commands) == 12


def test_a_silent_follower_gets_one_append_a_heartbeat_at_most() -> None:
    network = Network("abc")
    leader = network.elect()
    b = followers_of(network, leader)[0]
    b.crash()
    for number in range(30):
        network.propose(leader, b"%d" % number)
    sent: list[Append] = []

    def count(sender: str, to: str, message: Message) -> bool:
        if to == b.node and isinstance(message, Append):
            sent.append(message)
        return False

    network.lose = count
    network.run(3.0)
    assert len(sent) <= 3.0 / Timing().heartbeat_s
    b.start()
    network.run(2.0)
    assert len(b.commands) == 30


@pytest.mark.parametrize(
    ("size_bytes", "count", "reason"),
    [
        (COMMAND_LIMIT_BYTES + 1, 1, "are allowed"),
        (10, UNCOMMITTED_LIMIT + 1, "entries wait to be committed already"),
        (COMMAND_LIMIT_BYTES, UNCOMMITTED_BYTES // COMMAND_LIMIT_BYTES + 1, "bytes wait to be committed already"),
    ],
)
def test_what_is_over_a_limit_is_refused_with_a_reason(size_bytes: int, count: int, reason: str) -> None:
    network = Network("abc")
    leader = network.elect()
    network.cut(leader.node)
    for number in range(count):
        leader.handle(Propose(number, bytes(size_bytes)))
    outcome = leader.outcome(count - 1)
    assert isinstance(outcome, Refused)
    assert reason in outcome.reason
    if count > 1:
        assert isinstance(leader.outcome(count - 2), Accepted)
        network.heal()
        network.settle()
        network.run(0.5)
        assert isinstance(network.propose(leader, b"again"), Accepted)


def test_a_learner_hears_less_often_and_gets_entries_at_once() -> None:
    network = Network("abc")
    leader = network.elect()
    network.join("x")
    from kos_cluster.core.raft import AddLearner, ChangeConfig

    network.request(leader, lambda id: ChangeConfig(id, AddLearner("x")))
    network.run(1.0)
    beats = {"x": 0, "voters": 0}

    def count(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, Heartbeat):
            beats["x" if to == "x" else "voters"] += 1
        return False

    network.lose = count
    network.run(10.0)
    assert 9 <= beats["x"] <= 11
    assert beats["voters"] >= 2 * 60
    network.propose(leader, b"1")
    assert network["x"].commands == [b"cmd1"]
    assert network["x"].raft.leader == leader.node
    modes = {follower.node: (follower.voter, follower.mode, follower.behind) for follower in leader.raft.followers()}
    assert modes["x"] == (False, Mode.REPLICATE, 0)


def test_only_what_agrees_with_the_leader_is_committed() -> None:
    network = Network("abc")
    host = network["a"]
    ours = tuple(Entry(index, 2, Kind.COMMAND, b"cmd") for index in (2, 3, 4))
    host.handle(Received("b", Append(group=GROUP, term=2, prev_index=1, prev_term=1, commit=1, entries=ours)))
    theirs = Append(group=GROUP, term=3, prev_index=1, prev_term=1, commit=4, entries=ours[:1])
    host.handle(Received("c", theirs))
    assert host.raft.commit == 2  # of 3 and 4 the leader of term 3 has said nothing yet


def test_a_write_that_was_cut_off_since_vouches_for_nothing() -> None:
    network = Network("abc")
    host = network["a"]
    old = Entry(2, 2, Kind.COMMAND, b"cmdold")
    new = Entry(2, 3, Kind.NOOP, b"")
    host.handle(Received("b", Append(group=GROUP, term=2, prev_index=1, prev_term=1, commit=1, entries=(old,))))
    first = host.pending_write
    assert first is not None
    host.handle(Received("c", Append(group=GROUP, term=3, prev_index=1, prev_term=1, commit=2, entries=(new,))))
    host.finish_write()  # of the old entry
    assert host.raft.applied == 1
    host.finish_write()
    assert host.raft.applied == 2
    assert host.raft.handle(Persisted(first.number), network.now) == []
