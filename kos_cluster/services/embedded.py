"""The embedded cluster: all nodes on this machine, on loopback, made by `kos up` and removed by `kos down`.

Rules: one `up` or `down` at a time in a home. `up` returns when every node can take work and the cluster has its
voters, so that no loss of one node stops it from then on; or raises and leaves nothing running. Typing `up` or `down`
again is always safe: `up` starts only what has died.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass

import msgspec

from kos_cluster.core.capacity import Declared
from kos_cluster.errors import PortTakenError, UsageError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.net.identity import Credentials
from kos_cluster.services import sweeping
from kos_cluster.services.daemons import DEFAULT_PROFILE, NodeStart, read_start, resume, start_all, write_start
from kos_cluster.services.founding import found
from kos_cluster.services.ports import LOOPBACK, free_pairs
from kos_cluster.services.settling import settled

DEFAULT_NODES_LIMIT = 4  # of `kos up` without -n; more daemons than that only cost memory
NODES_LIMIT = 64
PORT_TRIES = 3


@dataclass(frozen=True)
class Up:
    """What `up` did. `started` names the nodes that did not run before.

    `settled`: enough of them vote. On a slow machine that can take longer than `up` waits.
    """

    cluster: ClusterHome
    nodes: list[str]
    started: list[str]
    settled: bool = True


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def default_count() -> int:
    """How many nodes `kos up` makes when it is not told."""
    return min(cores(), DEFAULT_NODES_LIMIT)


def slots_a_node(count: int) -> int:
    """Slots of each of `count` nodes that share this machine."""
    return max(1, cores() // count)


def up(
    home: Home,
    count: int | None,
    profile: str | None = None,
    declared: Declared | None = None,
    slots: int | None = None,
) -> Up:
    """Form the embedded cluster, or start what has died of it. Call within `daemons.changing`.

    Each node has what is `declared`, its share of the machine's memory and GPUs, and as many slots as are asked for, or
    its share of the cores. Raises UsageError when it runs with another number of nodes, or another profile, labels or
    resources.
    """
    if count is not None and count > NODES_LIMIT:
        raise UsageError(f"{count} nodes on one machine are too many.", f"Use at most {NODES_LIMIT}.")
    cluster = ClusterHome(home, EMBEDDED_NAME)
    if cluster.exists():
        nodes = cluster.read().nodes
        running = [node for node in nodes if sweeping.alive(cluster, node)]
        if running and count not in (None, len(nodes)):
            raise UsageError(
                f"A cluster of {len(nodes)} nodes is up on this machine ({', '.join(nodes)}), not of {count}.",
                "Type 'kos down' first.",
            )
        if running and profile not in (None, read_start(cluster, nodes[0]).profile):
            raise UsageError(
                f"A cluster without the profile {profile!r} is up on this machine ({', '.join(nodes)}).",
                "Type 'kos down' first.",
            )
        if running and declared not in (None, read_start(cluster, nodes[0]).declared):
            raise UsageError(
                f"A cluster without these labels and resources is up on this machine ({', '.join(nodes)}).",
                "Type 'kos down' first.",
            )
        if running:
            with contextlib.suppress(PortTakenError):  # then all of them get other ports
                started = resume(cluster)
                return Up(cluster, nodes, started, _settled(cluster, nodes))
        count = count or len(nodes)
    plan = NodeStart(LOOPBACK, 0, profile=profile or DEFAULT_PROFILE, beacon=False, declared=declared or Declared())
    count = count or default_count()
    return _formed(cluster, count, msgspec.structs.replace(plan, slots=slots or slots_a_node(count)))


def down(cluster: ClusterHome) -> list[str]:
    """Stop this machine's nodes and sweep up after them; an embedded cluster's folder goes too.

    Call within `daemons.changing`. Gives the names of those that ran. Safe at any time, also when `up` was killed.
    """
    stopped = sweeping.stop(cluster, sweeping.node_folders(cluster))
    sweeping.sweep(cluster)
    if cluster.name == EMBEDDED_NAME and cluster.path.exists():
        shutil.rmtree(cluster.path)
    return stopped


def _formed(cluster: ClusterHome, count: int, plan: NodeStart) -> Up:
    """A new embedded cluster, each node after the plan; on other ports if somebody took the ones that were free."""
    nodes = [f"node{number}" for number in range(1, count + 1)]
    for tries_left in reversed(range(PORT_TRIES)):
        down(cluster)
        try:
            _found(cluster, nodes, plan)
            start_all(cluster, nodes)
            return Up(cluster, nodes, nodes, _settled(cluster, nodes))
        except PortTakenError:
            down(cluster)
            if not tries_left:
                raise
        except BaseException:
            down(cluster)
            raise
    raise AssertionError("the last try returns or raises")


def _found(cluster: ClusterHome, nodes: list[str], plan: NodeStart) -> None:
    """Give the nodes credentials and free ports. The first one founds; the others are told where all are."""
    ports = free_pairs(len(nodes))
    addresses = [f"{LOOPBACK}:{port}" for port in ports]
    found(cluster, nodes, addresses, embedded=True)
    for place, (node, port) in enumerate(zip(nodes, ports, strict=True), 1):
        bootstrap = [] if node == nodes[0] else [address for address in addresses if address != f"{LOOPBACK}:{port}"]
        write_start(
            cluster, node, msgspec.structs.replace(plan, port=port, bootstrap=bootstrap, share=(place, len(nodes)))
        )


def _settled(cluster: ClusterHome, nodes: list[str]) -> bool:
    """Whether enough of the nodes vote.

    The last one is asked, not the founder: what a follower tells, the loss of the founder cannot undo.
    """
    asked = sweeping.alive(cluster, nodes[-1])
    if asked is None:
        return False
    return settled(Credentials.load(cluster.client), f"{asked.host}:{asked.port}", len(nodes))
