"""Compaction, and bringing up a node from a snapshot in parts, whatever restarts in between."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from kos_cluster.core.raft import (
    AddLearner,
    ChangeConfig,
    Compact,
    Entry,
    Ignored,
    Kind,
    Membership,
    Promote,
    Received,
    RestoreSnapshot,
)
from kos_cluster.core.raft.messages import (
    Append,
    AppendResponse,
    Message,
    SnapshotChunk,
    SnapshotResponse,
)
from kos_cluster.core.raft.progress import Mode
from tests.core.raft.network import GROUP, Host, Network


@pytest.fixture(autouse=True)
def _small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few entries make a snapshot of several parts."""
    monkeypatch.setattr("kos_cluster.core.raft.log.TAIL_ENTRIES", 4)
    monkeypatch.setattr("kos_cluster.core.raft.replication.SNAPSHOT_CHUNK_BYTES", 100)


def compacted(seed: int = 1) -> tuple[Network, Host]:
    """Three voters, of which one is down and lacks what the others have compacted."""
    network = Network("abc", seed)
    leader = network.elect()
    next(host for host in network.hosts.values() if host is not leader).crash()
    for number in range(60):
        network.propose(leader, b"%d" % number)
    leader.compact()
    network.settle()
    return network, leader


def down(network: Network) -> Host:
    return next(host for host in network.hosts.values() if not host.up)


def chunks_to(network: Network, node: str) -> list[SnapshotChunk]:
    """What is sent from now on."""
    sent: list[SnapshotChunk] = []

    def note(sender: str, to: str, message: Message) -> bool:
        if to == node and isinstance(message, SnapshotChunk):
            sent.append(message)
        return False

    network.lose = note
    return sent


def creep(network: Network, done: Callable[[], bool]) -> None:
    """One message, write or tick after the other, until `done`."""
    while not done():
        writing = [host for host in network.hosts.values() if host.up and host.pending_write]
        if network.messages:
            network.deliver(*network.messages.pop(0))
        elif writing:
            writing[0].finish_write()
        else:
            up = [host for host in network.hosts.values() if host.up]
            network.now = min(host.raft.deadline for host in up)
            min(up, key=lambda host: host.raft.deadline).tick()


def test_compaction_keeps_a_tail_and_survives_a_restart() -> None:
    _, leader = compacted()
    snapshot = leader.disk.snapshot
    assert snapshot is not None
    assert snapshot.index == leader.raft.applied
    assert min(leader.disk.entries) == snapshot.index - 3
    before = leader.applied
    leader.crash()
    leader.start()
    assert leader.applied == before
    assert leader.raft.membership == Membership(("a", "b", "c"))
    assert isinstance(leader.seen(RestoreSnapshot)[-1], RestoreSnapshot)


def test_a_follower_within_the_tail_needs_no_snapshot() -> None:
    network = Network("abc")
    leader = network.elect()
    late = next(host for host in network.hosts.values() if host is not leader)
    network.lose = lambda sender, to, message: to == late.node and isinstance(message, Append)
    for number in range(3):
        network.propose(leader, b"%d" % number)
    leader.compact()
    sent = chunks_to(network, late.node)
    network.run(1.0)
    assert late.commands == leader.commands
    assert sent == []


def test_a_follower_too_far_behind_gets_the_snapshot_in_bounded_parts() -> None:
    network, leader = compacted()
    late = down(network)
    sent = chunks_to(network, late.node)
    late.start()
    network.run(2.0)
    assert late.applied == leader.applied
    assert len(sent) > 3
    assert all(len(chunk.data) <= 100 for chunk in sent)
    network.propose(leader, b"after")
    assert late.commands == leader.commands


