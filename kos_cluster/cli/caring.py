"""`kos cluster drain`, `remove` and `rotate`: looking after the nodes of a cluster.

Rules: what cannot be taken back is asked about at a terminal, and elsewhere needs `--yes`. Names that are no node's are
refused before anything is done.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.core.records import MemberState
from kos_cluster.errors import KosError, NoSuchNodeError, UsageError

ALIVE = (MemberState.ALIVE, MemberState.SUSPECT)


def drain_(parsed: argparse.Namespace, console: Console) -> int:
    """Give a node no more work, or work again."""
    cluster = kos.connect(parsed.cluster)
    node = _node(cluster.nodes(), parsed.node)
    cluster.drain_node(node["id"], undo=parsed.undo)
    console.answer(_drained(node, parsed.undo))
    return 0


def remove_(parsed: argparse.Namespace, console: Console) -> int:
    """Remove a node, or a user's identity, for good."""
    cluster = kos.connect(parsed.cluster)
    if not parsed.yes:
        _confirm(cluster.name, parsed.node, cluster.nodes())
    removed = cluster.remove(parsed.node)
    console.answer(f"Removed from cluster {cluster.name!r}: {', '.join(removed)}. Their certificates are refused.")
    console.note("To come back, type 'kos cluster leave' there, and join with a new token.")
    return 0


def rotate_(parsed: argparse.Namespace, console: Console) -> int:
    """Renew the certificates of these nodes; of all, and this machine's own, when none is named."""
    cluster = kos.connect(parsed.cluster)
    nodes = cluster.nodes()
    named = [_node(nodes, name) for name in parsed.nodes]
    standing = [row for row in nodes if row["state"] != MemberState.LEFT]
    failed: KosError | None = None
    for node in named or [row for row in standing if row["state"] in ALIVE]:
        try:
            console.answer(_renewed(node["name"], cluster.renew_node(node["id"])))
        except KosError as error:
            console.note(f"kos: {node['name']}: {error}")
            failed = failed or error
    if not named:
        console.answer(_renewed(f"{cluster.status()['identity']}, this machine's own", cluster.renew()))
        for node in standing:
            if node["state"] not in ALIVE:
                console.note(f"{node['name']} is {node['state']}; it renews its certificate by itself once it is back.")
    return failed.exit_code if failed is not None else 0


def _node(nodes: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The node of that name or id that has not left. Raises NoSuchNodeError."""
    standing = [row for row in nodes if row["state"] != MemberState.LEFT]
    for row in standing:
        if name in (row["name"], row["id"]):
            return row
    raise NoSuchNodeError(f"No node is named {name!r}.", f"The cluster has {', '.join(r['name'] for r in standing)}.")


def _drained(node: dict[str, Any], undo: bool) -> str:
    name = node["name"]
    if node["state"] not in ALIVE:
        later = "it may work again" if undo else "it gets no work"
        return f"{name} is {node['state']}; when it comes back, {later}."
    if undo:
        return f"{name} is given work again."
    left = node["running"] + node["queued"]
    goes_on = f"{left} task{'s' * (left > 1)} there go{'es' * (left == 1)} on" if left else "nothing runs there now"
    return f"{name} is drained: it gets no more work; {goes_on}."


def _renewed(whose: str, end_s: float) -> str:
    return f"{whose}: renewed, good until {time.strftime('%Y-%m-%d', time.localtime(end_s))}."


def _confirm(cluster: str, name: str, nodes: Sequence[dict[str, Any]]) -> None:
    """Ask whether this is meant. Raises UsageError when it is not, or nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError(f"Removing {name} is for good, and nobody can be asked here.", "Add --yes if it is meant.")
    found = [row for row in nodes if name in (row["name"], row["id"])]
    told = f"node {found[0]['name']} ({found[0]['state']}, {found[0]['address']})" if found else name
    sys.stderr.write(f"Remove {told} from cluster {cluster!r} for good? Its certificates will be refused. [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("Nothing was removed.", "Type y to remove it.")
