"""Who votes on a cluster of real daemons, as nodes come, die and leave."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kos_cluster.core.voters import FIVE_VOTERS_FROM_NODES
from kos_cluster.errors import RevokedError, StateError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.services import daemons
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh

# A voter that died need not come back within half a minute.
SOON_REPLACED = """
import kos_cluster.core.voters as voters

voters.GRACE_S = 1.0
"""
FOUNDER = "node1"  # it has the only admin, so it cannot be removed
SETTLED_S = 40.0


def test_five_of_seven_vote_and_who_dies_or_leaves_is_replaced(
    machine: Any, until: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SOON_REPLACED)
    machine.ok("up", "-n", str(FIVE_VOTERS_FROM_NODES), "--profile", "fast", PYTHONPATH=str(tmp_path))
    mesh = Mesh(ClusterHome(Home(machine.home), EMBEDDED_NAME))
    mesh.start()
    with Cluster(mesh) as cluster:

        def vote(count: int, *without: str) -> set[str]:
            """Wait until so many nodes vote, all of them alive, and none of these; their names."""

            def voting() -> set[str] | None:
                rows = cluster.nodes()
                names = {row["name"] for row in rows if row["voter"]}
                able = {row["name"] for row in rows if row["state"] == "alive"} - set(without)
                return names if len(names) == count and names <= able else None

            return set(until(voting, f"{count} vote, without {without}", SETTLED_S))

        def another(voters: set[str]) -> str:
            return min(voters - {FOUNDER, str(cluster.status()["coordinator"])})

        def remove(name: str) -> None:
            """It is refused for as long as another voter is suspected, which may be so on a busy machine."""

            def removed() -> bool:
                with suppress(StateError):
                    return name in cluster.remove(name)
                return False

            until(removed, f"{name} is removed", SETTLED_S)

        first = vote(5)
        assert "the cluster outlives the loss of any 2 voters" in cluster.status()["loss"]

        dead = another(first)
        os.kill(next(row["pid"] for row in cluster.nodes() if row["name"] == dead), signal.SIGKILL)
        second = vote(5, dead)
        assert first - {dead} < second, "one takes its place, and the others stay"

        remove(dead)
        third = vote(3, dead)  # three are enough for six nodes
        assert third < second
        gone = another(third)
        remove(gone)
        fourth = vote(3, dead, gone)
        assert third - {gone} < fourth, "one takes its place, and the others stay"

        # Two that were removed while they were down hear each other when they start again, and stop all the same.
        rest = {str(row["name"]) for row in cluster.nodes()} - {dead, gone}
        needed = {FOUNDER, str(cluster.status()["coordinator"])}
        pair = sorted(rest - needed, key=lambda name: name in fourth)[:2]  # at most one that votes
        for row in cluster.nodes():
            if row["name"] in pair:
                os.kill(row["pid"], signal.SIGKILL)
        for name in pair:
            remove(name)
        home = ClusterHome(Home(machine.home), EMBEDDED_NAME)
        again = {name: daemons.start(home, name) for name in pair}
        until(lambda: all(daemon.poll() is not None for daemon in again.values()), "both stop", SETTLED_S)
        assert {daemon.returncode for daemon in again.values()} == {RevokedError.exit_code}
        assert cluster.mint_token("client", 60.0).startswith("KOS1.")
    machine.ok("down")
