"""An owner's machine with nodes that are up, and what one asks of it."""

from __future__ import annotations

import random

from kos_cluster.core import ownership as own
from kos_cluster.core.records import Member, MemberState, Versions

VERSIONS = Versions("0", 1, "3.11.0", "", "3")


def member(number: int, slots: int = 2) -> Member:
    return Member(f"id{number}", f"node{number}", "h", 1, slots, VERSIONS, 1, MemberState.ALIVE, memory_bytes=1 << 33)


def machine(nodes: int = 2, slots: int = 2, seed: int = 0) -> own.Ownership:
    core = own.Ownership(random.Random(seed))
    for number in range(nodes):
        core.handle(own.NodeUp(member(number, slots)), 0.0)
    return core


def opened(core: own.Ownership, count: int, **spec: object) -> list[own.Effect]:
    core.handle(own.Opened(own.JobSpec("j", "f", **spec)), 1.0)  # type: ignore[arg-type]
    return core.handle(own.Added("j", count), 1.0)


def dispatches(effects: list[own.Effect]) -> list[own.Dispatch]:
    return [e for e in effects if isinstance(e, own.Dispatch)]


def done(core: own.Ownership, d: own.Dispatch, now: float = 2.0, elapsed_s: float = 1e-6) -> list[own.Effect]:
    return core.handle(own.Outcomes(d.batch, d.node, d.runs, frozenset(), elapsed_s), now)


def waits(core: own.Ownership, now: float = 2.0) -> tuple[str, ...]:
    told = core.standing("j", now)
    assert told is not None
    return told[1]
