"""Load gossip: everybody's load with its age. What it costs on the wire: `tests.net.test_load_traffic`."""

from __future__ import annotations

import heapq
import random

import msgspec
import pytest

from kos_cluster.core import loadgossip
from kos_cluster.core.loadgossip import LoadEntry, LoadGossip, LoadReport, Measured, PackedLoad, Peers, Reported
from kos_cluster.core.records import Load

BUSY = Load(3, 17, 55.5, 44.25, 12_345_678_901, 0, 1_250_000_000, 1_250_000_000)


def node(*peers: str) -> LoadGossip:
    gossip = LoadGossip("me", 1000, random.Random(1), 0.0)
    gossip.handle(Peers(("me", *peers)), 0.0)
    return gossip


def entry(id_: str, serial: int = 1, age_s: float = 0.0, running: int = 0) -> LoadEntry:
    return LoadEntry(id_, serial, age_s, PackedLoad(running))


def report(*entries: LoadEntry) -> Reported:
    return Reported(LoadReport(entries))


def simulate(count: int, seconds: float) -> list[LoadGossip]:
    """Machines that report to each other."""
    ids = [f"{number:032x}" for number in range(count)]
    machines = {id_: LoadGossip(id_, 1_700_000_000_000_000_000, random.Random(id_), 0.0) for id_ in ids}
    for machine in machines.values():
        machine.handle(Peers(tuple(ids)), 0.0)
    heap = [(machine.deadline, id_) for id_, machine in machines.items()]
    heapq.heapify(heap)
    while heap[0][0] < seconds:
        now, id_ = heapq.heappop(heap)
        machines[id_].handle(Measured(BUSY), now)
        for effect in machines[id_].tick(now):
            machines[effect.id].handle(Reported(effect.report), now)
        heapq.heappush(heap, (machines[id_].deadline, id_))
    return list(machines.values())


@pytest.mark.parametrize(("count", "mean_s"), [(2, 0.4), (8, 0.4), (9, 0.4), (10, 0.8), (60, 3.0), (150, 6.0)])
def test_each_knows_all(count: int, mean_s: float):
    machines = simulate(count, 40.0)
    ages = []
    for machine in machines[:20]:
        loads = machine.loads(40.0)
        assert len(loads) == count and all(load == BUSY for load, _ in loads.values())
        ages += [age for _, age in loads.values()]
    assert sum(ages) / len(ages) < mean_s


def test_an_age_is_what_it_was_plus_what_has_passed_here():
    gossip = node("a")
    gossip.handle(report(entry("a", age_s=2.0)), 100.0)
    assert gossip.loads(101.5) == {"a": (Load(), 3.5)}


def test_the_newer_measurement_holds_and_of_one_the_older_age():
    gossip = node("a")
    gossip.handle(report(entry("a", serial=5, age_s=1.0, running=5)), 100.0)
    gossip.handle(report(entry("a", serial=4, age_s=0.0, running=4)), 100.0)
    assert gossip.loads(100.0)["a"] == (Load(5), 1.0)
    gossip.handle(report(entry("a", serial=5, age_s=0.1, running=5)), 110.0)  # it waited on its way
    assert gossip.loads(110.0)["a"] == (Load(5), 11.0)
    gossip.handle(report(entry("a", serial=6, running=6)), 110.0)
    assert gossip.loads(110.0)["a"] == (Load(6), 0.0)


def test_old_entries_and_those_of_others_are_dropped():
    gossip = node("a")
    limit_s = gossip.stale_after_s
    gossip.handle(report(entry("a"), entry("stranger"), entry("me", running=9)), 0.0)
    assert set(gossip.loads(1.0)) == {"a"}
    assert gossip.loads(limit_s + 0.1) == {}
    gossip.handle(report(entry("a", serial=2, age_s=limit_s + 1)), 20.0)
    gossip.handle(report(entry("a", serial=2, age_s=-1.0)), 20.0)
    gossip.handle(report(entry("a", serial=2, age_s=float("nan"))), 20.0)
    assert gossip.loads(20.0) == {}
    gossip.handle(report(entry("a", serial=3)), 20.0)
    gossip.handle(Peers(("b",)), 20.0)
    assert gossip.loads(20.0) == {}


def test_nothing_is_sent_before_the_first_measurement_or_to_nobody():
    gossip = node("a")
    assert gossip.tick(gossip.deadline) == []
    alone = node()
    alone.handle(Measured(BUSY), 0.0)
    assert alone.tick(alone.deadline) == []
    assert alone.loads(0.5) == {"me": (BUSY, 0.5)}


def test_a_small_cluster_reports_to_all_and_a_large_one_passes_on():
    small = node(*(f"p{n}" for n in range(loadgossip.DIRECT_LIMIT)))
    large = node(*(f"p{n}" for n in range(loadgossip.DIRECT_LIMIT + 1)))
    for gossip in (small, large):
        gossip.handle(Measured(BUSY), 0.0)
        gossip.handle(report(entry("p1", age_s=5.0), entry("p2", age_s=1.0)), 0.0)
    sent = small.tick(small.deadline)
    assert len(sent) == loadgossip.DIRECT_LIMIT and [e.id for e in sent[0].report.entries] == ["me"]
    sent = large.tick(large.deadline)
    assert len(sent) == loadgossip.FANOUT and [e.id for e in sent[0].report.entries] == ["me", "p2", "p1"]


def test_reports_are_bounded_and_the_pause_follows_from_their_size():
    gossip = node(*(f"{n:032x}" for n in range(500)))
    gossip.handle(report(*(entry(f"{n:032x}") for n in range(500))), 0.0)
    gossip.handle(Measured(BUSY), 0.0)
    now = gossip.deadline
    sent = gossip.tick(now)
    size = loadgossip.ENVELOPE_BYTES + sum(len(msgspec.msgpack.encode(entry)) for entry in sent[0].report.entries)
    assert 0.9 * loadgossip.REPORT_LIMIT_BYTES < size <= loadgossip.REPORT_LIMIT_BYTES
    assert gossip.deadline - now >= size * loadgossip.FANOUT / loadgossip.BUDGET_BYTES_S
    assert gossip.tick(now) == []


def test_a_load_travels_without_names_and_with_the_fields_that_both_know():
    body = msgspec.msgpack.encode(entry("a", running=3))
    assert b"running" not in body
    longer = msgspec.msgpack.encode(["a", 1, 0.5, [7, 1, 2.0, 3.0, 4, 5, 6, 7, 8, 9, [1], True, 99.0]])
    before_network = msgspec.msgpack.encode(["a", 1, 0.5, [7, 1, 2.0, 3.0, 4, 5]])
    assert msgspec.msgpack.decode(before_network, type=LoadEntry).load == PackedLoad(7, 1, 2.0, 3.0, 4, 5, 0, 0)
    shorter = msgspec.msgpack.encode(["a", 1, 0.5, [7]])
    for data in (longer, shorter):
        assert msgspec.msgpack.decode(data, type=LoadEntry).load.running == 7
