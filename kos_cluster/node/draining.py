"""What the cluster has agreed to do with a node: drain it, or remove it.

Theory of operation. A drained node gets no more work, as before a machine is switched off; the node itself says so with
its record, so everybody who places work knows. A node that is to be removed leaves the group of those who agree first,
and only then are its certificates denied: denied before, it could no longer answer, and where its vote is needed
nothing could be decided any more. The coordinator does both steps, whichever node coordinates by then.

Rules: both are settings of the replicated state, so they outlive every restart.
"""

from __future__ import annotations

from kos_cluster.core.replicated import commands
from kos_cluster.core.replicated.state import ClusterState

_DRAINED = "drained/"
_REMOVING = "removing/"


def is_drained(state: ClusterState, id_: str) -> bool:
    """Whether the cluster has agreed to give this node no more work."""
    return state.settings.get(_DRAINED + id_) is not None or state.settings.get(_REMOVING + id_) is not None


def drained(id_: str, drain: bool) -> commands.SetSetting:
    """The command that drains a node, or lets it work again."""
    return commands.SetSetting(_DRAINED + id_, "yes" if drain else None)


def to_remove(state: ClusterState) -> dict[str, str]:
    """The ids of the nodes and clients that are to be removed, and why."""
    settings = state.settings.snapshot()
    return {name.removeprefix(_REMOVING): why for name, why in settings.items() if name.startswith(_REMOVING)}


def removing(id_: str, reason: str) -> commands.SetSetting:
    """The command that begins a removal."""
    return commands.SetSetting(_REMOVING + id_, reason)


def forgotten(state: ClusterState, id_: str) -> list[commands.SetSetting]:
    """The commands that drop what is kept here of a node that is gone."""
    names = (_DRAINED + id_, _REMOVING + id_)
    return [commands.SetSetting(name, None) for name in names if state.settings.get(name) is not None]
