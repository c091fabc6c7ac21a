"""The nodes, with the last minute of each; draining and removing them."""

from __future__ import annotations

from typing import Any

import msgspec

from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.snapshot import NodeSight
from kos_kernel.dashboard.panes.desk import Answer, Desk, Question, asked
from kos_kernel.dashboard.panes.rows import Row, Rows
from kos_kernel.dashboard.panes.summary import rounded

NAME = "nodes"
SERIES = ("cpu", "memory", "network")
SHOWN_SAMPLES = 60


class OfNode(msgspec.Struct, frozen=True):
    """A question about a node, by its id."""

    node: str


class Drain(OfNode, frozen=True):
    """Give it no more work, or work again."""

    undo: bool


class Feed:
    """What the pane is told."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rows = Rows()
        self._order: list[str] = []

    def news(self, full: bool) -> dict[str, Any]:
        nodes = self._model.nodes
        told = self._rows.news({node.id: _row(node) for node in nodes}, full)
        order = [node.id for node in nodes]
        if full or order != self._order:
            self._order = told["order"] = order
        if full:
            told["history"] = {node.id: _history(self._model, node.id, SERIES, SHOWN_SAMPLES) for node in nodes}
        return told


def _row(node: NodeSight) -> Row:
    """The fields in the order in which the front end names them."""
    load = node.load
    received, sent = node.received_bytes_per_s, node.sent_bytes_per_s
    return [
        node.name,
        node.address,
        str(node.state),
        node.coordinator,
        node.voter,
        node.drained,
        node.slots,
        load.running,
        load.queued,
        round(node.cpu_share, 2),
        round(node.memory_share, 2),
        None if received is None else round(received),
        None if sent is None else round(sent),
        node.memory_bytes,
    ]


def _history(model: Model, id_: str, keys: tuple[str, ...], count: int) -> dict[str, list[float | None]]:
    return {key: rounded(model.history.last(f"{key}/{id_}", count)) for key in keys}


def _answer_history(desk: Desk, question: Question) -> dict[str, list[Any]]:
    """All that is remembered of a node's figures."""
    id_ = asked(question, OfNode).node
    with desk.lock:
        return {"times": desk.model.history.times(), **_history(desk.model, id_, (*SERIES, "busy"), 1 << 30)}


def _drain(desk: Desk, question: Question) -> None:
    drain = asked(question, Drain)
    desk.cluster().drain_node(drain.node, undo=drain.undo)


def _remove(desk: Desk, question: Question) -> list[str]:
    return desk.cluster().remove(asked(question, OfNode).node)


ASKED: dict[str, Answer] = {"history": _answer_history, "drain": _drain, "remove": _remove}
