"""Deliberate defects, planted in memory: what the simulator must catch, or it proves nothing.

Theory of operation. A mutant replaces a few attributes of the machines, of their ordering, or of what the simulator
itself is trusted with (a disk's loader), runs seeds with the faults that could bring it to light, and is caught by the
first seed in which a rule breaks. Each is a mistake that somebody has made in a system of this kind.

Rules: the product's code knows nothing of mutants. A seed of a mutant is a seed as any other, so what caught it can be
replayed by `hunt` with `first` set to it. A mutant that `SEEDS_LIMIT` seeds do not catch is a defect of the simulator.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import msgspec

from kos_cluster.sim.defects import Mutant
from kos_cluster.sim.defects.above import ABOVE
from kos_cluster.sim.defects.raft import RAFT
from kos_cluster.sim.patching import patched
from kos_cluster.sim.run import Options, run_seed

SEEDS_LIMIT = 1000  # within which each must be caught
MUTANTS: dict[str, Mutant] = {**RAFT, **ABOVE}


class Catch(msgspec.Struct, frozen=True):
    """How a hunt ended: after so many `seeds`, at the last of them, by which rule; no rule: not caught."""

    mutant: str
    seeds: int
    seed: int
    rule: str
    what: str


def hunt(name: str, first: int = 0, limit: int = 0) -> Catch:
    """Run seeds until one breaks a rule, or `limit` of them (0: `SEEDS_LIMIT`) have not."""
    mutant, limit = MUTANTS[name], limit or SEEDS_LIMIT
    options = Options(seconds=mutant.seconds, kinds=mutant.kinds, membership=mutant.membership)
    with patched(mutant.patches):
        for count in range(1, limit + 1):
            result = run_seed(first + count - 1, options)
            if result.rule:
                return Catch(name, count, result.seed, result.rule, result.what)
    return Catch(name, limit, first + limit - 1, "", "")


def hunt_all(processes: int = 1) -> Iterator[Catch]:
    """Hunt them all, in as many processes as given."""
    if processes <= 1:
        yield from map(hunt, MUTANTS)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(hunt, MUTANTS)
