"""From the wish for a token to the first result from the node that joined with it.

A cluster as `kos cluster create` makes it, on loopback; the joiner has a home of its own. Its daemon is started by the
join, which is most of the time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from kos_cluster.home import ClusterHome, Home
from kos_cluster.net.jointoken import JoinToken
from kos_cluster.services import membership
from kos_cluster.services.bench.control.figures import Figure, Work, figure
from kos_cluster.services.bench.fleet import scratch
from kos_cluster.services.ports import LOOPBACK, free_pairs
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh

REPEATS = 5
TOKEN_TTL_S = 60.0
NAME = "bench"


def measure(repeats: int = REPEATS) -> list[Figure]:
    """Let so many nodes join, one after the other."""
    with scratch() as folder:
        first_port, *ports = free_pairs(1 + repeats)
        membership.create(Home(folder / "first"), NAME, (LOOPBACK, first_port), "first")
        mesh = Mesh(ClusterHome(Home(folder / "first"), NAME))
        mesh.start()
        with Cluster(mesh) as cluster:
            cluster.submit(os.getpid, on="first").result()  # what a client does once is not the joiner's
            took = [_join(cluster, folder, first_port, port) for port in ports]
    return [figure(Work.FIRST_TASK, took, f"a founder, then {repeats} nodes that join one after the other")]


def _join(cluster: Cluster, folder: Path, first_port: int, port: int) -> float:
    node = f"node{port}"
    began = time.perf_counter()
    token = JoinToken.parse(cluster.mint_token("node", TOKEN_TTL_S))
    membership.join(Home(folder / node), NAME, [(LOOPBACK, first_port)], token, (LOOPBACK, port), node)
    cluster.submit(os.getpid, on=node).result()
    return time.perf_counter() - began
