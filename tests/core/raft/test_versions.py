"""Nodes of neighbouring versions work in one group, so that they are upgraded one by one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kos_cluster.core.raft import Propose
from kos_cluster.core.raft.messages import WIRE_VERSION, AppendResponse, Heartbeat, Message
from tests.core.raft.network import GROUP, Network

SINCE_2 = ("hint_index", "hint_term")  # the fields that a node of version 1 neither sends nor knows


def as_version_1(message: Message) -> Message:
    """What passes a node of version 1, through the bytes of the wire."""
    fields: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    for name in (*SINCE_2, "version"):
        fields.pop(name, None)
    old: Message = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Message)
    assert old.version == 1
    return old


def with_old_nodes(network: Network, *old: str) -> None:
    """From now on these nodes are of version 1."""
    deliver = network.deliver

    def translated(sender: str, to: str, message: Message) -> None:
        deliver(sender, to, as_version_1(message) if sender in old or to in old else message)

    network.deliver = translated  # type: ignore[method-assign]


def test_fields_of_a_later_version_are_passed_over() -> None:
    fields = {"is": "beat?", "group": "g", "term": 3, "version": WIRE_VERSION + 1, "commit": 7, "colour": "blue"}
    message: Message = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=Message)
    assert message == Heartbeat(group="g", term=3, version=WIRE_VERSION + 1, commit=7)


@pytest.mark.parametrize("old", ["a", "ab", "abc"])
@pytest.mark.parametrize("seed", range(4))
def test_a_group_of_two_versions_elects_repairs_and_commits(old: str, seed: int) -> None:
    network = Network("abc", seed)
    with_old_nodes(network, *old)
    first = network.elect()
    network.cut(first.node)
    for number in range(15):
        first.handle(Propose(1000 + number, b"cmdlost"))
    network.run(3.0)
    second = network.leader()
    assert second is not first
    for number in range(15):
        network.propose(second, b"%d" % number)
    network.heal()
    network.run(5.0)
    for host in network.hosts.values():
        assert host.commands == [b"cmd%d" % number for number in range(15)]


def test_a_group_is_upgraded_one_by_one() -> None:
    network = Network("abc")
    plain = network.deliver
    for upgraded in ("", "a", "ab", "abc"):
        network.deliver = plain  # type: ignore[method-assign]
        with_old_nodes(network, *(node for node in "abc" if node not in upgraded))
        if upgraded:
            host = network[upgraded[-1]]
            host.crash()
            network.run(1.0)
            host.start()
        network.run(4.0)
        network.propose(network.leader(), upgraded.encode())
    assert network.leader().commands == [b"cmd", b"cmda", b"cmdab", b"cmdabc"]


def test_without_hints_a_leader_steps_back_one_by_one() -> None:
    """The old answer must not be read as a hint that the log is empty."""
    network = Network("abc")
    leader = network.elect()
    for number in range(10):
        network.propose(leader, b"%d" % number)
    peer = next(node for node in "abc" if node != leader.node)
    progress = leader.raft._office.replication.peers[peer]  # type: ignore[union-attr]
    progress.match_index = 0
    progress.probe()
    progress.next_index = 10
    response = AppendResponse(group=GROUP, term=leader.raft.term, index=9, rejected=True)
    network.deliver(peer, leader.node, response)
    assert progress.next_index == 9
    network.deliver(peer, leader.node, msgspec.structs.replace(response, version=2, index=8))
    assert progress.next_index == 1
