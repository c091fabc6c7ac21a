"""What ranks tell their owner, and what it tells them before they begin.

Rules. The secret is new with each epoch, and travels only over the mesh: so a rank of an epoch that is over knows none
that opens a link now.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from kos_cluster.errors import ProtocolError

SECRET_BYTES = 32


class Address(msgspec.Struct, frozen=True):
    """Where a rank listens on its node. `master_port` is a port that is free there, for other libraries' use."""

    port: int
    local: str  # of its UNIX socket, in the abstract namespace
    master_port: int


class Place(msgspec.Struct, frozen=True):
    """Where a rank is."""

    node: str  # id
    name: str  # the node's
    host: str
    address: Address


class Table(msgspec.Struct, frozen=True):
    """All ranks of one epoch."""

    gang: str  # the id of the first epoch's job, which is the gang's
    epoch: int
    secret: bytes
    places: tuple[Place, ...]
    checkpoint: int = 0  # the last that all ranks of an epoch before have made; 0: none

    def neighbours(self, rank: int) -> list[int]:
        """The ranks on the node of this one, itself included."""
        return [other for other, place in enumerate(self.places) if place.node == self.places[rank].node]


def make_table(
    gang: str, epoch: int, nodes: Sequence[tuple[str, str, str]], addresses: Sequence[bytes], checkpoint: int = 0
) -> bytes:
    """The table of an epoch whose ranks are on these nodes (id, name, host) and have told these addresses.

    Raises ProtocolError for an address that is none.
    """
    try:
        told = [msgspec.msgpack.decode(address, type=Address) for address in addresses]
    except msgspec.DecodeError as error:
        raise ProtocolError(f"A rank said where it is in words that this version does not know: {error}.") from None
    places = tuple(Place(*node, address) for node, address in zip(nodes, told, strict=True))
    return msgspec.msgpack.encode(Table(gang, epoch, secrets.token_bytes(SECRET_BYTES), places, checkpoint))
