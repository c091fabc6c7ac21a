"""How much of each work is run."""

from __future__ import annotations

import msgspec

MIB = 1 << 20
SETTLE_S = 4  # after a start, on each system alike: what nodes import then takes the cores


class Plan(msgspec.Struct, frozen=True):
    """Of one repeat."""

    sync_s: float
    submits: int  # and a fifth of them once more, by themselves
    map_items: int
    warm_up: int  # tasks before each work that are not counted
    spins: int  # of a millisecond
    leaves: int  # of the tree
    argument_bytes: int
    broadcast_bytes: int
    result_bytes: int
    sweep_values: int  # of each of the two parameters
    nap_s: float
    reduce_bytes: int
    sleeps: int  # on each daemon
    daemons: tuple[int, ...]  # of "scaling"; each is among `figures.SLEEPS`
    settle_s: float = 0.0


FULL = Plan(
    sync_s=1.5,
    submits=5_000,
    map_items=100_000,
    warm_up=200,
    spins=10_000,
    leaves=512,
    argument_bytes=64 * MIB,
    broadcast_bytes=256 * MIB,
    result_bytes=100 * MIB,
    sweep_values=6,
    nap_s=0.5,
    reduce_bytes=64 * MIB,
    sleeps=200,
    daemons=(1, 2, 4, 8, 16),
    settle_s=SETTLE_S,
)
QUICK = Plan(
    sync_s=0.3,
    submits=300,
    map_items=2_000,
    warm_up=20,
    spins=500,
    leaves=32,
    argument_bytes=4 * MIB,
    broadcast_bytes=8 * MIB,
    result_bytes=4 * MIB,
    sweep_values=2,
    nap_s=0.1,
    reduce_bytes=4 * MIB,
    sleeps=20,
    daemons=(1, 4),
    settle_s=SETTLE_S,
)
