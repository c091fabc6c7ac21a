"""What nodes say to each other, and to nobody else, to know who lives and to agree, on the wire (see `wire`).

Rules: a daemon takes these from nodes alone. Who is alive, how busy, where to be found and what is agreed on are the
messages of machines in `core`, carried as they are; offering a change to the coordinator is the layer's own.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core import kademlia, raft, swim
from kos_cluster.core.loadgossip import LoadReport
from kos_cluster.core.replicated.commands import Proposal
from kos_cluster.core.replicated.replies import Reply


class Heartbeat(msgspec.Struct, frozen=True, tag="HEARTBEAT"):
    """What nodes say to each other about who is alive; see `core.swim`."""

    message: swim.Message


class LoadNews(msgspec.Struct, frozen=True, tag="LOAD"):
    """What nodes say to each other about how busy they are; see `core.loadgossip`."""

    report: LoadReport


class Finding(msgspec.Struct, frozen=True, tag="FINDING"):
    """What nodes say to each other to find one by its id; see `core.kademlia`."""

    message: kademlia.Message


class Consensus(msgspec.Struct, frozen=True, tag="CONSENSUS"):
    """What nodes say to each other to agree; see `core.raft`."""

    message: raft.Message


class Propose(msgspec.Struct, frozen=True, tag="PROPOSE"):
    """A node to the coordinator: have this applied. The answer is `Proposed` of the same number."""

    id: int
    proposal: Proposal


class Proposed(msgspec.Struct, frozen=True, tag="PROPOSED"):
    """What was replied when it was applied; None when it must be offered again, here or elsewhere."""

    id: int
    reply: Reply | None
