"""What owners, nodes and ranks say about gangs, on the wire (see `wire`)."""

from __future__ import annotations

import msgspec

from kos_cluster.core import twophase
from kos_cluster.core.records import Needs


class GangWanted(msgspec.Struct, frozen=True, tag=True):
    """Reserve slots for all ranks of a gang, or none; answered within `wait_s`, and asked again until it is reserved.

    `gang` is the job of its epoch. Reply: GangStanding.
    """

    gang: str
    ranks: int
    needs: Needs
    wait_s: float
    instance: str = ""  # of the client, as in its `Hello`
    near: tuple[str, ...] = ()  # the ids of nodes with tasks of the jobs that `needs` names, as known now
    apart: tuple[str, ...] = ()
    alone: bool = False  # it is to be apart from itself: one rank a node


class GangWithdrawn(msgspec.Struct, frozen=True, tag=True):
    """The gang is not wanted any more, and what the node that is asked holds for it is of no use. Reply: bool."""

    gang: str


class GangStanding(msgspec.Struct, frozen=True):
    """Where a gang stands at the node that coordinates.

    `nodes`: the node's id of each rank, once all are reserved. `refused`: why it never fits. `waits`: why it waits.
    """

    nodes: tuple[str, ...] = ()
    refused: str = ""
    waits: str = ""
    coordinates: bool = True  # false: the node that was asked knows nothing of it


class TwoPhase(msgspec.Struct, frozen=True, tag="TWO_PHASE"):
    """What a coordinator and participants, all of them nodes, say to each other; see `core.twophase`."""

    message: twophase.ToParticipant | twophase.ToCoordinator


class RankReady(msgspec.Struct, frozen=True, tag="RANK_READY"):
    """The node of a rank to its owner: it is in place, and the payload is where; or the payload is of a checkpoint.

    Repeated until its `RankTable` comes, which has its serial. The first of a rank, where it is, has 0.
    """

    batch: int
    job: str
    index: int
    serial: int = 0


class RankTable(msgspec.Struct, frozen=True, tag="RANK_TABLE"):
    """The owner's answer to a rank: all are in place, the payload is where, and it begins; or of a checkpoint."""

    batch: int
    serial: int | None = None  # of what it answers; None: an older version does not say
