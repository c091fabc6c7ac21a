"""What goes wrong, when: faults as values, schedules of them drawn from a seed, and how each is done to a world.

Theory of operation. A fault begins at a time and lasts for a while; `KINDS` says for each kind how its size is drawn,
how it begins, and how it ends. A schedule is a plain list of faults, drawn from a seed or given (by a test, or by
Hypothesis, which makes it smaller). So a failure is its seed and its schedule, and both print as what one types.

    kind        what it does to the world
    loss        a share of all messages is lost
    double      a share arrives twice
    delay       messages take long, and overtake each other more
    stray       a share lingers for seconds, into other terms
    partition   two groups of hosts do not hear each other
    oneway      one group is not heard by the other
    crash       a host dies at a coming write, at one of its four points, and starts again
    disk        a host's writes take long
    full        a host's disk takes nothing
    clock       a host's clock runs fast or slow, and its wall clock jumps
    slow        a host is busy for a while after each thing it does
    pause       a host does nothing (SIGSTOP), and then goes on
    voters      an operator changes the membership of the group
    transfer    an operator makes another node the leader

Rules: a fault that ends puts back what is normal, also if another of its kind is still to last, but for cuts, which are
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING

import msgspec

from kos_cluster.sim.clocks import DRIFT_MOST
from kos_cluster.sim.disk import SYNC_MOST_S, Crash
from kos_cluster.sim.network import DELAY_MOST_S
from kos_cluster.sim.replica import Doom

if TYPE_CHECKING:
    from kos_cluster.sim.host import Host
    from kos_cluster.sim.world import World

GAP_MEAN_S = 1.0  # from one fault to the next, at pace 1
LASTS_LEAST_S, LASTS_MEAN_S, LASTS_MOST_S = 0.2, 2.5, 30.0
PACES = (0.5, 1.0, 3.0)  # a schedule has many short faults, or few long ones
WRITES_MOST = 12  # up to so many writes a doomed host still makes
DOOM_LATEST_S = 1.0  # a doomed host that does not write so much dies by then
JUMP_MOST_S = 120.0  # of a wall clock, forward or back
CRASHES = tuple(Crash)


class Fault(msgspec.Struct, frozen=True):
    """One thing that goes wrong. `hosts` are counted from 0; `size` is from 0 to 1, and means what `kind` says."""

    at_s: float
    kind: str
    lasts_s: float
    hosts: tuple[int, ...]
    size: float


class Kind(msgspec.Struct, frozen=True):
    """How a fault of a kind is done, and undone."""

    begin: Callable[[World, Fault], None]
    end: Callable[[World, Fault], None] = lambda world, fault: None


def draw(random: Random, kinds: Sequence[str], nodes: int, until_s: float) -> tuple[Fault, ...]:
    """A schedule. With "crash" among the kinds, at least one host crashes before `until_s`."""
    faults: list[Fault] = []
    at_s, pace = 0.5, random.choice(PACES)
    while kinds and (at_s := at_s + random.expovariate(1 / GAP_MEAN_S / pace)) < until_s:
        faults.append(_draw_one(random, random.choice(kinds), nodes, at_s, pace))
    if "crash" in kinds and not any(f.kind == "crash" and f.at_s < until_s - DOOM_LATEST_S for f in faults):
        faults.append(_draw_one(random, "crash", nodes, random.uniform(0.2, 0.7) * (until_s - DOOM_LATEST_S), pace))
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _draw_one(random: Random, kind: str, nodes: int, at_s: float, pace: float) -> Fault:
    count = random.randint(1, max(1, nodes - 1)) if kind in ("partition", "oneway") else 1
    hosts = tuple(sorted(random.sample(range(nodes), count)))
    lasts_s = round(min(LASTS_LEAST_S + random.expovariate(1 / LASTS_MEAN_S / pace), LASTS_MOST_S), 2)
    return Fault(round(at_s, 3), kind, lasts_s, hosts, round(random.random(), 3))


def plan(world: World, faults: Sequence[Fault]) -> None:
    """Enter a schedule into a world's agenda."""
    for fault in faults:
        world.agenda.at(fault.at_s, _begin, world, fault)


def _begin(world: World, fault: Fault) -> None:
    world.note("-", "fault", fault)
    KINDS[fault.kind].begin(world, fault)
    world.agenda.after(fault.lasts_s, KINDS[fault.kind].end, world, fault)


