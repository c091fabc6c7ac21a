"""The defects that mutants have: what each replaces, and under which faults to look for it. See `sim.mutants`."""

from __future__ import annotations

import msgspec

from kos_cluster.sim.patching import Patch


class Mutant(msgspec.Struct, frozen=True):
    """One defect: `what` it does wrong, the attributes that plant it, and the faults under which to look for it."""

    what: str
    patches: tuple[Patch, ...]
    kinds: tuple[str, ...]
    membership: bool = False  # whether hosts run SWIM meanwhile
    seconds: float = 20.0  # of each seed, until it is healed
