"""Nodes that no gossip tells of: a node that knows one member finds the others through it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster.core.records import Member
from kos_cluster.errors import KosError
from kos_cluster.net import wire
from kos_cluster.services.daemons import read_start, write_start
from kos_cluster.tasks.cluster import Cluster
from tests.e2e.fleet import connection, home_of
from tests.e2e.test_cluster import Lab, free_port

# Its table of members holds itself and one more, as that of any node of a cluster of more than 1,024 lacks some.
HOLDS_TWO = """
import msgspec
import kos_cluster.core.swim as swim

swim.LAN = msgspec.structs.replace(swim.LAN, members_limit=2)
"""


def test_a_node_finds_those_that_its_table_of_members_has_no_room_for(
    machine_of: Callable[..., Any], until: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLDS_TWO)
    machines = {"desk": machine_of(), "rack": machine_of(), "small": machine_of()}
    lab, small = Lab(machines["desk"]), machines["small"]
    with connection(machines["desk"]) as cluster:
        for name in ("rack", "small"):
            machines[name].ok(
                *("cluster", "join", "lab", lab.address, "--listen", f"127.0.0.1:{free_port()}", "--name", name),
                KOS_TOKEN=cluster.mint_token("node", 600.0),
                PYTHONPATH=str(tmp_path) if name == "small" else "",
            )
        _, only = told(cluster)
        small.ok("down")
        start = read_start(home_of(small), "small")
        write_start(home_of(small), "small", msgspec.structs.replace(start, bootstrap=[only.address]))
        small.ok("up", PYTHONPATH=str(tmp_path))
        until(lambda: found(cluster) == 2, "it has found the one that it was never told of")
        assert [member.name for member in told(cluster)] == ["small", only.name]
    (line,) = (finding for finding in machines["rack"].json("doctor") if finding["check"] == "look-ups")
    assert (line["verdict"], line["said"].partition(",")[0]) == ("ok", "desk can name 2 nodes")
    for machine in machines.values():
        machine.end()


def told(cluster: Cluster) -> list[Member]:
    """Whom the small node holds to be members."""
    return cluster._mesh.request(wire.Nodes(), wire.SyncData, node="small").members or []


def found(cluster: Cluster) -> int:
    """How many nodes the small one has met; none while it starts."""
    with suppress(KosError):
        return cluster.agreement("small").contacts
    return 0