def _hosts(world: World, fault: Fault) -> list[Host]:
    return [world.hosts[world.names[number % len(world.names)]] for number in fault.hosts]


def _sides(world: World, fault: Fault) -> tuple[list[str], list[str]]:
    one = [host.name for host in _hosts(world, fault)]
    return one, [name for name in world.names if name not in one]


# ---- the network


def _lose(world: World, fault: Fault) -> None:
    world.network.loss_rate = 0.05 + 0.45 * fault.size


def _lose_no_more(world: World, fault: Fault) -> None:
    world.network.loss_rate = 0.0


def _double(world: World, fault: Fault) -> None:
    world.network.double_rate = 0.05 + 0.45 * fault.size


def _double_no_more(world: World, fault: Fault) -> None:
    world.network.double_rate = 0.0


def _delay(world: World, fault: Fault) -> None:
    world.network.delay_most_s = 0.02 + 0.8 * fault.size


def _delay_no_more(world: World, fault: Fault) -> None:
    world.network.delay_most_s = DELAY_MOST_S


def _stray(world: World, fault: Fault) -> None:
    world.network.stray_rate = 0.05 + 0.3 * fault.size


def _stray_no_more(world: World, fault: Fault) -> None:
    world.network.stray_rate = 0.0


def _part(world: World, fault: Fault) -> None:
    one, other = _sides(world, fault)
    world.network.cut(one, other)
    world.network.cut(other, one)


def _join(world: World, fault: Fault) -> None:
    one, other = _sides(world, fault)
    world.network.mend(one, other)
    world.network.mend(other, one)


def _silence(world: World, fault: Fault) -> None:
    world.network.cut(*_sides(world, fault))


# ---- hosts


def _doom(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        replica = world.replicas[host.name]
        point, skip = divmod(fault.size * len(CRASHES), 1)  # a quarter of the sizes for each point
        crash = CRASHES[int(point) % len(CRASHES)]
        replica.doom = Doom(crash, int(skip * WRITES_MOST), fault.lasts_s)
        world.agenda.after(DOOM_LATEST_S, _die, world, host, host.boots, crash, fault.lasts_s)


def _die(world: World, host: Host, boot: int, crash: Crash, down_s: float) -> None:
    if host.boots == boot and not world.healed:
        world.crash(host, crash, down_s)


def _slow_disk(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        world.replicas[host.name].disk.sync_most_s = 0.05 + fault.size


def _quick_disk(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        world.replicas[host.name].disk.sync_most_s = SYNC_MOST_S


def _fill(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        world.replicas[host.name].disk.full = True


def _empty(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        world.replicas[host.name].disk.full = False


def _skew(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.clock.jump((fault.size - 0.5) * 2 * JUMP_MOST_S)
        _retime(world, host, 1 - DRIFT_MOST + 2 * DRIFT_MOST * fault.size)


def _unskew(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        _retime(world, host, 1.0)


def _retime(world: World, host: Host, rate: float) -> None:
    host.clock.drift(world.agenda.now_s, rate)
    if host.up:
        for program in host.programs.values():
            host.watch(program)


def _slow(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.lag_s = 0.001 + 0.02 * fault.size


def _quick(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.lag_s = 0.0


def _pause(world: World, fault: Fault) -> None:
    for host in _hosts(world, fault):
        host.pause(world.agenda.now_s + fault.lasts_s)


# ---- operators


def _change_voters(world: World, fault: Fault) -> None:
    world.workload.change_voters(twice=fault.size > 0.7)


def _transfer(world: World, fault: Fault) -> None:
    world.workload.transfer()


KINDS: dict[str, Kind] = {
    "loss": Kind(_lose, _lose_no_more),
    "double": Kind(_double, _double_no_more),
    "delay": Kind(_delay, _delay_no_more),
    "stray": Kind(_stray, _stray_no_more),
    "partition": Kind(_part, _join),
    "oneway": Kind(_silence, _join),
    "crash": Kind(_doom),
    "disk": Kind(_slow_disk, _quick_disk),
    "full": Kind(_fill, _empty),
    "clock": Kind(_skew, _unskew),
    "slow": Kind(_slow, _quick),
    "pause": Kind(_pause),
    "voters": Kind(_change_voters),
    "transfer": Kind(_transfer),
}
