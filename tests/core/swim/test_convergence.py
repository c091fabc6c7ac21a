"""Whatever happened, in the end all agree: after joins, partitions, restarts, lost gossip and forgotten members."""

from __future__ import annotations

import random
from functools import partial

import msgspec
import pytest

from kos_cluster.core.records import MemberState
from kos_cluster.core.swim import (
    LAN,
    Ack,
    Dead,
    Entry,
    Gossip,
    Heard,
    Join,
    Leave,
    MemberChanged,
    Ping,
    Received,
    Removed,
    Send,
    Suspect,
    Swim,
    SyncData,
    SyncDigest,
    SyncRequest,
    UpdateSelf,
    Why,
    table,
)
from kos_cluster.core.swim.messages import GOSSIP_LIMIT_BYTES, SYNC_LIMIT_BYTES
from tests.core.swim.harness import Net, known, machine, member, record, sends, sign, verify

ALIVE, DEAD, LEFT = MemberState.ALIVE, MemberState.DEAD, MemberState.LEFT


def agree(net: Net, within_s: float) -> float:
    """Run until all agree; returns how long it took."""
    began = net.now
    while not net.agreed():
        assert net.now - began <= within_s, f"seed {net.seed}: no agreement after {within_s} s"
        net.run(0.5)
    return net.now - began


@pytest.mark.parametrize("seed", range(3))
def test_nodes_that_join_through_one_seed_know_each_other(seed: int):
    net = Net(20, seed, acquainted=False)
    for number in range(1, 20):
        net.join(number, 0)
        net.run(0.05)
    assert agree(net, 10.0) < 6.0
    assert not net.swims[0].ignored[Why.FORGED]


def test_a_seed_that_is_not_up_yet_is_tried_again():
    net = Net(2, acquainted=False)
    net.crash(0)
    net.join(1, 0)
    net.run(20.0)
    net.start(0)
    agree(net, 3.0)


@pytest.mark.parametrize("seed", range(5))
def test_a_member_that_is_held_dead_and_is_heard_is_back_at_once(seed: int):
    """Whatever it says: the links carry more than gossip, and some of it comes sooner."""
    net = Net(3, seed)
    net.cut = lambda a, b: 0 in (a, b)
    net.run(40.0)
    assert net.all_see(0) == {DEAD}
    net.cut = lambda a, b: False
    net.handle(1, Heard("id0"))
    assert agree(net, 2.0) <= 2.0
    assert not sends(net.swims[1].handle(Heard("id0"), net.now), SyncRequest), "who is alive is not asked"


def test_a_removed_member_is_not_asked_when_it_is_heard():
    swim = machine()
    swim.handle(Removed("id1"), 1.0)
    assert not sends(swim.handle(Heard("id1"), 100.0), SyncRequest)


@pytest.mark.parametrize(("count", "seed"), [(8, 1), (8, 2), (24, 3)])
def test_a_healed_partition_rejoins_by_itself(count: int, seed: int):
    net = Net(count, seed)
    net.run(2.0)
    half = count // 2
    net.cut = lambda a, b: (a < half) != (b < half)
    net.run(60.0)
    assert {net.states(0)[f"id{n}"] for n in range(half, count)} == {DEAD}
    assert {net.states(count - 1)[f"id{n}"] for n in range(half)} == {DEAD}
    net.cut = lambda a, b: False
    agree(net, 60.0)
    healed = net.now
    net.run(30.0)
    assert net.agreed()
    assert not [
        e for at, _, e in net.trace if at > healed and getattr(e, "was", None) is ALIVE and e.member.state is DEAD
    ]


