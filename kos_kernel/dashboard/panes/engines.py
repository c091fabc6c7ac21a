"""The engines, and a way to the dashboard of each.

Theory of operation. A dashboard listens on the loopback of the node of its engine's head. Who asks for it gets the
address of a port of the kernel's machine that leads there through the node's authenticated port; it stays for as long
as the kernel does, or until `FORWARDED_LIMIT` others were asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import msgspec

from kos_cluster.errors import EngineError
from kos_cluster.services.engines.control import find, serving
from kos_cluster.services.monitor.model import Model
from kos_cluster.tasks.portforwarding import LOOPBACK, ForwardedPort
from kos_kernel.dashboard.panes.desk import Answer, Desk, Question, asked
from kos_kernel.dashboard.panes.rows import Rows

NAME = "engines"
FORWARDED_LIMIT = 16  # ports

_forwarded: OrderedDict[tuple[str, int], ForwardedPort] = OrderedDict()  # by an engine's id, and which of its lives
_forwarding = threading.Lock()


class OfEngine(msgspec.Struct, frozen=True):
    """A question about an engine, by its name."""

    engine: str


class Feed:
    """What the pane is told."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rows = Rows()

    def news(self, full: bool) -> dict[str, Any]:
        """Rows by the engines' names, their fields in the order in which the front end names them."""
        rows = {
            engine.name: [
                engine.kind,
                engine.state,
                engine.workers,
                engine.wanted,
                engine.waiting,
                engine.running,
                engine.held_bytes,
                engine.node,
                engine.why,
                engine.dashboard,
            ]
            for engine in self._model.engines
        }
        return self._rows.news(rows, full)


def _dashboard(desk: Desk, question: Question) -> str:
    """The address of an engine's dashboard on this machine."""
    cluster = desk.cluster()
    record = serving(find(cluster, asked(question, OfEngine).engine))
    if not record.address.dashboard:
        raise EngineError(
            f"Engine {record.name} has no dashboard.", "Dask's needs bokeh on the node: pip install bokeh."
        )
    with _forwarding:
        life = record.id, record.life
        if life not in _forwarded:
            _forwarded[life] = cluster.forward_port(record.node, record.address.dashboard)
            if len(_forwarded) > FORWARDED_LIMIT:
                _forwarded.popitem(last=False)[1].close()
        return f"http://{LOOPBACK}:{_forwarded[life].port}/status"


ASKED: dict[str, Answer] = {"dashboard": _dashboard}
