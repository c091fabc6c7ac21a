"""Real clusters with room for gangs: two nodes, four slots each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kos_cluster.services import embedded
from tests.mesh.conftest import Mesh

SLOTS = 4


class RoomyMesh(Mesh):
    """Its nodes have more slots than this machine has cores."""

    def _up(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "slots_a_node", lambda count: SLOTS)
            super()._up()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """Shared by the tests of a module; those that kill something heal it."""
    mesh = RoomyMesh(2)
    yield mesh
    mesh.down()
