"""The grammar of `kos engine`.

Rules: as in `grammar`.
"""

from __future__ import annotations

from kos_cluster.cli.parser import Commands, Parser, add_json
from kos_cluster.cli.quantities import count, count_or_zero, memory, port

KINDS = ("dask", "ray")  # as `services.engines.kinds` has them, which the grammar does not load


def add_engine(commands: Commands) -> None:
    """The commands that follow `kos engine`."""
    start = commands.add("start", "start an engine on the nodes; returns when it serves", "engine_start")
    start.add_argument("kind", choices=KINDS, help="which")
    start.add_argument("--name", metavar="ENGINE", default="", help="what it is to be called (default: as its kind)")
    start.add_argument("--workers", type=count, metavar="N", help="how many (default: one a node, if there is room)")
    start.add_argument("--cpus", type=count, default=1, metavar="C", help="cores of each worker, and of the head (1)")
    start.add_argument(
        "--memory", type=memory, default=0, metavar="M", help="memory of each, for example 8G (default: no limit)"
    )
    start.add_argument(
        "--restarts", type=count_or_zero, default=0, metavar="N", help="start it anew after the loss of its head"
    )
    start.add_argument("--allow-plaintext", action="store_true", help="also where it has links that it cannot encrypt")
    add_json(start)
    add_json(commands.add("list", "list the engines, also those that have failed", "engine_list"))
    status = commands.add("status", "show how an engine stands, and what it has lost", "engine_status")
    _add_name(status)
    add_json(status)
    scale = commands.add("scale", "give an engine another number of workers", "engine_scale")
    _add_name(scale)
    scale.add_argument("workers", type=count, metavar="N", help="how many; those that go pass on what they hold")
    _add_name(commands.add("stop", "stop an engine, and leave nothing of it", "engine_stop"))
    dashboard = commands.add(
        "dashboard", "open a way to an engine's own dashboard, on this machine", "engine_dashboard"
    )
    _add_name(dashboard)
    dashboard.add_argument(
        "--port", type=port, default=0, metavar="PORT", help="where to listen on 127.0.0.1 (default: any that is free)"
    )


def _add_name(parser: Parser) -> None:
    parser.add_argument("name", metavar="ENGINE", help="its name, or its kind where there is one of that kind")
