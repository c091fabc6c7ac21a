"""What nodes say of each other while a network heals: either side holds the other to be dead for a moment."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from kos_cluster.core.records import MemberState
from kos_cluster.home import EMBEDDED_NAME, ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.administration import ClusterStatus, Status
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh as Connection
from tests.mesh.conftest import Mesh, until


def test_a_node_that_answers_is_not_lost_because_another_holds_it_to_be_dead(mesh: Mesh, tmp_path: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"

    def work() -> str:
        begun.touch()
        while not go.exists():
            time.sleep(0.01)
        return os.environ["KOS_NODE"]

    connection = Connection(ClusterHome(mesh.home, EMBEDDED_NAME))
    connection.start()

    def say_dead() -> None:
        attachment = connection._attachment
        (member,) = (member for member in attachment.members.values() if member.name == "node2")
        dead = msgspec.structs.replace(member, state=MemberState.DEAD)
        attachment.link_said(attachment.choose("node1"), wire.SyncData(1, [dead], {}), memoryview(b""))
        assert attachment.members[member.id].state is MemberState.DEAD

    with Cluster(connection) as cluster:
        future = cluster.submit(work, on="node2", retries=0)
        until(begun.exists, "it runs")
        connection.request(Status(), ClusterStatus, node="node2")  # so it was heard of just now
        connection.ask(say_dead)
        go.touch()
        assert future.result(30) == "node2"
