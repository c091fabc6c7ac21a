"""Ray as an engine: real Ray on KOS's nodes. The interface is `engine.Engine`; `ENGINE` is this one.

`raynodes` has the head and the workers, `rayconnection` a client's way to them, `raycalls` what runs in Ray's workers,
`rayenvironment` the settings of all these, `raygcs` the questions to Ray's control store. Why which of its links is
encrypted or not is in ADR 035, with how that was found out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kos_cluster.services.engines import lazily

if TYPE_CHECKING:
    from kos_cluster.services.engines.engine import Address, Connection, Credentials, Head, Place, Worker

lazily.put_here()  # before anything imports Ray


class Ray:
    """The engine."""

    kind = "ray"
    packages = ("ray", "grpc", "aiohttp")
    plaintext = (
        "the HTTP of its runtime-environment agents on each node (its token is asked for, and only processes of the "
        "same machine use it)",
        "and cannot keep its other servers, which are encrypted, to one address of a node that is not 127.0.0.1",
    )
    dashboard_path = "/"
    dashboard_asks = True

    def head(self, place: Place) -> Head:
        from kos_cluster.services.engines.raynodes import RayHead

        return RayHead(place)

    def worker(self, place: Place, address: Address) -> Worker:
        from kos_cluster.services.engines.raynodes import RayWorker

        return RayWorker(place, address)

    def connect(self, address: Address, credentials: Credentials) -> Connection:
        from kos_cluster.services.engines.rayconnection import RayConnection

        return RayConnection(address, credentials)


ENGINE = Ray()