def test_dead_peers_are_tried_for_ever():
    net = Net(4)
    net.cut = lambda a, b: 3 in (a, b)
    net.run(2 * 86400 / 24)  # two hours
    net.cut = lambda a, b: False
    agree(net, 40.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_node_that_hears_nothing_kills_nobody_else_and_returns(seed: int):
    net = Net(8, seed)
    net.run(2.0)
    net.cut = lambda a, b: b == 5
    net.run(60.0)
    assert net.all_see(5) <= {DEAD}, f"seed {seed}"
    assert {net.states(0)[f"id{n}"] for n in range(8) if n != 5} <= {ALIVE, MemberState.SUSPECT}, f"seed {seed}"
    net.cut = lambda a, b: False
    agree(net, 60.0)


def test_anti_entropy_brings_what_gossip_missed():
    net = Net(6)
    net.cut = lambda a, b: any(isinstance(e, Send) and getattr(e.message, "gossip", ()) for _, _, e in net.trace[-1:])
    net.handle(0, UpdateSelf(member(0, slots=9)))
    net.run(5.0)
    missed = [n for n in range(1, 6) if net.swims[n].member("id0").slots != 9]
    assert missed == [1, 2, 3, 4, 5]
    net.run(6 * LAN.sync_s)
    assert {net.swims[n].member("id0").slots for n in range(6)} == {9}


def test_two_in_sync_exchange_little():
    ours, theirs = machine(0, others=200), machine(1, others=200)
    (request,) = sends(ours.handle(Received("new", Gossip(())), 0.0), SyncRequest)
    (answer,) = sends(theirs.handle(Received("id0", request.message), 0.0), object)
    assert answer.message == SyncData()
    assert len(msgspec.msgpack.encode(request.message)) < 600


def test_messages_of_anti_entropy_are_bounded():
    theirs = machine(0, others=800)
    net_bytes = []
    joiner = machine(900, others=0)
    queue: list[tuple[str, object]] = [("id900", SyncRequest(record(joiner.members()[0]), 0, (0,)))]
    while queue:
        sender, message = queue.pop(0)
        net_bytes.append(len(msgspec.msgpack.encode(message)))
        to = theirs if sender == "id900" else joiner
        me = "id0" if to is theirs else "id900"
        effects = to.handle(Received(sender, message), 0.0)
        queue += [
            (me, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, SyncData | SyncDigest)
        ]
    assert max(net_bytes) <= SYNC_LIMIT_BYTES
    assert len(joiner.members()) == 802


def test_gossip_is_bounded_and_told_a_bounded_number_of_times():
    net = Net(30)
    for number in range(30):
        net.handle(number, UpdateSelf(member(number, slots=9)))
    net.run(20.0)
    sizes = [
        sum(len(msgspec.msgpack.encode(u)) for u in effect.message.gossip)
        for _, _, effect in net.trace
        if isinstance(effect, Send) and getattr(effect.message, "gossip", ())
    ]
    assert max(sizes) <= GOSSIP_LIMIT_BYTES
    assert {net.swims[n].member(f"id{m}").slots for n in range(30) for m in range(30)} == {9}
    before = net.sent_bytes
    net.run(10.0)
    assert (net.sent_bytes - before) / 30 / 10 < 150  # a ping and an ack a second, and some anti-entropy


def test_a_forgotten_member_is_not_brought_back_by_an_old_record():
    net = Net(5)
    net.handle(4, Leave(for_good=True))
    net.run(2.0)
    net.crash(4)
    net.cut = lambda a, b: 3 in (a, b)
    net.run(table.LEFT_KEPT_S + 300.0)
    assert "id4" not in net.states(0)
    effects = net.swims[0].handle(Received("id1", Gossip((record(member(4)),))), net.now)
    assert "id4" not in net.states(0) and not sends(effects, Gossip)
    assert net.swims[0].ignored[Why.FORGOTTEN] == 1
    net.cut = lambda a, b: False
    agree(net, 60.0)
    assert "id4" not in net.states(0)
    net.start(4, incarnation=200)
    net.join(4, 0)
    agree(net, 5.0)


def test_the_dead_are_bounded_and_the_longest_dead_forgotten_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "GONE_LIMIT", 2)
    rows = table.Table([known(member(n)) for n in range(1, 5)], 0.0)
    for number in (1, 2, 3):
        rows.turn(rows.get(f"id{number}"), DEAD, float(number))
    assert rows.dead_ids() == ["id2", "id3"] and rows.get("id1") is None
    assert rows.floor("id1") == 100 and rows.live_count == 1


def test_a_restart_of_all_from_their_disks_brings_the_same_cluster():
    net = Net(6)
    net.run(2.0)
    kept = {n: net.swims[n].known() for n in range(6)}
    for number in range(6):
        net.crash(number)
        net.start(number, incarnation=300, rows=kept[number])
    agree(net, 5.0)
    net.run(3.0)
    assert {m.incarnation for n in range(6) for m in net.swims[n].members()} == {300}


