"""Which way a client takes to the nodes of its own machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import psutil
import pytest

from kos_cluster.home import EMBEDDED_NAME, ClusterHome
from kos_cluster.net import wire
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.tasks.attachment import Attachment
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh as Connection
from tests.mesh.conftest import Mesh

WAIT_S = 60.0


def addresses(mesh: Mesh) -> set[tuple[str, int]]:
    """Where the nodes listen on the network for what is not bulk."""
    told = [node["address"].rpartition(":") for node in mesh.cluster.nodes()]
    return {(host, int(port)) for host, _, port in told}


@pytest.fixture
def hidden(mesh: Mesh) -> Iterator[None]:
    """The sockets of the nodes in their folders are not to be found."""
    found = list((ClusterHome(mesh.home, EMBEDDED_NAME).path / "run").glob("*/*.sock"))
    assert len(found) == mesh.count
    for path in found:
        path.rename(path.with_suffix(".hidden"))
    yield
    for path in found:
        path.with_suffix(".hidden").rename(path)


def test_a_client_has_no_connection_on_the_network_to_its_own_machines_nodes(mesh: Mesh) -> None:
    assert list(mesh.cluster.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    connected = {tuple(connection.raddr) for connection in psutil.Process().net_connections("tcp")}
    assert len(addresses(mesh)) == mesh.count
    assert not connected & addresses(mesh)


def test_a_client_that_finds_no_sockets_works_over_the_network(mesh: Mesh, hidden: None) -> None:
    program = mesh.program(
        """
        import psutil
        import kos_cluster as kos

        with kos.connect() as cluster:
            total = sum(cluster.map(abs, range(-20, 0)))
            connected = [tuple(each.raddr) for each in psutil.Process().net_connections("tcp")]
        print((total, connected))
        """
    )
    out, err = program.communicate(timeout=WAIT_S)
    assert program.returncode == 0, err
    total, connected = eval(out)
    assert total == 210
    assert addresses(mesh) <= set(connected)


def test_who_has_connected_knows_all_nodes_however_late_they_are_told(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Attachment._sync

    def late(self: Attachment, link: NodeLink, message: wire.SyncData) -> None:
        asyncio.get_running_loop().call_later(0.3, told, self, link, message)

    monkeypatch.setattr(Attachment, "_sync", late)
    home = ClusterHome(mesh.home, EMBEDDED_NAME)
    file = home.read()
    home.write(msgspec.structs.replace(file, nodes=["node1"], bootstrap=[]))
    try:
        connection = Connection(home)
        connection.start()
    finally:
        home.write(file)
    with Cluster(connection) as cluster:
        assert len(cluster.heard().members or ()) == mesh.count
