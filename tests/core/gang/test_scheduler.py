"""Who may try to reserve its slots: in line, around what is promised, and again after a while."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from kos_cluster.core.gang import scheduler as s
from kos_cluster.core.placement import Candidate
from kos_cluster.core.records import Needs


def nodes(*busy: int, slots: int = 4) -> list[Candidate]:
    return [Candidate(f"n{n}", f"n{n}", slots, 1 << 30, busy=count) for n, count in enumerate(busy)]


def wanted(name: str, ranks: int, cpus: int = 1) -> s.Wanted:
    return s.Wanted("me", name, ranks, Needs(cpus=cpus))


def slots_of(begin: object) -> dict[str, int]:
    assert isinstance(begin, s.Begin)
    return {node: msgspec.msgpack.decode(data, type=s.Reserve).slots for node, data in begin.participants.items()}


def test_a_gang_that_fits_begins_at_once_and_its_owner_learns_where():
    machine = s.GangScheduler()
    (begin,) = machine.handle(wanted("g", 3, cpus=2), nodes(0, 0), {}, 0.0)
    assert slots_of(begin) == {"n0": 4, "n1": 2}
    assert machine.handle(wanted("g", 3, cpus=2), nodes(0, 0), {}, 0.5) == []
    assert machine.handle(s.Began("me/g", 7), nodes(0, 0), {"n0": 4, "n1": 2}, 0.5) == []
    machine.handle(s.Ended(7, True), nodes(4, 2), {}, 0.6)
    standing = machine.standing("me/g")
    assert standing is not None and standing.ranks == ("n0", "n0", "n1")


def test_what_never_fits_is_refused_and_nothing_is_begun():
    machine = s.GangScheduler()
    assert machine.handle(wanted("g", 9), nodes(0, 0), {}, 0.0) == []
    standing = machine.standing("me/g")
    assert standing is not None and "9 ranks of 1 slot each do not fit: the cluster holds 8" in standing.refused


def test_the_next_gang_is_planned_around_what_the_first_was_promised():
    machine = s.GangScheduler()
    (first,) = machine.handle(wanted("a", 5), nodes(0, 0), {}, 0.0)
    (second,) = machine.handle(wanted("b", 3), nodes(0, 0), {}, 0.0)
    both = [slots_of(first).get(node, 0) + slots_of(second).get(node, 0) for node in ("n0", "n1")]
    assert both == [4, 4]
    assert machine.handle(wanted("c", 1), nodes(0, 0), {}, 0.0) == []
    standing = machine.standing("me/c")
    assert standing is not None and standing.waits.startswith("1 rank does not fit now; there is room for 0")


def refused_tries(machine: s.GangScheduler, count: int) -> list[tuple[float, s.Reserve]]:
    """A gang of eight asks a busy cluster, which aborts each time: when it tried, and with what."""
    tries: list[tuple[float, s.Reserve]] = []
    now = 0.0
    while len(tries) < count:
        for effect in machine.handle(wanted("g", 8), nodes(4, 4), {}, now):
            assert isinstance(effect, s.Begin)
            tries.append((now, msgspec.msgpack.decode(effect.participants["n0"], type=s.Reserve)))
            machine.handle(s.Began("me/g", len(tries)), nodes(4, 4), {}, now)
            machine.handle(s.Ended(len(tries), False), nodes(4, 4), {}, now)
        now += 0.25
    return tries


def test_a_busy_cluster_is_asked_all_the_same_ever_more_patiently():
    tries = refused_tries(s.GangScheduler(), 7)
    for (earlier_s, earlier), (later_s, later) in pairwise(tries):
        assert later.patience_s == min(2 * earlier.patience_s, s.PATIENCE_MOST_S)
        assert later_s - earlier_s == earlier.patience_s
        assert later.lease_s > later.patience_s + s.DECIDE_S


def test_slots_that_become_free_are_tried_without_the_long_pause():
    machine = s.GangScheduler()
    now = refused_tries(machine, 5)[-1][0]
    assert machine.tick(nodes(4, 4), {}, now + s.PATIENCE_S) == []
    assert machine.tick(nodes(0, 0), {}, now + s.PATIENCE_S) != []


def test_a_gang_that_nobody_asks_for_is_forgotten_and_its_transaction_aborted():
    machine = s.GangScheduler()
    machine.handle(wanted("g", 2), nodes(0), {}, 0.0)
    machine.handle(s.Began("me/g", 3), nodes(0), {}, 0.1)
    assert machine.tick(nodes(0), {}, s.SILENT_S + 1.0) == [s.Abort(3)]
    assert machine.standing("me/g") is None and not machine


def test_a_withdrawn_gang_whose_beginning_comes_late_is_aborted():
    machine = s.GangScheduler()
    machine.handle(wanted("g", 2), nodes(0), {}, 0.0)
    assert machine.handle(s.Withdrawn("me/g"), nodes(0), {}, 0.1) == []
    assert machine.handle(s.Began("me/g", 3), nodes(0), {}, 0.2) == [s.Abort(3)]


def standing_of(machine: s.GangScheduler) -> s.Standing:
    standing = machine.standing("me/g")
    assert standing is not None
    return standing


def apart(ranks: int, *there: str) -> s.Wanted:
    return s.Wanted("me", "g", ranks, Needs(apart=("web",)), apart=frozenset(there))


def test_a_gang_is_never_planned_where_a_job_is_that_it_is_apart_from_and_waits_for_its_end():
    machine = s.GangScheduler()
    (begin,) = machine.handle(apart(2, "n0"), nodes(0, 2), {}, 0.0)
    assert slots_of(begin) == {"n1": 2}
    machine = s.GangScheduler()
    assert machine.handle(apart(6, "n0"), nodes(0, 0), {}, 0.0) == []
    told = standing_of(machine)
    assert not told.refused
    assert "there is room for 4 (n0: 0, it has tasks of web, and the two are to be apart; n1: 4)" in told.waits
    assert machine.handle(apart(6, "n0"), nodes(0, 0), {}, 4.0) == []  # nor by what an idle cluster has
    (begin,) = machine.handle(apart(6), nodes(0, 0), {}, 8.0)  # it has ended since
    assert slots_of(begin) == {"n0": 4, "n1": 2}


def test_a_gang_that_is_apart_from_itself_has_one_rank_a_node():
    machine = s.GangScheduler()
    (begin,) = machine.handle(s.Wanted("me", "g", 2, Needs(), alone=True), nodes(0, 0), {}, 0.0)
    assert slots_of(begin) == {"n0": 1, "n1": 1}
    machine = s.GangScheduler()
    machine.handle(s.Wanted("me", "g", 3, Needs(), alone=True), nodes(0, 0), {}, 0.0)
    assert "the cluster holds 2 of them at most (n0: 1; n1: 1)" in standing_of(machine).refused


def test_a_gang_goes_near_a_job_where_there_is_room():
    machine = s.GangScheduler()
    (begin,) = machine.handle(
        s.Wanted("me", "g", 2, Needs(near=("web",)), near=frozenset({"n0"})), nodes(0, 1), {}, 0.0
    )
    assert slots_of(begin) == {"n0": 2}  # alone it would go where it fills more


def test_what_an_ended_client_wanted_is_forgotten_and_aborted_and_no_one_elses():
    machine = s.GangScheduler()
    for gang, instance in (("a", "gone"), ("b", "gone"), ("c", "lives")):
        machine.handle(s.Wanted("me", gang, 2, Needs(), instance), nodes(0, 0), {}, 0.0)
    machine.handle(s.Began("me/a", 3), nodes(0, 0), {}, 0.1)
    assert machine.handle(s.OwnerEnded("me", "gone"), nodes(0, 0), {}, 0.2) == [s.Abort(3)]
    assert machine.handle(s.Began("me/b", 4), nodes(0, 0), {}, 0.3) == [s.Abort(4)]
    assert [machine.standing(f"me/{gang}") is None for gang in "abc"] == [True, True, False]


def test_drained_and_unfit_nodes_count_for_nothing():
    machine = s.GangScheduler()
    both = nodes(0, 0)
    both[1].drained = True
    machine.handle(s.Wanted("me", "g", 5, Needs()), both, {}, 0.0)
    standing = machine.standing("me/g")
    assert standing is not None and "n1: 0, it is drained" in standing.refused


def test_a_node_past_its_high_water_mark_has_no_room_now_though_it_will_have():
    both = nodes(0, 0)
    both[0].over_memory = True
    machine = s.GangScheduler()
    (begin,) = machine.handle(wanted("small", 4), both, {}, 0.0)
    assert slots_of(begin) == {"n1": 4}
    machine = s.GangScheduler()
    machine.handle(wanted("large", 5), both, {}, 0.0)
    standing = machine.standing("me/large")
    assert standing is not None and standing.refused == ""
    assert standing.waits == "5 ranks do not fit now; there is room for 4 (n0: 0; n1: 4)"
