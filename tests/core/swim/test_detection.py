"""Who does not answer is suspected, then dead; who is accused refutes; who stalled accuses nobody."""

from __future__ import annotations

from itertools import pairwise

from kos_cluster.core.records import MemberState
from kos_cluster.core.swim import (
    FAST,
    LAN,
    Ack,
    Gossip,
    Leave,
    LinkDown,
    MemberChanged,
    Nack,
    Ping,
    PingReq,
    Received,
    Send,
    Suspect,
    Swim,
)
from kos_cluster.core.swim.probing import HEALTH_LIMIT
from tests.core.swim.harness import Net, machine, sends

ALIVE, SUSPECT, DEAD, LEFT = MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT


def pinged(swim: Swim) -> tuple[Send, float]:
    """Let time pass until the next ping of a probe."""
    while True:
        now = swim.deadline
        if pings := sends(swim.tick(now), Ping):
            return pings[0], now


def test_a_crash_is_seen_by_all_within_the_times_of_the_profile():
    for profile, limit_s in ((LAN, 8.5), (FAST, 2.0)):
        for seed in range(5):
            net = Net(8, seed, profile)
            net.run(10 * profile.probe_s)
            net.crash(3)
            net.run(limit_s)
            assert net.all_see(3) == {DEAD}, f"seed {seed}"
            assert len([s for s in net.states(0).values() if s is ALIVE]) == 7


def test_nobody_is_suspected_while_all_answer():
    net = Net(8)
    net.run(120.0)
    assert not [e for _, _, e in net.trace if isinstance(e, MemberChanged)]


def test_a_probe_asks_others_before_it_fails():
    swim = machine(others=5)
    ping, now = pinged(swim)
    effects = swim.tick(now + LAN.probe_timeout_s)
    helpers = [s.id for s in sends(effects, PingReq)]
    assert len(set(helpers)) == 3 and ping.id not in helpers
    assert {s.message.target for s in sends(effects, PingReq)} == {ping.id}
    swim.handle(Received(helpers[0], Ack(ping.message.seq)), now + 0.6)
    swim.tick(now + LAN.probe_s)
    assert swim.member(ping.id).state is ALIVE


def test_an_answer_counts_only_from_whom_it_was_asked():
    swim = machine(others=2)
    ping, now = pinged(swim)
    other = "id1" if ping.id == "id2" else "id2"
    swim.handle(Received(other, Ack(ping.message.seq)), now + 0.1)
    while swim.deadline <= now + LAN.probe_s + 0.01:
        swim.tick(swim.deadline)
    assert swim.member(ping.id).state is SUSPECT


def test_a_helper_answers_for_the_target_or_says_in_time_that_it_cannot():
    swim = machine(others=3)
    (ping,) = sends(swim.handle(Received("id1", PingReq(7, "id2")), 0.0), Ping)
    assert ping.id == "id2"
    (answer,) = sends(swim.handle(Received("id2", Ack(ping.message.seq)), 0.01), Ack)
    assert (answer.id, answer.message.seq) == ("id1", 7)
    swim.handle(Received("id1", PingReq(8, "id2")), 0.02)
    nacks: list[Send] = []
    while swim.deadline <= 0.02 + LAN.probe_s - LAN.probe_timeout_s:
        nacks += sends(swim.tick(swim.deadline), Nack)
    assert [(n.id, n.message.seq) for n in nacks] == [("id1", 8)]


def test_missing_nacks_worsen_local_health_and_answers_mend_it():
    swim = machine(others=5)
    ping, now = pinged(swim)
    helpers = [s.id for s in sends(swim.tick(now + LAN.probe_timeout_s), PingReq)]
    for helper in helpers[:2]:
        swim.handle(Received(helper, Nack(ping.message.seq)), now + 0.8)
    (ping,) = sends(swim.tick(now + LAN.probe_s), Ping)
    assert swim.health == 1  # one of three Nacks is missing
    swim.handle(Received(ping.id, Ack(ping.message.seq)), now + LAN.probe_s + 0.01)
    assert swim.health == 0


def test_local_health_is_bounded_and_stretches_the_probes():
    swim = machine(others=40)
    began = []
    while len(began) < 6:  # nobody answers, and no helper says that it lives
        _, now = pinged(swim)
        began.append(now)
    gaps = [round(after - before, 6) for before, after in pairwise(began)]
    assert gaps == [1.0, 4.0, 7.0, 9.0, 9.0]
    assert swim.health == HEALTH_LIMIT


def test_a_suspected_node_refutes_and_all_believe_it():
    net = Net(8)
    net.run(3.0)
    net.handle(2, Received("id5", Gossip((Suspect("id1", 100, ("id5",)),))))
    assert net.states(2)["id1"] is SUSPECT
    net.run(2.0)
    assert net.all_see(1) == {ALIVE}
    assert {net.swims[n].member("id1").incarnation for n in net.swims} == {101}
    assert net.swims[1].health <= 1


