"""`kos up`, `down` and `node`: starting and stopping this machine's nodes."""

from __future__ import annotations

import argparse
import os
import sys
import time

import msgspec

from kos_cluster.cli.console import Console
from kos_cluster.core.capacity import Declared
from kos_cluster.errors import NotInClusterError, UsageError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.services import daemons, embedded, sweeping


def up_(parsed: argparse.Namespace, console: Console) -> int:
    """Start the embedded cluster, or this machine's nodes of the one it is in."""
    home, began = Home(), time.perf_counter()
    told = declared(parsed) if parsed.label or parsed.resource else None
    cluster = _selected(home, parsed.cluster)
    with daemons.changing(home):
        local = cluster.name == EMBEDDED_NAME
        if local:
            result = embedded.up(home, parsed.count, parsed.profile, told)
        else:
            result = _joined_up(cluster, parsed.count, parsed.profile, told)
        if len(home.clusters()) == 1:
            home.set_current(cluster.name)
    console.answer(_told(result, time.perf_counter() - began))
    if not result.settled:
        console.note("Not enough nodes vote yet; 'kos cluster status' tells what the loss of one would mean.")
    return 0


def down_(parsed: argparse.Namespace, console: Console) -> int:
    """Stop this machine's nodes and sweep up after them."""
    home = Home()
    cluster = _selected(home, parsed.cluster)
    if cluster.name != EMBEDDED_NAME:
        cluster.read()  # refuses a cluster that this machine is not in
    with daemons.changing(home):
        stopped = embedded.down(cluster)
    if stopped:
        console.answer(f"Cluster {cluster.name!r} is down on this machine: {', '.join(stopped)} stopped.")
    else:
        console.answer(f"Cluster {cluster.name!r} does not run on this machine.")
    return 0


def node_(parsed: argparse.Namespace, console: Console) -> int:
    """Become this machine's node daemon, in the foreground. Does not return."""
    home = Home()
    cluster = home.cluster(parsed.cluster)
    names = cluster.read().nodes
    if parsed.name not in (*names, None) or not names:
        raise NotInClusterError(
            f"This machine runs no node {parsed.name or ''} of cluster {cluster.name!r}.".replace("  ", " "),
            f"Its nodes are: {', '.join(names)}." if names else "Join with a node token: 'kos cluster join'.",
        )
    if parsed.name is None and len(names) > 1:
        raise UsageError(f"This machine has several nodes: {', '.join(names)}.", "Name one with --name.")
    node = parsed.name or names[0]
    if sweeping.alive(cluster, node):
        raise UsageError(f"Node {node} runs already.", "Type 'kos down' first.")
    words, environ = daemons.command(cluster, node)
    console.note(f"Node {node} of cluster {cluster.name!r} starts; interrupt it to stop.")
    sys.stdout.flush()
    os.execve(words[0], words, environ)


def _selected(home: Home, name: str | None) -> ClusterHome:
    """The cluster that was named or is current; the embedded one when this machine is in none."""
    try:
        return home.cluster(name)
    except NotInClusterError:
        return ClusterHome(home, EMBEDDED_NAME)


def declared(parsed: argparse.Namespace) -> Declared:
    """The labels and resources that a node is to have. Raises UsageError when they are too many to be gossiped."""
    told = Declared(dict(parsed.label), dict(parsed.resource))
    if told.fault:
        raise UsageError(f"{told.fault[:1].upper()}{told.fault[1:]}.", "Declare fewer, or use shorter names.")
    return told


def _joined_up(cluster: ClusterHome, count: int | None, profile: str | None, told: Declared | None) -> embedded.Up:
    """Start this machine's nodes of a cluster that was created or joined; `told`: with these labels from now on."""
    nodes = cluster.read().nodes
    if count is not None:
        raise UsageError(
            f"-n is for a cluster on this machine alone, but the selected one is {cluster.name!r}.",
            "Type 'kos up' to start this machine's node of it, or 'kos --cluster local up -n N'.",
        )
    if profile is not None:
        raise UsageError(
            f"--profile is for a new cluster, but the selected one is {cluster.name!r}.",
            "It is chosen once, with 'kos cluster create'.",
        )
    if not nodes:
        raise UsageError(
            f"This machine only submits to cluster {cluster.name!r} and runs no node of it.",
            "Type 'kos --cluster local up' for a cluster on this machine.",
        )
    for node in nodes if told is not None else ():
        start = daemons.read_start(cluster, node)
        if sweeping.alive(cluster, node) and start.declared != told:
            raise UsageError(f"Node {node} is up without these labels and resources.", "Type 'kos down' first.")
        daemons.write_start(cluster, node, msgspec.structs.replace(start, declared=told))
    return embedded.Up(cluster, nodes, daemons.resume(cluster))


def _told(result: embedded.Up, seconds: float) -> str:
    cluster, names = result.cluster, ", ".join(result.nodes)
    if not result.started:
        return f"Cluster {cluster.name!r} is up already on this machine: {names}."
    if cluster.name != EMBEDDED_NAME:
        return f"Started {', '.join(result.started)} of cluster {cluster.name!r} in {seconds:.1f} s."
    if len(result.started) < len(result.nodes):
        verb = "runs" if len(result.started) == 1 else "run"
        return f"Cluster {cluster.name!r} is whole again: {', '.join(result.started)} had died and {verb} anew."
    slots = embedded.slots_a_node(len(result.nodes))
    return (
        f"Cluster {cluster.name!r} is up in {seconds:.1f} s: {names} with {slots} slot{'s' * (slots > 1)} each. "
        "Next: 'kos nodes', 'kos run --distribute script.py'; 'kos down' ends it."
    )