def test_a_snapshot_counts_only_when_it_is_durable() -> None:
    network, leader = compacted()
    late = down(network)
    late.start()
    snapshot = leader.disk.snapshot
    assert snapshot is not None
    whole = SnapshotChunk(
        group=GROUP,
        term=leader.raft.term,
        index=snapshot.index,
        index_term=snapshot.term,
        membership=snapshot.membership,
        offset=0,
        total_bytes=len(snapshot.data),
        data=snapshot.data,
    )
    network.messages.clear()
    late.handle(Received(leader.node, whole))
    assert not [message for _, _, message in network.messages if isinstance(message, AppendResponse)]
    assert not [e for e in late.effects if isinstance(e, RestoreSnapshot)]
    late.finish_write()
    assert [message.index for _, _, message in network.messages if isinstance(message, AppendResponse)] == [
        snapshot.index
    ]
    assert late.applied == leader.applied


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_follower_that_restarts_in_between_gets_it_from_the_start(at: int) -> None:
    network, leader = compacted()
    late = down(network)
    sent = chunks_to(network, late.node)
    late.start()
    creep(network, lambda: len(sent) == at)
    assert late.raft.last_index == 2
    late.crash()
    network.settle()
    late.start()
    network.run(4.0)
    assert late.applied == leader.applied


def test_a_new_leader_starts_its_own_snapshot_over() -> None:
    network, leader = compacted()
    late = down(network)
    other = next(host for host in network.hosts.values() if host not in (leader, late))
    network.propose(leader, b"more")
    other.compact()
    network.settle()
    sent = chunks_to(network, late.node)
    late.start()
    creep(network, lambda: len(sent) == 3)
    assert late.raft.last_index == 2
    leader.crash()
    network.run(4.0)
    assert network.leader() is other
    assert late.applied == other.applied
    assert {chunk.index for chunk in sent} == {sent[0].index, other.disk.snapshot.index}  # type: ignore[union-attr]


def test_parts_that_are_lost_doubled_and_reordered_still_make_the_snapshot() -> None:
    for seed in range(30):
        network, leader = compacted(seed)
        late = down(network)
        late.start()

        def unruly(sender: str, to: str, message: Message, network: Network = network) -> bool:
            random = network.random
            if isinstance(message, SnapshotChunk | SnapshotResponse | AppendResponse) and random.random() < 0.5:
                if random.random() < 0.5:
                    network.messages.append((sender, to, message))
                return True
            return False

        network.lose = unruly
        network.run(20.0)
        network.lose = lambda sender, to, message: False
        network.run(5.0)
        assert late.applied == leader.applied, f"seed {seed}"


def test_a_snapshot_overtaken_by_compaction_is_followed_by_the_next() -> None:
    network, leader = compacted()
    late = down(network)
    sent = chunks_to(network, late.node)
    late.start()
    creep(network, lambda: len(sent) == 2)
    assert late.raft.last_index == 2
    note, network.lose = network.lose, lambda sender, to, message: to == late.node
    for number in range(30):
        network.propose(leader, b"more%d" % number)
    leader.compact()
    network.settle()
    network.lose = note
    network.run(3.0)
    assert {chunk.index for chunk in sent} == {sent[0].index, leader.disk.snapshot.index}  # type: ignore[union-attr]
    assert late.applied == leader.applied


def test_a_learner_joins_from_a_snapshot_and_is_promoted() -> None:
    network, leader = compacted()
    network.join("x")
    network.request(leader, lambda id: ChangeConfig(id, AddLearner("x")))
    network.run(3.0)
    joined = network["x"]
    assert joined.applied == leader.applied
    assert joined.raft.membership.learners == ("x",)
    down(network).start()
    network.run(2.0)
    network.request(leader, lambda id: ChangeConfig(id, Promote("x")))
    network.run(2.0)
    assert joined.raft.membership.voters == ("a", "b", "c", "x")
    joined.crash()
    joined.start()
    assert joined.raft.membership.voters == ("a", "b", "c", "x")


def test_a_snapshot_of_what_is_in_the_log_already_only_commits_it() -> None:
    network = Network("abc")
    leader = network.elect()
    b = next(host for host in network.hosts.values() if host is not leader)
    network.lose = lambda sender, to, message: to == leader.node and isinstance(message, AppendResponse)
    network.propose(leader, b"1")
    network.lose = lambda sender, to, message: False
    index = b.raft.last_index
    assert b.raft.commit < index
    chunk = SnapshotChunk(
        group=GROUP,
        term=leader.raft.term,
        index=index,
        index_term=leader.raft.term,
        membership=leader.raft.membership,
        offset=0,
        total_bytes=0,
        data=b"",
    )
    b.handle(Received(leader.node, chunk))
    assert b.raft.commit == b.raft.applied == index
    assert b.disk.snapshot is None
    assert not [e for e in b.effects if isinstance(e, RestoreSnapshot)]


