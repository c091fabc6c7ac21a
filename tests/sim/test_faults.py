"""Each kind of fault does what it says to a world, and ends; a schedule is its seed's."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from kos_cluster.sim.disk import SYNC_MOST_S
from kos_cluster.sim.faults import KINDS, Fault, draw, plan
from kos_cluster.sim.network import DELAY_MOST_S
from kos_cluster.sim.trace import Trace
from kos_cluster.sim.world import Shape, World

SIZE = 0.5


def world_with(kind: str, hosts: tuple[int, ...] = (0,), lasts_s: float = 1.0, size: float = SIZE) -> World:
    world = World(3, Shape(3), Trace())
    plan(world, [Fault(2.0, kind, lasts_s, hosts, size)])
    world.begin()
    return world


def _rate(name: str) -> Callable[[World], bool]:
    return lambda world: getattr(world.network, name) > 0.0


BITES: dict[str, Callable[[World], bool]] = {
    "loss": _rate("loss_rate"),
    "double": _rate("double_rate"),
    "stray": _rate("stray_rate"),
    "delay": lambda world: world.network.delay_most_s > DELAY_MOST_S,
    "partition": lambda world: world.network.is_cut("n1", "n2") and world.network.is_cut("n3", "n1"),
    "oneway": lambda world: world.network.is_cut("n1", "n2") and not world.network.is_cut("n2", "n1"),
    "disk": lambda world: world.replicas["n1"].disk.sync_most_s > SYNC_MOST_S,
    "full": lambda world: world.replicas["n1"].disk.full,
    "clock": lambda world: world.hosts["n1"].clock.rate != 1.0,
    "slow": lambda world: world.hosts["n1"].lag_s > 0.0,
}


@pytest.mark.parametrize("kind", BITES)
def test_a_fault_bites_while_it_lasts(kind: str):
    world = world_with(kind, size=0.8)
    seen = []
    for at_s in (1.9, 2.5, 3.1):
        world.run(at_s)
        seen.append(BITES[kind](world))
    assert seen == [False, True, False]


def test_every_kind_is_tested():
    assert set(BITES) | {"crash", "pause", "voters", "transfer"} == set(KINDS)


def test_a_crashed_host_is_down_and_comes_back():
    world = world_with("crash", lasts_s=2.0)
    world.run(2.0)
    boots = world.hosts["n1"].boots
    world.run(3.5)
    assert not world.hosts["n1"].up and world.crashes == 1
    world.run(6.0)
    assert world.hosts["n1"].up and world.hosts["n1"].boots == boots + 2


def test_a_paused_host_does_nothing_meanwhile():
    world = world_with("pause", lasts_s=2.0)
    world.run(2.0)
    writes = world.replicas["n1"].writes
    world.run(3.9)
    assert world.replicas["n1"].writes == writes
    world.run(6.0)
    assert world.replicas["n1"].writes > writes


def test_a_full_disk_stops_its_node_which_says_why_and_comes_back():
    told: list[str] = []
    world = World(3, Shape(3), Trace(lambda note, text: told.append(text)))
    plan(world, [Fault(2.0, "full", 1.5, (0,), SIZE)])
    world.begin()
    world.run(5.0)
    world.heal()
    world.progress()
    assert any("n1   halts" in text and "no space left" in text for text in told)
    assert world.replicas["n1"].applied.index == world.rules.frontier


def test_an_operator_changes_the_voters():
    world = world_with("voters")
    world.run(5.0)
    founders = world.rules.membership_at(1)
    assert world.rules.membership_at(world.rules.frontier) == founders  # with three voters none may go
    world = World(3, Shape(5), Trace())
    plan(world, [Fault(2.0, "voters", 1.0, (0,), SIZE)])
    world.begin()
    world.run(5.0)
    assert world.rules.membership_at(world.rules.frontier) != world.rules.membership_at(1)


def test_an_operator_moves_the_leader():
    for size in range(5):  # the choice may fall on the leader itself
        world = World(size, Shape(3), Trace())
        plan(world, [Fault(2.0, "transfer", 1.0, (0,), SIZE)])
        world.begin()
        world.run(5.0)
        if len(set(world.rules.leaders.values())) == 2:
            return
    pytest.fail("no transfer made another node the leader")


def test_an_old_node_speaks_the_version_before_until_it_is_started_anew():
    said: dict[int, list[str]] = {1: [], 2: []}

    def listen(note: tuple[float, str, str, tuple[object, ...]], text: str) -> None:
        at_s, _, what, values = note
        if what == "got" and values[0] == "n1" and "round=" in text:
            said[1 if at_s < 2.5 else 2].append(text)

    world = World(3, Shape(3, old=1), Trace(listen))
    plan(world, [Fault(2.0, "crash", 0.5, (0,), 0.9)])
    world.begin()
    world.run(8.0)
    assert said[1] and all("version=1" in text for text in said[1])
    assert said[2] and all("version=2" in text for text in said[2])
    assert world.crashes == 1


def test_healing_ends_all_faults():
    world = World(3, Shape(3), Trace())
    plan(world, [Fault(1.0, kind, 30.0, (0,), 0.8) for kind in (*BITES, "pause", "crash")])
    world.begin()
    world.run(4.0)
    world.heal()
    assert world.hosts["n1"].up
    assert not any(bites(world) for bites in BITES.values())
    assert world.progress() < 30.0


def test_a_schedule_is_its_seeds_and_has_a_crash():
    for seed in range(50):
        schedule = draw(Random(seed), tuple(KINDS), 5, 20.0)
        assert schedule == draw(Random(seed), tuple(KINDS), 5, 20.0)
        assert any(fault.kind == "crash" for fault in schedule)
        assert list(schedule) == sorted(schedule, key=lambda fault: fault.at_s)
        assert all(0.0 < fault.at_s < 20.0 and fault.hosts for fault in schedule)
    assert draw(Random(1), (), 5, 20.0) == ()
