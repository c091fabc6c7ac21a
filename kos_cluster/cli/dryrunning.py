"""`kos dry-run`: where `kos run` with the same options would go, and why; nothing is run."""

from __future__ import annotations

import argparse

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.running import folder, placing
from kos_cluster.cli.tables import Column
from kos_cluster.tasks import launching

COLUMNS = (Column("NODE"), Column("WHAT COMES OF IT THERE"))


def dry_run_(parsed: argparse.Namespace, console: Console) -> int:
    """Print a placement. Raises PlacementError for what can never run."""
    cluster = kos.connect(parsed.cluster)
    modules: tuple[str, ...] = ()
    if parsed.distribute and parsed.argv:
        program = launching.script_program(parsed.argv, folder(), report=console.note, **placing(parsed))
        modules = program.spec.modules
    found = cluster.would_go(modules=modules, **placing(parsed))
    if parsed.json:
        console.json(found)
        return 0
    console.answer(f"It would go to {found.reasons[0]}." if found.node else f"It would wait: {found.reasons[0]}.")
    rows = [{"node": name, "standing": standing} for name, standing in found.nodes.items()]
    console.listing(rows, COLUMNS, [list(row.values()) for row in rows])
    return 0
