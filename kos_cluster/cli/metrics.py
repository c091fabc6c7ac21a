"""`kos metrics`: an endpoint for Prometheus, until it is interrupted or terminated."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from kos_cluster.cli import sigterm
from kos_cluster.cli.console import Console
from kos_cluster.errors import UsageError
from kos_cluster.services.monitor.endpoint import PORT, Server, application, is_loopback, read_token
from kos_cluster.services.monitor.exporter import ClusterCollector
from kos_cluster.services.monitor.sampler import Sampler
from kos_cluster.services.ports import LOOPBACK


def metrics_(parsed: argparse.Namespace, console: Console) -> int:
    """Serve the cluster's metrics."""
    host, port = parsed.listen or (LOOPBACK, None)
    open_ = not is_loopback(host)
    if open_ and parsed.token_file is None:
        raise UsageError(
            f"Others can reach {host}, so the metrics there need a token.",
            "Add --token-file FILE; the file is made when there is none.",
        )
    token = read_token(Path(parsed.token_file)) if parsed.token_file is not None else None
    sampler = Sampler(parsed.cluster)
    cluster = sampler.cluster()  # raises what is wrong, before anybody scrapes
    server = Server(host, PORT if port is None else port, application(ClusterCollector(sampler), token))
    shown = f"[{host}]" if ":" in host else host
    console.answer(f"http://{shown}:{server.server_port}/metrics")
    console.note(f"kos: serves the metrics of cluster {cluster.name!r}; Ctrl-C ends it.")
    if open_:
        console.note("kos: what goes over the network is not encrypted; see docs/monitor.md for a proxy that does.")
    console.out.flush()
    with server, sigterm.handled(lambda *_: threading.Thread(target=server.shutdown).start()):
        server.serve_forever(poll_interval=0.2)
    return 0
