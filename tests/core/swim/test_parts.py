"""The parts of SWIM one by one: suspicions, rumours, turns, anti-entropy."""

from __future__ import annotations

import random
from itertools import pairwise

import msgspec
import pytest

from kos_cluster.core.records import MemberState
from kos_cluster.core.swim import LAN, Dead, Suspect, antientropy
from kos_cluster.core.swim.messages import GOSSIP_LIMIT_BYTES, SYNC_LIMIT_BYTES, precedence, size_bytes
from kos_cluster.core.swim.rumours import SPREAD, Rumours, tellings
from kos_cluster.core.swim.suspicion import Suspicion
from kos_cluster.core.swim.turns import Turns
from tests.core.swim.harness import known, member, record

ALIVE, DEAD, LEFT = MemberState.ALIVE, MemberState.DEAD, MemberState.LEFT


# ---- suspicions


def test_a_suspicion_shrinks_with_the_logarithm_of_its_confirmations():
    suspicion = Suspicion(1, ("a",), (2.0, 12.0), members=8, now=0.0)
    ends = [suspicion.ends]
    for accuser in ("b", "c", "d"):
        assert suspicion.confirm((accuser,))
        ends.append(suspicion.ends)
    assert ends == [12.0, pytest.approx(7.0), pytest.approx(12 - 10 * 0.79248, abs=1e-4), 2.0]


def test_only_new_accusers_confirm_and_only_as_many_as_count():
    suspicion = Suspicion(1, ("a",), (2.0, 12.0), members=8, now=0.0)
    assert not suspicion.confirm(("a",))
    assert suspicion.confirm(("b", "b", "a", "c", "d", "e"))
    assert suspicion.accusers == ("a", "b", "c", "d")
    assert not suspicion.confirm(("f",)) and suspicion.ends == 2.0


def test_where_fewer_can_confirm_fewer_are_waited_for():
    assert Suspicion(1, ("a",), (2.0, 12.0), members=2, now=0.0).ends == 2.0
    three = Suspicion(1, ("a",), (2.0, 12.0), members=3, now=0.0)
    assert three.ends == 12.0 and three.confirm(("b",)) and three.ends == 2.0


def test_the_time_of_a_suspicion_grows_with_the_logarithm_of_the_cluster():
    assert LAN.suspicion_s(8) == LAN.suspicion_s(10) == (2.5, 15.0)
    assert LAN.suspicion_s(1000)[0] == pytest.approx(7.5)


# ---- rumours


def test_rumours_that_were_told_least_go_first_and_end():
    rumours = Rumours()
    rumours.add("old", Dead("old", 1, "a"))
    for _ in range(3):
        rumours.take(8)
    rumours.add("new", Dead("new", 1, "a"))
    assert [u.id for u in rumours.take(8)] == ["new", "old"]
    told = 4
    while rumours:
        rumours.take(8)
        told += 1
    assert told == 3 + tellings(8)
    assert tellings(8) == 10 and tellings(1000) == 30 and SPREAD == 3


def test_a_newer_rumour_about_a_member_replaces_the_older():
    rumours = Rumours()
    rumours.add("x", Suspect("x", 1, ("a",)))
    rumours.add("x", Dead("x", 1, "a"))
    assert rumours.take(8) == (Dead("x", 1, "a"),)


def test_a_message_takes_what_fits_and_the_rest_has_its_turn():
    rumours = Rumours()
    for number in range(20):
        rumours.add(f"id{number}", record(member(number)))
    first = rumours.take(100)
    assert 1 < len(first) < 20
    assert sum(map(size_bytes, first)) <= GOSSIP_LIMIT_BYTES
    seen = {msgspec.msgpack.decode(u.body)["id"] for _ in range(20) for u in rumours.take(100)}
    assert len(seen) == 20


def test_what_must_be_told_first_is_not_told_twice():
    rumours = Rumours()
    suspect = Suspect("x", 1, ("a",))
    rumours.add("x", suspect)
    rumours.add("y", Dead("y", 1, "a"))
    assert rumours.take(8, suspect) == (suspect, Dead("y", 1, "a"))


# ---- turns


def test_each_is_probed_once_a_round_in_an_order_that_changes():
    turns = Turns([f"id{n}" for n in range(20)], random.Random(1))
    rounds = [tuple(turns.next() for _ in range(20)) for _ in range(3)]
    assert all(len(set(order)) == 20 for order in rounds)
    assert len(set(rounds)) == 3


