"""How a value becomes a message between two ranks, and back.

A message is `HEADER`, then `meta`, then the body. Of a numpy array whose elements are plain values the body is its
memory, and `meta` its dtype and shape: nothing is pickled, and the receiver's array is filled as the bytes come. Of
anything else the body is its pickle and `meta` is empty. All numbers are little-endian.

Rules: `call` and `serial` say what a message belongs to, so that a rank which is in another call than its peer is found
out instead of being given wrong data.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, NamedTuple

import msgspec
import numpy as np

from kos_cluster.errors import GangError
from kos_cluster.tasks import serialise

HEADER = struct.Struct("<BBHIQ")  # kind, call, bytes of meta, serial, bytes of body
META_LIMIT_BYTES = 1 << 10
BODY_LIMIT_BYTES = 1 << 40  # of one message

_PICKLE, _ARRAY = 0, 1
_PLAIN = "biufcmMSU"  # kinds of dtypes whose elements are plain values


class Call(enum.IntEnum):
    """What user code called; `SEND` is a message from one rank to another, by its tag."""

    SEND = 0
    BARRIER = 1
    BROADCAST = 2
    SCATTER = 3
    GATHER = 4
    ALLGATHER = 5
    REDUCE = 6
    ALLREDUCE = 7
    ALLTOALL = 8

    @property
    def word(self) -> str:
        return self.name.lower()


class Header(NamedTuple):
    """What stands in front of a body."""

    is_array: bool
    call: Call
    serial: int  # of a collective: how many the gang has had; of `SEND`: the tag
    size_bytes: int
    meta: bytes


class Message(NamedTuple):
    """Ready to go: header with meta, and the body as it lies in memory."""

    head: bytes
    body: memoryview


def encode(value: Any, call: Call, serial: int) -> Message:
    """Raises NotPicklableError."""
    if is_plain(value):
        return encode_array(np.ascontiguousarray(value).reshape(value.shape), call, serial)
    data = serialise.dumps_result(value)
    body = memoryview(data if isinstance(data, bytes) else b"".join(data))
    return Message(HEADER.pack(_PICKLE, call, 0, serial, len(body)), body)


def is_plain(value: Any) -> bool:
    """Whether it is an array whose bytes are all there is to it; a subclass, such as a masked array, has more."""
    return type(value) is np.ndarray and value.dtype.kind in _PLAIN and value.dtype.fields is None


def encode_array(array: np.ndarray[Any, Any], call: Call, serial: int) -> Message:
    """A contiguous array of plain values."""
    meta = msgspec.msgpack.encode((array.dtype.str, array.shape))
    body = bytes_of(array)
    return Message(HEADER.pack(_ARRAY, call, len(meta), serial, len(body)) + meta, body)


def decode_head(fixed: bytes) -> tuple[Header, int]:
    """The header without its meta, and how many bytes of meta follow. Raises GangError."""
    kind, call, meta_bytes, serial, size_bytes = HEADER.unpack(fixed)
    if (
        kind not in (_PICKLE, _ARRAY)
        or call > max(Call)
        or meta_bytes > META_LIMIT_BYTES
        or size_bytes > BODY_LIMIT_BYTES
    ):
        raise GangError("A rank sent what is no message.", "Do all nodes run the same version of kos-cluster?")
    return Header(kind == _ARRAY, Call(call), serial, size_bytes, b""), meta_bytes


def empty_like(header: Header) -> tuple[np.ndarray[Any, Any], memoryview]:
    """An array for the body of an array's message, and its memory. Raises GangError when they cannot be of one size."""
    dtype, shape = msgspec.msgpack.decode(header.meta, type=tuple[str, tuple[int, ...]])
    array: np.ndarray[Any, Any] = np.empty(shape, np.dtype(dtype))
    if array.nbytes != header.size_bytes or array.dtype.kind not in _PLAIN:
        raise GangError("A rank sent an array whose size is not that of its shape.", "Please report this.")
    return array, bytes_of(array)


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")
