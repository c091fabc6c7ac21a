"""`kos mem status`: how full the arena of each node is, and with what."""

from __future__ import annotations

import argparse

import msgspec

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, size

COLUMNS = (
    Column("NODE"),
    Column("USED", right=True),
    Column("LIMIT", right=True),
    Column("HELD", right=True),
    Column("PINNED", right=True),
    Column("SPILLED", right=True),
    Column("SPILL LIMIT", right=True),
    Column("BLOCKS", right=True),
)


def mem_status_(parsed: argparse.Namespace, console: Console) -> int:
    """List the nodes' arenas."""
    told = sorted(kos.connect(parsed.cluster).memory().items())
    records = [{"node": node, **msgspec.structs.asdict(usage)} for node, usage in told]
    if parsed.json:
        console.json(records)
        return 0
    rows = [
        [
            node,
            size(usage.used_bytes),
            size(usage.limit_bytes),
            size(usage.held_bytes),
            size(usage.pinned_bytes),
            size(usage.spilled_bytes),
            size(usage.spill_limit_bytes),
            str(usage.blocks),
        ]
        for node, usage in told
    ]
    console.listing(records, COLUMNS, rows)
    return 0
