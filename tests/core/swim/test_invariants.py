"""What holds at any time, whatever the network and the nodes do; and that all agree once they behave."""

from __future__ import annotations

import random

import pytest

from kos_cluster.core.records import Member, MemberState
from kos_cluster.core.swim import Leave, MemberChanged, Ping, Send, UpdateSelf, Why
from kos_cluster.core.swim.messages import precedence
from tests.core.swim.harness import Net, member

COUNT = 7


def rank(of: Member) -> int:
    return precedence(of.incarnation, of.state)


def disturb(net: Net, rng: random.Random, kept: dict[int, list], incarnation: int) -> None:
    """Do something to one node, or to the network."""
    number, deed = (
        rng.randrange(COUNT),
        rng.choice(("crash", "stop", "leave", "start", "start", "change", "cut", "mend")),
    )
    runs = number in net.swims
    if deed == "start" and not runs:
        net.start(number, incarnation, kept.get(number, []))
        for other in sorted(net.swims):
            net.join(number, other)
    elif deed in ("crash", "stop", "leave") and runs and len(net.swims) > 2:
        kept[number] = net.swims[number].known()
        if deed != "crash":
            net.handle(number, Leave(deed == "leave"))
            net.run(0.3)
        net.crash(number)
    elif deed == "change" and runs:
        net.handle(number, UpdateSelf(member(number, slots=incarnation)))
    elif deed == "cut":
        side = {n for n in range(COUNT) if rng.random() < 0.5}
        one_way = rng.random() < 0.5
        net.cut = lambda a, b: (a in side) > (b in side) if one_way else (a in side) != (b in side)
    elif deed == "mend":
        net.cut = lambda a, b: False


@pytest.mark.parametrize("seed", range(12))
def test_beliefs_only_ever_grow_and_all_agree_in_the_end(seed: int):
    net, rng, kept = Net(COUNT, seed), random.Random(seed), {}
    net.unruly = 0.1
    for step in range(25):
        disturb(net, rng, kept, 1000 + step)
        net.run(rng.random() * 6)
    net.unruly, net.cut = 0.0, lambda a, b: False
    for number in set(range(COUNT)) - set(net.swims):
        net.start(number, 5000, kept[number])
        net.join(number, min(net.swims))
    began = net.now
    while not net.agreed():
        assert net.now - began < 90.0, f"seed {seed}: no agreement"
        net.run(1.0)

    held: dict[tuple[int, str], int] = {}
    views: dict[int, int] = {}
    for _, number, effect in net.trace:
        if not isinstance(effect, MemberChanged):
            continue
        if effect.view < views.get(number, 0):  # it started anew
            held = {key: value for key, value in held.items() if key[0] != number}
        views[number] = effect.view
        key = (number, effect.member.id)
        assert rank(effect.member) > held.get(key, -1), f"seed {seed}: {effect}"
        assert effect.member.state is not MemberState.SUSPECT or effect.member.id != f"id{number}"
        held[key] = rank(effect.member)
    for swim in net.swims.values():
        assert not {Why.FORGED, Why.MALFORMED, Why.CONTRADICTS} & set(swim.ignored), f"seed {seed}: {swim.ignored}"

    net.trace.clear()
    net.run(120.0)  # those in bad local health probe slowly at first
    pings = {(n, e.id) for _, n, e in net.trace if isinstance(e, Send) and isinstance(e.message, Ping)}
    assert len(pings) == COUNT * (COUNT - 1), f"seed {seed}: each probes each of the others"