def test_a_suspected_node_is_told_first_thing_in_whatever_is_sent_to_it():
    swim = machine(others=4)
    swim.handle(Received("id1", Gossip((Suspect("id2", 100, ("id1",)),))), 0.0)
    (ack,) = sends(swim.handle(Received("id2", Ping(1)), 0.01), Ack)
    assert ack.message.gossip[0] == Suspect("id2", 100, ("id1",))
    (ack,) = sends(swim.handle(Received("id3", Ping(1)), 0.01), Ack)
    assert ack.id == "id3"


def test_the_buddy_tells_even_when_the_rumour_is_no_longer_told():
    swim = machine(others=4)
    swim.handle(Received("id1", Gossip((Suspect("id2", 100, ("id1",)),))), 0.0)
    for _ in range(100):
        swim.handle(Received("id3", Ping(1)), 0.01)
    assert sends(swim.handle(Received("id3", Ping(1)), 0.02), Ack)[0].message.gossip == ()
    assert sends(swim.handle(Received("id2", Ping(1)), 0.02), Ack)[0].message.gossip != ()


def test_who_hears_of_a_suspicion_probes_next():
    for seed in range(5):
        swim = machine(others=7, seed=seed)
        swim.handle(Received("id1", Gossip((Suspect("id2", 100, ("id1",)),))), 0.0)
        ping, _ = pinged(swim)
        assert ping.id == "id2", f"seed {seed}"


def test_a_broken_link_hastens_the_probe_but_kills_nobody():
    swim = machine(others=5)
    swim.handle(LinkDown("id4"), 0.0)
    ping, now = pinged(swim)
    assert ping.id == "id4"
    swim.handle(LinkDown("id4"), now + 0.01)
    assert sends(swim.tick(now + 0.01), PingReq)  # well before the time-out
    assert swim.member("id4").state is ALIVE
    swim.handle(LinkDown("unknown"), now + 0.02)


def test_a_node_that_stalled_accuses_nobody_on_waking():
    swim = machine(others=5)
    ping, now = pinged(swim)
    swim.tick(now + 10.0)  # the answer waits to be read
    swim.handle(Received(ping.id, Ack(ping.message.seq)), now + 10.0)
    swim.tick(now + 10.0 + LAN.probe_s / 2)
    assert {m.state for m in swim.members()} == {ALIVE}


def test_a_stall_does_not_count_for_a_suspicion():
    swim = machine(others=5)
    accusers = ("id1", "id3", "id4", "id5")
    swim.handle(Received("id1", Gossip((Suspect("id2", 100, accusers),))), 0.0)
    shortest_s, _ = LAN.suspicion_s(6)
    swim.tick(20.0)
    swim.tick(20.0 + LAN.probe_s / 2)
    assert swim.member("id2").state is SUSPECT, "it has had no time to refute that this node could have heard"
    now = 20.0
    while now < 20.0 + shortest_s + LAN.probe_s:
        now = swim.deadline
        swim.tick(now)
    assert swim.member("id2").state is DEAD


def test_one_that_leaves_is_left_at_once_and_does_not_come_back_by_gossip():
    net = Net(8)
    net.run(2.0)
    net.handle(4, Leave(for_good=True))
    net.run(1.0)
    assert net.all_see(4) == {LEFT}
    assert net.swims[4].told or net.swims[4].deadline < net.now + 1
    net.crash(4)
    net.run(30.0)
    assert net.all_see(4) == {LEFT}
    assert not net.swims[0].name_taken("node4")


def test_the_farewell_ends():
    net = Net(8)
    net.handle(4, Leave(for_good=True))
    net.run(5.0)
    assert net.swims[4].told and net.swims[4].deadline == float("inf")


def test_one_that_stops_is_dead_at_once_and_comes_back_when_it_starts():
    net = Net(8)
    net.run(2.0)
    net.handle(4, Leave(for_good=False))
    net.run(1.0)
    assert net.all_see(4) == {DEAD}
    rows = net.swims[0].known()
    net.crash(4)
    net.start(4, incarnation=200, rows=rows)
    net.run(2.0)
    assert net.all_see(4) == {ALIVE}


def test_one_that_left_comes_back_with_a_new_incarnation():
    net = Net(4)
    net.handle(2, Leave(for_good=True))
    net.run(3.0)
    net.crash(2)
    net.start(2, incarnation=200)
    net.join(2, 0)
    net.run(3.0)
    assert net.agreed()


def test_two_nodes_see_each_others_crash():
    net = Net(2)
    net.run(2.0)
    net.crash(1)
    net.run(6.0)
    assert net.all_see(1) == {DEAD}
