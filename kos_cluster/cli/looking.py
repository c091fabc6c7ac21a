"""`kos nodes` and `kos status`: what the cluster is made of, and what it could stand to lose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column
from kos_cluster.home import Home
from kos_cluster.net.identity import Credentials

NODE_COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("ADDRESS"),
    Column("SLOTS", right=True),
    Column("RUNNING", right=True),
    Column("CPU", right=True),
    Column("MEMORY", right=True),
    Column("VERSION"),
    Column(""),
)


def nodes_(parsed: argparse.Namespace, console: Console) -> int:
    """List the nodes."""
    nodes = kos.connect(parsed.cluster).nodes()
    if parsed.json:
        console.json(nodes)
    else:
        console.table(NODE_COLUMNS, [_row(node) for node in nodes])
    return 0


def status_(parsed: argparse.Namespace, console: Console) -> int:
    """Tell the cluster's state."""
    cluster = Home().cluster(parsed.cluster)
    role = Credentials.load(cluster.client).peer.role
    status = summary(cluster.name, kos.connect(cluster.name).nodes(), role.value)
    if parsed.json:
        console.json(status)
        return 0
    console.answer(f"Cluster {status['cluster']}: {status['alive']} of {status['total']} nodes alive.")
    console.answer(f"Slots: {status['running']} of {status['slots']} busy.")
    console.answer(f"Coordinator: {status['coordinator'] or 'none is reachable'}.")
    console.answer(f"You are: {status['role']}.")
    console.answer(f"Losing a node: {status['loss']}")
    return 0


def summary(cluster: str, nodes: Sequence[dict[str, Any]], role: str) -> dict[str, Any]:
    """What `kos status` says, as values."""
    alive = [node for node in nodes if node["state"] == "alive"]
    standing = [node for node in nodes if node["state"] != "left"]
    coordinator = next((node["name"] for node in standing if node["coordinator"]), "")
    return {
        "cluster": cluster,
        "alive": len(alive),
        "total": len(standing),
        "coordinator": coordinator,
        "slots": sum(node["slots"] for node in alive),
        "running": sum(node["running"] for node in alive),
        "role": role,
        "loss": _loss(len(alive), coordinator),
    }


def _loss(alive: int, coordinator: str) -> str:
    """What the loss of a node would mean, said as it is."""
    keeper = (
        f"{coordinator} founded the cluster and keeps its registry for now: while it is down, work goes on, "
        "but no machine can join and no token can be made."
    )
    if alive == 0:
        return "no node is alive; nothing can run. Type 'kos up' on a machine of the cluster."
    if alive == 1:
        return "there is one node, so losing it loses the cluster and all that runs on it."
    if alive == 2:
        return f"with two nodes the work of a lost one runs again on the other, but there is no quorum. {keeper}"
    return f"the work of a lost node runs again on the others. {keeper}"


def _row(node: dict[str, Any]) -> list[str]:
    return [
        node["name"],
        node["state"],
        node["address"],
        str(node["slots"]),
        str(node["running"]),
        f"{node['cpu_percent']:.0f} %",
        f"{node['memory_percent']:.0f} %",
        node["version"],
        "coordinator" if node["coordinator"] else "",
    ]
