"""What a world is made of: virtual time, clocks, the network, disks, hosts."""

from __future__ import annotations

from random import Random

import pytest

from kos_cluster.core.raft.config import founding
from kos_cluster.core.raft.events import Persist
from kos_cluster.core.raft.values import Entry, HardState, Kind, Membership, Restored, Snapshot
from kos_cluster.sim.agenda import Agenda
from kos_cluster.sim.clocks import HostClock
from kos_cluster.sim.disk import Crash, Disk, Log, holds
from kos_cluster.sim.host import Host
from kos_cluster.sim.network import STRAY_MOST_S, Network
from kos_cluster.sim.patching import patched
from kos_cluster.sim.trace import KEPT_LIMIT, Trace


def entry(index: int, term: int = 1) -> Entry:
    return Entry(index, term, Kind.COMMAND, b"%d" % index)


def persist(number: int, *entries: Entry, term: int = 1, first: int = 1, **more: object) -> Persist:
    return Persist(number, HardState(term, None, 0), first, entries, **more)


# ---- time


def test_actions_run_by_time_and_then_in_the_order_in_which_they_were_entered():
    agenda, ran = Agenda(), []
    for at_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        agenda.at(at_s, ran.append, name)
    while agenda.step(5.0):
        pass
    assert ran == ["a", "b", "c"] and agenda.now_s == 5.0


def test_what_is_entered_for_the_past_runs_now():
    agenda, times = Agenda(), []
    agenda.at(1.0, lambda: agenda.at(0.2, lambda: times.append(agenda.now_s)))
    while agenda.step(5.0):
        pass
    assert times == [1.0]


def test_a_clock_drifts_without_a_step_and_its_wall_jumps():
    clock = HostClock()
    clock.boot(10.0, 500.0)
    clock.drift(20.0, 1.5)
    assert [clock.local_s(at) for at in (20.0, 22.0)] == [510.0, 513.0]
    assert clock.true_s(513.0) == pytest.approx(22.0)
    before_s = clock.wall_s(22.0)
    clock.jump(-60.0)
    assert clock.wall_s(22.0) == before_s - 60.0
    assert clock.local_s(22.0) == 513.0


# ---- the network


def test_a_healthy_network_delivers_each_message_once():
    network = Network(Random(1))
    assert all(len(network.send("a", "b")) == 1 for _ in range(100))


def test_messages_overtake_each_other():
    network = Network(Random(1))
    delays = [network.send("a", "b")[0] for _ in range(50)]
    assert delays != sorted(delays)


@pytest.mark.parametrize(
    ("rate", "copies", "share"), [("loss_rate", 0, 0.3), ("double_rate", 2, 0.3)], ids=["loss", "double"]
)
def test_a_share_is_lost_or_doubled(rate: str, copies: int, share: float):
    network = Network(Random(1))
    setattr(network, rate, share)
    hit = sum(len(network.send("a", "b")) == copies for _ in range(2000))
    assert 0.2 < hit / 2000 < 0.4


def test_strays_linger_for_seconds():
    network = Network(Random(1))
    network.stray_rate = 0.5
    assert STRAY_MOST_S / 2 < max(network.send("a", "b")[0] for _ in range(200)) <= STRAY_MOST_S


def test_a_cut_holds_one_direction_until_the_last_one_ends():
    network = Network(Random(1))
    network.cut(["a"], ["b", "c"])
    network.cut(["a"], ["b"])
    assert network.send("a", "b") == () and network.send("b", "a") != ()
    network.mend(["a"], ["b"])
    assert network.is_cut("a", "b") and network.is_cut("a", "c")
    network.mend(["a"], ["b", "c"])
    assert not network.is_cut("a", "b") and not network.is_cut("a", "c")


# ---- disks


