"""Which way a client takes to the nodes of its own machine."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from kos_cluster.home import EMBEDDED_NAME, ClusterHome
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
