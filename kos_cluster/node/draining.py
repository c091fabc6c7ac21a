"""Drained nodes: those that the cluster has agreed to give no more work, as before a machine is switched off.

Rules: it is a setting of the replicated state, so it outlives every restart; the node itself tells it with its record,
so everybody who places work knows.
"""

from __future__ import annotations

from kos_cluster.core.replicated import commands
from kos_cluster.core.replicated.state import ClusterState

_PREFIX = "drained/"


def is_drained(state: ClusterState, id_: str) -> bool:
    """Whether the cluster has agreed to give this node no more work."""
    return state.settings.get(_PREFIX + id_) is not None


def drained(id_: str, drain: bool) -> commands.SetSetting:
    """The command that drains a node, or lets it work again."""
    return commands.SetSetting(_PREFIX + id_, "yes" if drain else None)
