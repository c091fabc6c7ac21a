"""`kos nodes` and `kos status`: what the cluster is made of, and what it could stand to lose."""

from __future__ import annotations

import argparse
from typing import Any

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column, rate

NODE_COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("ADDRESS"),
    Column("SLOTS", right=True),
    Column("RUNNING", right=True),
    Column("CPU", right=True),
    Column("MEMORY", right=True),
    Column("NET IN", right=True),
    Column("NET OUT", right=True),
    Column("VERSION"),
    Column(""),
)


def nodes_(parsed: argparse.Namespace, console: Console) -> int:
    """List the nodes."""
    nodes = kos.connect(parsed.cluster).nodes()
    if parsed.json:
        console.json(nodes)
    else:
        console.listing(nodes, NODE_COLUMNS, [_row(node) for node in nodes])
    return 0


def status_(parsed: argparse.Namespace, console: Console) -> int:
    """Tell the cluster's state."""
    status = kos.connect(parsed.cluster).status()
    if parsed.json:
        console.json(status)
    else:
        console.facts(status, _status_lines(status))
    return 0


def _status_lines(status: dict[str, Any]) -> list[str]:
    voters = [f"Voters: {', '.join(status['voters'])}."] if status["voters"] else []
    drained = [f"Drained, so given no more work: {', '.join(status['drained'])}."] if status["drained"] else []
    silent = [f"No answer from here in time, so known from others: {', '.join(status['silent'])}."]
    return [
        f"Cluster {status['cluster']}: {status['alive']} of {status['nodes']} nodes alive.",
        f"Slots: {status['running']} of {status['slots']} busy.",
        f"Coordinator: {status['coordinator'] or 'not alive'}.",
        *voters,
        *drained,
        *(silent if status["silent"] else []),
        *(f"{name} takes no part in the decisions: {trouble}" for name, trouble in status["trouble"].items()),
        f"You are {status['identity']}, with the role {status['role']}.",
        status["loss"],
    ]


def _row(node: dict[str, Any]) -> list[str]:
    return [
        node["name"],
        node["state"],
        node["address"],
        str(node["slots"]),
        str(node["running"]),
        f"{node['cpu_percent']:.0f} %",
        f"{node['memory_percent']:.0f} %",
        rate(node["received_bytes_s"]),
        rate(node["sent_bytes_s"]),
        node["version"],
        ", ".join(_notes(node)),
    ]


def _notes(node: dict[str, Any]) -> list[str]:
    """What is particular about a node."""
    vote = ["coordinator"] if node["coordinator"] else ["voter"] if node["voter"] else []
    silent = ["does not answer"] if node["state"] == "alive" and not node["answers"] else []
    trouble = [f"takes no part: {node['trouble']}"] if node["trouble"] else []
    return [*vote, *(["drained"] if node["drained"] else []), *silent, *trouble]