@pytest.mark.parametrize("seed", range(5))
def test_who_comes_or_goes_within_a_round_does_not_upset_it(seed: int):
    turns = Turns([f"id{n}" for n in range(10)], random.Random(seed))
    first = [turns.next() for _ in range(5)]
    turns.remove(str(first[0]))
    turns.add("new")
    rest = [turns.next() for _ in range(6)]
    assert len(set(first) | set(rest)) == 11 and "new" in rest, f"seed {seed}"


def test_an_accused_member_goes_out_of_turn_once():
    turns = Turns(["a", "b", "c"], random.Random(1))
    turns.hasten("c")
    turns.hasten("c")
    assert turns.next() == "c"
    assert sorted(str(turns.next()) for _ in range(3)) == ["a", "b", "c"]
    turns.hasten("b")
    turns.remove("b")
    assert "b" not in {turns.next() for _ in range(4)}


def test_some_are_different_and_none_that_is_excepted():
    for count in (4, 100):
        turns = Turns([f"id{n}" for n in range(count)], random.Random(2))
        for _ in range(50):
            some = turns.some(3, but=("id1",))
            assert len(set(some)) == 3 and "id1" not in some
    assert Turns(["a"], random.Random(1)).some(3) == ["a"]
    assert Turns([], random.Random(1)).next() is None


# ---- anti-entropy


def test_sums_agree_only_when_what_is_held_agrees():
    rows = [known(member(n)) for n in range(100)]
    bits = antientropy.bits_for(100)
    sums = antientropy.sums(rows, bits)
    assert sums == antientropy.sums(reversed(rows), bits)
    for other in (member(5, 101), member(5, 100, state=DEAD)):
        changed = [*rows[:5], known(other), *rows[6:]]
        assert sum(a != b for a, b in zip(sums, antientropy.sums(changed, bits), strict=True)) == 1
    assert antientropy.sums([*rows, known(member(7, state=LEFT))], bits) == sums


def test_a_digest_tells_only_the_buckets_that_differ():
    rows = [known(member(n)) for n in range(100)]
    bits = antientropy.bits_for(100)
    changed = [*rows[:5], known(member(5, 101)), *rows[6:]]
    (digest,) = antientropy.digests(changed, bits, antientropy.sums(rows, bits))
    assert digest.buckets == (antientropy.bucket_of("id5", bits),)
    assert digest.held["id5"] == precedence(101, ALIVE) and len(digest.held) < 50


def test_comparing_finds_what_each_lacks():
    ours = {n: known(member(n)) for n in range(1, 60)}
    theirs = [known(member(n)) for n in range(2, 61)]
    theirs[10] = known(member(12, 101))
    ours[20] = known(member(20, 101))
    ours[30] = known(member(30, state=DEAD))
    held = {row.member.id: precedence(row.member.incarnation, row.member.state) for row in ours.values()}
    offered, wanted = [], []
    for digest in antientropy.digests(theirs, 0, antientropy.sums(ours.values(), 0)):
        offer, want = antientropy.compare(ours.values(), digest, lambda id_: held.get(id_, -1))
        offered += [row.member.id for row in offer]
        wanted += want
    assert sorted(offered) == ["id1", "id20", "id30"]
    assert sorted(wanted) == ["id12", "id60"]


def test_one_that_left_is_offered_only_to_whom_holds_it_otherwise():
    ours = [known(member(1, 101, state=LEFT)), known(member(2, 101, state=LEFT))]
    held = {row.member.id: precedence(101, LEFT) for row in ours}
    (digest,) = antientropy.digests([known(member(1))], 0, antientropy.sums(ours, 0))
    offered, wanted = antientropy.compare(ours, digest, lambda id_: held.get(id_, -1))
    assert [row.member.id for row in offered] == ["id1"] and wanted == []


def test_data_is_cut_into_bounded_messages():
    entries = [antientropy.Entry(known(member(n)).record) for n in range(400)]
    messages = antientropy.data(entries, [f"id{n}" for n in range(5000)])
    assert max(map(size_bytes, messages)) <= SYNC_LIMIT_BYTES
    assert sum(len(m.entries) for m in messages) == 400 and sum(len(m.wanted) for m in messages) == 5000
    assert antientropy.data([], []) == []


def test_precedence_puts_the_incarnation_first():
    order = [precedence(i, s) for i in (1, 2) for s in (ALIVE, MemberState.SUSPECT, DEAD, LEFT)]
    assert all(a < b for a, b in pairwise(order))