def test_a_snapshot_holds_the_membership_that_was_in_force_where_it_ends() -> None:
    network, leader = compacted()
    network.propose(leader, b"1")
    network.lose = lambda sender, to, message: isinstance(message, AppendResponse)
    network.request(leader, lambda id: ChangeConfig(id, AddLearner("x")))
    assert leader.raft.membership.learners == ("x",)
    leader.compact()
    network.settle()
    snapshot = leader.disk.snapshot
    assert snapshot is not None
    assert snapshot.index == leader.raft.applied < leader.raft.last_index
    assert snapshot.membership == Membership(("a", "b", "c"))
    leader.crash()
    leader.start()
    assert leader.raft.membership.learners == ("x",)  # from the entry after it


def test_a_compaction_of_what_is_not_applied_is_refused() -> None:
    _, leader = compacted()
    snapshot = leader.disk.snapshot
    for index in (leader.raft.applied + 1, leader.raft.applied, 0):
        leader.handle(Compact(index, b"x"))
        assert isinstance(leader.effects[-1], Ignored)
    assert leader.disk.snapshot == snapshot


def test_a_snapshot_that_could_not_travel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, leader = compacted()
    network.propose(leader, b"1")
    before = leader.disk.snapshot
    monkeypatch.setattr("kos_cluster.core.raft.state.SNAPSHOT_LIMIT_BYTES", 10)
    leader.compact()
    assert "cannot travel; 10 are allowed" in leader.effects[-1].why  # type: ignore[union-attr]
    assert leader.disk.snapshot == before


def test_parts_are_dropped_when_the_entries_came_another_way() -> None:
    network, leader = compacted()
    late = down(network)
    sent = chunks_to(network, late.node)
    late.start()
    creep(network, lambda: len(sent) == 3)
    following = late.raft._following
    creep(network, lambda: len(following._parts) > 0)
    entries = tuple(leader.raft._state.log.between(leader.raft.first_index, leader.raft.last_index))
    head = Append(group=GROUP, term=leader.raft.term, prev_index=2, prev_term=2, commit=0)
    older = tuple(Entry(i, t, Kind.COMMAND, d) for i, t, d in leader.applied if 2 < i < entries[0].index)
    everything = msgspec.structs.replace(head, entries=older + entries, commit=leader.raft.commit)
    late.handle(Received(leader.node, everything))
    assert late.raft.commit == leader.raft.commit
    assert following._parts == b""


def test_an_empty_state_travels_too() -> None:
    network, leader = compacted()
    network.propose(leader, b"last")
    network.run(1.0)
    leader.handle(Compact(leader.raft.applied, b""))
    network.settle()
    network.join("x")
    effects = network["x"].effects
    network.request(leader, lambda id: ChangeConfig(id, AddLearner("x")))
    network.run(2.0)
    assert [e.snapshot.data for e in effects if isinstance(e, RestoreSnapshot)] == [b""]
    mode = {follower.node: follower.mode for follower in leader.raft.followers()}["x"]
    assert mode is Mode.REPLICATE


def test_a_slow_link_gets_no_second_stream_of_parts() -> None:
    """A part is sent again only when heartbeats are answered long after it, and an old answer moves nothing."""
    network, leader = compacted()
    late = down(network)
    late.start()
    held: list[tuple[str, str, Message]] = []

    def hold(sender: str, to: str, message: Message) -> bool:
        if isinstance(message, SnapshotChunk):
            held.append((sender, to, message))
            return True
        return False

    network.lose = hold
    network.run(3.0)
    assert 1 <= len(held) <= 3.0 / 0.45 + 1
    first = held[0][2]
    held.clear()
    network.lose = lambda sender, to, message: False
    late.handle(Received(leader.node, first))
    late.handle(Received(leader.node, first))
    answers = [m for m in network.messages if isinstance(m[2], SnapshotResponse)]
    network.messages.clear()
    for sender, _, message in answers:
        leader.handle(Received(sender, message))
    assert len([m for m in network.messages if isinstance(m[2], SnapshotChunk)]) == 1
