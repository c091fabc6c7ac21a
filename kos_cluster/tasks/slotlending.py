"""The slots of the task that this process is: lent to the tasks that it waits for.

Rules: told to the node under us alone, and again when that is linked only later or has forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from kos_cluster.core.records import attempted
from kos_cluster.net import wire
from kos_cluster.net.nodelink import NodeLink


class SlotLending:
    """Used in the mesh thread. `links`: those to nodes, by id.

    A parent is an attempt as OWNER/JOB.INDEX#ATTEMPT; empty: this code runs in no task.
    """

    def __init__(self, links: Callable[[], Mapping[str, NodeLink]]) -> None:
        self._links = links
        self._lent: set[str] = set()  # parents that are told to wait

    def lend(self, parent: str, waiting: bool) -> None:
        """Tell the node under us that the task we are in has tasks out, so that its slot can serve them."""
        if not parent or (parent in self._lent) == waiting:
            return
        (self._lent.add if waiting else self._lent.discard)(parent)
        self._tell(parent, waiting)

    def node_up(self, name: str) -> None:
        """This node was not there yet when a task began to wait, or has forgotten."""
        if name == os.environ.get("KOS_NODE"):
            for parent in self._lent:
                self._tell(parent, True)

    def _tell(self, parent: str, waiting: bool) -> None:
        here = os.environ.get("KOS_NODE", "")
        task, attempt = attempted(parent)
        for link in self._links().values():
            if link.peer is not None and link.peer.name == here:
                link.send(wire.Waits(task, attempt, waiting))
