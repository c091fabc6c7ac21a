"""Groups under lost, doubled and reordered messages, crashes and changes: Raft's invariants hold at every step, and the
group goes on once it is left alone. A failure names its seed."""

from __future__ import annotations

from random import Random

import pytest

from kos_cluster.core.raft import (
    AddLearner,
    ChangeConfig,
    Demote,
    Event,
    Promote,
    Propose,
    ReadIndex,
    Remove,
    Role,
    Transfer,
)
from tests.core.raft.network import Network

SEEDS_A_CASE = 100
STEPS = 500


def some_message(network: Network, random: Random) -> None:
    """Deliver any message under way; often lose it, or keep a copy."""
    if not network.messages:
        return
    place = random.randrange(min(len(network.messages), 12))
    message = network.messages[place] if random.random() < 0.1 else network.messages.pop(place)
    if random.random() > 0.1:
        network.deliver(*message)


def some_change(network: Network, random: Random) -> Event:
    node = random.choice(list(network.hosts))
    network.ids += 1
    change = random.choice([AddLearner, Promote, Demote, Remove])(node)
    return ChangeConfig(network.ids, change)


def some_request(network: Network, random: Random) -> None:
    """A request to any node, mostly one that leads."""
    up = [host for host in network.hosts.values() if host.up]
    leaders = [host for host in up if host.raft.role is Role.LEADER]
    if not up:
        return
    host = random.choice(leaders if leaders and random.random() < 0.7 else up)
    network.ids += 1
    choice = random.random()
    if choice < 0.5:
        host.handle(Propose(network.ids, b"cmd%d" % network.ids))
    elif choice < 0.7:
        host.handle(ReadIndex(network.ids))
    elif choice < 0.74:
        host.handle(Transfer(network.ids, random.choice(list(network.hosts))))
    elif choice < 0.85:
        host.handle(some_change(network, random))
    else:
        host.compact()


def step(network: Network, random: Random) -> None:
    host = random.choice(list(network.hosts.values()))
    choice = random.random()
    if choice < 0.55:
        some_message(network, random)
    elif choice < 0.8:
        host.finish_write()
    elif choice < 0.86:
        network.now += random.uniform(0, 0.2)
        for each in network.hosts.values():
            if each.up and random.random() < 0.8:
                each.tick()
    elif choice < 0.985 and host.up:
        some_request(network, random)
    elif host.up and random.random() < 0.5:
        host.crash()
    elif not host.up:
        host.start()


@pytest.mark.parametrize("voters", [1, 3, 5])
def test_invariants_hold_and_the_group_recovers(voters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kos_cluster.core.raft.log.TAIL_ENTRIES", 3)
    monkeypatch.setattr("kos_cluster.core.raft.replication.SNAPSHOT_CHUNK_BYTES", 64)
    monkeypatch.setattr("kos_cluster.core.raft.config.CAUGHT_UP_ENTRIES", 2)
    for seed in range(SEEDS_A_CASE):
        try:
            survive(voters, seed)
        except Exception as error:
            error.add_note(f"voters={voters} seed={seed}")
            raise


def survive(voters: int, seed: int) -> None:
    random = Random(seed)
    network = Network([f"n{i}" for i in range(voters)], seed)
    for i in range(2):
        network.join(f"x{i}")
    if seed % 2:
        network.elect()
    for _ in range(STEPS):
        step(network, random)
    for host in network.hosts.values():
        if not host.up:
            host.start()
    network.run(12.0)
    leader = network.leader()
    network.propose(leader, b"last")
    network.run(3.0)
    leader = network.leader()
    for node in leader.raft.membership.members:
        assert network[node].commands[-1] == b"cmdlast", f"{node} did not follow"
        assert network[node].applied == leader.applied
    assert not network.halted()
