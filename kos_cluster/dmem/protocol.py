"""What a process of this machine and a node's arena say to each other, over a UNIX socket of the kind SOCK_SEQPACKET.

A packet is one MessagePack struct. `Given` and `Shared` carry a descriptor (SCM_RIGHTS). A request has a `serial` of
its connection, which its answer repeats. Connections have no handshake: the socket lies in a 0700 folder, the kernel
says which user is at the other end, and the name of a block, 128 random bits, is known to who was given it.
"""

from __future__ import annotations

import msgspec

PACKET_LIMIT_BYTES = 4096
SOCKET = "socket"  # its name in the arena's folder
KEEPERS_LIMIT = 16  # that are told of a block that is shared; for the others it is not kept at the second node


class Create(msgspec.Struct, frozen=True, tag=True):
    """Give me memory to write a block of this name. Answer: Given, with a descriptor that can be written; Refused."""

    serial: int
    block: str
    size_bytes: int


class Seal(msgspec.Struct, frozen=True, tag=True):
    """I have written it, and hold it from now on. Answer: Sealed; Refused."""

    serial: int
    block: str


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Let me read a block; if it is not here, get it from node `home`. Answer: Given; Refused."""

    serial: int
    block: str
    home: str = ""


class Share(msgspec.Struct, frozen=True, tag=True):
    """As another node: let me have a block that is sealed here in my arena too. Answer: Shared; Refused."""

    serial: int
    block: str


class Release(msgspec.Struct, frozen=True, tag=True):
    """I do not need it any more; or give up writing it. No answer."""

    block: str


class PassedOn(msgspec.Struct, frozen=True, tag=True):
    """Somebody else keeps what I have written, and I need not hold it for that any more. No answer."""

    block: str


class Given(msgspec.Struct, frozen=True, tag=True):
    """The descriptor with this packet is the block."""

    serial: int
    size_bytes: int


class Shared(msgspec.Struct, frozen=True, tag=True):
    """The descriptor with this packet is the block, which these owners keep."""

    serial: int
    size_bytes: int
    keepers: list[tuple[str, str]]


class Sealed(msgspec.Struct, frozen=True, tag=True):
    """It is written, at the node of this id."""

    serial: int
    node: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """`error` is a class of `kos_cluster.errors`."""

    serial: int
    error: str
    message: str
    hint: str


ToArena = Create | Seal | Hold | Share | Release | PassedOn
FromArena = Given | Shared | Sealed | Refused