def test_a_node_whose_clock_went_back_returns_all_the_same():
    net = Net(5)
    net.run(1.0)
    net.crash(2)
    net.run(8.0)
    net.start(2, incarnation=7)  # and its disk is lost
    net.join(2, 0)
    agree(net, 6.0)
    assert net.swims[2].members()[0].incarnation > 100


@pytest.mark.parametrize("seed", range(2))
def test_the_same_seed_gives_the_same_trace(seed: int):
    def story() -> list[object]:
        net = Net(7, seed)
        net.run(3.0)
        net.crash(2)
        net.run(5.0)
        net.cut = lambda a, b: (a < 3) != (b < 3)
        net.run(10.0)
        net.cut = lambda a, b: False
        net.run(30.0)
        return net.trace

    first = story()
    assert first == story()
    assert len(first) > 500


def test_each_change_makes_a_new_view_and_nothing_else_does():
    net = Net(3)
    net.run(30.0)
    assert [swim.view for swim in net.swims.values()] == [1, 1, 1]
    net.handle(0, UpdateSelf(member(0, slots=3)))
    net.run(2.0)
    assert [swim.view for swim in net.swims.values()] == [2, 2, 2]


def test_a_death_heard_in_anti_entropy_is_a_suspicion_first_so_that_it_can_be_refuted():
    swim = machine(others=3)
    entry = Entry(record(member(2)), Dead("id2", 100, "id3"))
    swim.handle(Received("id1", SyncData((entry,))), 0.0)
    assert swim.member("id2").state is MemberState.SUSPECT


def test_a_member_that_is_heard_of_as_dead_was_never_alive_here():
    swim = machine(others=3)
    entry = Entry(record(member(9)), Dead("id9", 100, "id3"))
    effects = swim.handle(Received("id1", SyncData((entry,))), 0.0)
    assert [(e.member.state, e.was) for e in effects if isinstance(e, MemberChanged)] == [(DEAD, None)]


def test_who_sends_an_outdated_entry_gets_the_newer_one():
    swim = machine(others=3)
    for old in (Entry(record(member(2, 99))), Entry(record(member(0, 99)))):
        (answer,) = sends(swim.handle(Received("id1", SyncData((old,))), 0.0), SyncData)
        (entry,) = answer.message.entries
        assert answer.id == "id1" and entry.record in (record(member(2)), record(member(0)))


def test_an_id_that_is_asked_for_often_is_sent_once():
    swim = machine(others=3)
    (answer,) = sends(swim.handle(Received("id1", SyncData((), ("id2",) * 1000)), 0.0), SyncData)
    assert len(answer.message.entries) == 1


def test_what_a_joining_node_is_sent_is_no_news_to_the_others():
    swim = machine(0, others=0)
    (request,) = sends(swim.handle(Join(("host1:7567", "host0:7567")), 0.0), SyncRequest)
    assert (request.id, request.address) == ("", "host1:7567")
    entries = tuple(Entry(record(member(n))) for n in (1, 2, 3))
    swim.handle(Received("id1", SyncData(entries)), 0.1)
    assert len(swim.members()) == 4
    (ack,) = sends(swim.handle(Received("id1", Ping(1)), 0.2), Ack)
    assert ack.message.gossip == ()
    swim.handle(Received("id1", SyncData((Entry(record(member(4))),))), 60.0)
    (ack,) = sends(swim.handle(Received("id1", Ping(1)), 60.0), Ack)
    assert ack.message.gossip == (record(member(4)),)


def test_a_start_with_an_older_clock_outdoes_the_record_that_was_kept():
    rows = [known(member(0, 500)), known(member(1))]
    swim = Swim(member(0, 7), LAN, random.Random(1), partial(sign, "id0"), verify, 0.0, rows)
    assert swim.members()[0].incarnation == 501
    (ack,) = sends(swim.handle(Received("id1", Ping(1)), 0.0), Ack)
    assert ack.message.gossip == (record(member(0, 501)),)


def test_a_node_that_has_to_refute_doubts_its_own_health():
    swim = machine()
    swim.handle(Received("id1", Gossip((Suspect("id0", 100, ("id1",)),))), 0.0)
    assert swim.health == 1 and swim.members()[0].incarnation == 101
