"""The engines, and a way to the dashboard of each.

Theory of operation. A dashboard listens on the loopback of the node of its engine's head. Who asks for it gets the
address of a port of the kernel's machine that leads there through the node's authenticated port; it stays for as long
as the kernel does, or until `OPENED_LIMIT` others were asked for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from kos_cluster.services.engines import dashboards
from kos_cluster.services.engines.control import find, serving
from kos_cluster.services.engines.dashboards import Dashboard
from kos_cluster.services.monitor.model import Model
from kos_cluster.tasks.cluster import Cluster
from kos_kernel.dashboard.panes.desk import Answer, Desk, Question, asked
from kos_kernel.dashboard.panes.rows import Rows

NAME = "engines"
OPENED_LIMIT = 16  # dashboards


class _Leads(NamedTuple):
    cluster: Cluster
    dashboard: Dashboard


_opened: OrderedDict[tuple[str, int], _Leads] = OrderedDict()  # by an engine's id, and which of its lives
_opening = threading.Lock()


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


def _dashboard(desk: Desk, question: Question) -> dict[str, str]:
    """The address of an engine's dashboard on this machine, and the token that it asks for, or none."""
    cluster = desk.cluster()
    record = serving(find(cluster, asked(question, OfEngine).engine))
    life = record.id, record.life
    with _opening:
        leads = _opened.get(life)
        if leads is None or leads.cluster is not cluster:  # it has connected anew, and the old connection is closed
            _opened[life] = _Leads(cluster, dashboards.opened(cluster, record))
            if leads is not None:
                leads.dashboard.port.close()
        if len(_opened) > OPENED_LIMIT:
            _opened.popitem(last=False)[1].dashboard.port.close()
        dashboard = _opened[life].dashboard
    return {"address": dashboard.address, "token": dashboard.token}


ASKED: dict[str, Answer] = {"dashboard": _dashboard}