def test_a_log_follows_the_order_of_a_persist():
    log = Log(Restored())
    log.take(persist(1, entry(1), entry(2), entry(3)))
    log.take(persist(2, entry(2, 2)))
    assert [e.term for e in log.entries] == [1, 2] and log.last == 2
    snapshot = Snapshot(2, 2, Membership(("a",)), b"s")
    log.take(persist(3, first=3, snapshot=snapshot))
    assert (log.first, log.last, log.term(2), log.entry(2)) == (3, 2, 2, None)
    assert holds(log, 1, 1) and holds(log, 2, 2) and not holds(log, 2, 1) and not holds(log, 3, 2)
    log.take(persist(4, first=10, snapshot=Snapshot(9, 3, Membership(("a",)), b"t"), reset=True))
    assert (log.first, log.last) == (10, 9)


@pytest.mark.parametrize(
    ("crash", "kept"), [(Crash.BEFORE, 1), (Crash.TORN, 1), (Crash.AFTER, 3), (Crash.RELEASING, 3)]
)
def test_a_crash_keeps_a_whole_batch_or_none_of_it(crash: Crash, kept: int):
    disk = Disk(founding(("a",)))
    disk.write(persist(1, entry(2), entry(3), term=7))
    disk.lose(crash, 0.5)
    assert (disk.torn is not None) is (crash is Crash.TORN)
    restored = disk.load()
    assert len(restored.entries) == kept
    assert restored.hard_state.term == (7 if kept == 3 else 1)


def test_what_is_synced_survives_a_crash():
    disk = Disk(Restored())
    disk.write(persist(1, entry(1)))
    disk.sync()
    disk.lose(Crash.BEFORE, 0.0)
    assert disk.load().entries == (entry(1),)


# ---- hosts


def test_a_paused_host_finds_everything_in_its_inbox_later_in_order():
    agenda = Agenda()
    host, done = Host("n1", agenda, Random(1)), []
    host.restart()
    host.pause(3.0)
    for name in "abc":
        host.run(host.boots, lambda name=name: done.append((name, agenda.now_s)))
    while agenda.step(2.9):
        pass
    assert done == []
    while agenda.step(10.0):
        pass
    assert done == [("a", 3.0), ("b", 3.0), ("c", 3.0)]


def test_a_host_that_is_resumed_works_its_inbox_off_at_once_and_once():
    agenda = Agenda()
    host, done = Host("n1", agenda, Random(1)), []
    host.restart()
    host.pause(30.0)
    host.run(host.boots, lambda: done.append(agenda.now_s))
    while agenda.step(2.0):
        pass
    host.resume()
    while agenda.step(40.0):
        pass
    assert done == [2.0]


def test_a_slow_host_takes_a_while_for_each_thing():
    agenda = Agenda()
    host, done = Host("n1", agenda, Random(1)), []
    host.restart()
    host.lag_s = 0.1
    for _ in range(3):
        host.run(host.boots, lambda: done.append(agenda.now_s))
    while agenda.step(10.0):
        pass
    assert done[0] == 0.0 and done[1] >= 0.05 and done[2] >= done[1] + 0.05


def test_work_of_an_earlier_life_is_dropped():
    agenda = Agenda()
    host, done = Host("n1", agenda, Random(1)), []
    host.restart()
    host.pause(1.0)
    host.run(host.boots, done.append, "waits")
    boot = host.boots
    host.crash()
    host.restart()
    host.run(boot, done.append, "old")
    host.run(host.boots, done.append, "new")
    while agenda.step(10.0):
        pass
    assert done == ["new"]


# ---- the rest


def test_a_trace_keeps_the_last_notes_and_hashes_all_that_it_shows():
    shown: list[str] = []
    trace, other = Trace(lambda note, text: shown.append(text)), Trace(lambda note, text: None)
    for number in range(KEPT_LIMIT + 5):
        trace.note(1.5, "n1", "does", number, 0.25, "word")
        other.note(1.5, "n1", "does", number, 0.25, "word")
    assert shown[3] == "    1.500000 n1   does       3 0.250000 word"
    assert list(trace.tail()) == shown[5:]
    assert trace.digest() == other.digest() != Trace().digest()


def test_patches_are_taken_back_also_after_an_error():
    original = Disk.load
    with pytest.raises(TypeError), patched([(Disk, "load", None)]):
        Disk(Restored()).load()
    assert Disk.load is original
