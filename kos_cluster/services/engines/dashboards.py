"""An engine's own dashboard, for a browser on this machine: through the authenticated port of its head's node."""

from __future__ import annotations

from typing import NamedTuple

from kos_cluster.errors import EngineError
from kos_cluster.services.engines.kinds import engine_of
from kos_cluster.services.engines.spec import Record
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.portforwarding import LOOPBACK, ForwardedPort


class Dashboard(NamedTuple):
    """One that can be looked at until `port` is closed."""

    port: ForwardedPort
    address: str  # for a browser
    token: str  # that it asks for; empty when it asks for none


def opened(cluster: Cluster, record: Record, local_port: int = 0) -> Dashboard:
    """Lead a port of this machine there; 0 is any. Raises EngineError, and what `cluster.forward_port` does."""
    if not record.address.dashboard:
        raise EngineError(
            f"Engine {record.name!r} has no dashboard now.",
            f"Type 'kos engine status {record.name}'. Dask's needs bokeh on the node: pip install bokeh.",
        )
    engine = engine_of(record.kind)
    port = cluster.forward_port(record.node, record.address.dashboard, local_port=local_port)
    token = cluster.engine_keys(record.id, LOOPBACK).secret if engine.dashboard_asks else ""
    return Dashboard(port, f"http://{LOOPBACK}:{port.port}{engine.dashboard_path}", token)
