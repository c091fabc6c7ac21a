"""The format in which the cluster writes its log: the newest that every node reads.

Theory of operation (as etcd's cluster version). A node that meets an entry of a format that it does not know halts
(`commands`). While nodes are upgraded one by one there are two versions, and a node of the newer one may coordinate. So
what is written is of the format that the cluster has *agreed* on, a setting of its state. Each node says in its record
which formats it reads; when all nodes that belong to the cluster read a newer one, the coordinator has it agreed.

Rules: a node whose record is not known reads nothing but the first format. A node that is dead counts, as it may come
back. The agreed format never goes back, and who joins must read it. The command that raises it is of the first format.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kos_cluster.core.records import Member
from kos_cluster.core.replicated.commands import FIRST_FORMAT, SwapSetting
from kos_cluster.core.replicated.settings import Settings

_SETTING = "format"


def agreed(settings: Settings) -> int:
    """The format that has been agreed on."""
    text = settings.get(_SETTING) or ""
    return int(text) if text.isascii() and text.isdigit() else FIRST_FORMAT


def readable(nodes: Collection[str], members: Iterable[Member]) -> int:
    """The newest format that all these nodes read, by what is known of the members."""
    reads = {member.id: member.versions.log_format for member in members}
    return min((reads.get(id_, FIRST_FORMAT) for id_ in nodes), default=FIRST_FORMAT)


def raised(settings: Settings, format: int) -> SwapSetting:
    """The command that has this format agreed, unless another was meanwhile."""
    return SwapSetting(_SETTING, settings.get(_SETTING), str(format))
