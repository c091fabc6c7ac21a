"""What is asked to administer a cluster (nodes, certificates, join tokens), and answered, on the wire (see `wire`).

Rules: the node that is asked decides by the certificate of who asks (`node.answers`), never by what the message says.
"""

from __future__ import annotations

import msgspec


class MintToken(msgspec.Struct, frozen=True, tag=True):
    """Make a join token. Reply: str."""

    role: str
    ttl_s: float


class StopNode(msgspec.Struct, frozen=True, tag=True):
    """Stop the daemon. Reply: bool."""


class LeaveCluster(msgspec.Struct, frozen=True, tag=True):
    """From a node's own identity: this node leaves for good. Reply: bool, whether the cluster goes on without it."""


class RemoveNode(msgspec.Struct, frozen=True, tag=True):
    """Remove a node or client by name or id, and deny its certificates. Reply: list[str], the names removed."""

    name: str


class DrainNode(msgspec.Struct, frozen=True, tag=True):
    """Give the node of this name or id no more work, or work again. Reply: bool."""

    name: str
    drain: bool


class Renew(msgspec.Struct, frozen=True, tag=True):
    """From the holder of the certificate that spoke: certify these keys in its place. Reply: bytes, PEM."""

    request_pem: bytes


class RenewalKept(msgspec.Struct, frozen=True, tag=True):
    """From its holder: the certificate of this serial is kept, so deny those before it. Reply: bool."""

    serial: int


class RenewNode(msgspec.Struct, frozen=True, tag=True):
    """Let the node that is asked renew its own certificate now. Reply: float, when the new one ends (Unix seconds)."""


class Status(msgspec.Struct, frozen=True, tag=True):
    """What the cluster has agreed on, as this node knows it. Reply: ClusterStatus."""


class ClusterStatus(msgspec.Struct, frozen=True):
    """`trouble` says why the node that answers takes no part in the decisions, if it does not.

    `sealed_to`: the ids of the nodes that hold a copy of the authority's key. `now_s`: its clock, Unix seconds.
    `contacts`: the nodes that it can name to one who looks a node up; -1: it makes no look-ups.
    """

    coordinator: str
    term: int
    voters: list[str]
    learners: list[str]
    trouble: str = ""
    sealed_to: list[str] = []
    now_s: float = 0.0
    contacts: int = -1
