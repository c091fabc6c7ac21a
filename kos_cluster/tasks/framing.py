"""The framed form of a payload: a pickle and its large buffers, written without joining and read without copying.

Layout: `FRAMED`, u64 count, then (u64 offset, u64 length) for the pickle and each of its out-of-band buffers, all
little-endian, then these, each aligned to `ALIGN_BYTES`. A payload that does not begin with `FRAMED` is a plain pickle.

Rules: nothing here unpickles.
"""

from __future__ import annotations

import struct

FRAMED = b"KOSBUF1\0"
ALIGN_BYTES = 64

Segments = list[bytes | memoryview]


def frame(pickled: bytes, buffers: list[memoryview]) -> Segments:
    """The payload as segments to be written one after the other."""
    parts: Segments = [pickled, *buffers]
    offset = len(FRAMED) + 8 + 16 * len(parts)
    spans: list[int] = []
    body: Segments = []
    for part in parts:
        padding = -offset % ALIGN_BYTES
        offset += padding
        spans += (offset, len(part))
        offset += len(part)
        body += (bytes(padding), part)
    return [FRAMED + struct.pack(f"<Q{len(spans)}Q", len(parts), *spans), *body]


def split(payload: bytes | bytearray | memoryview, *, copy: bool = True) -> tuple[memoryview, list[memoryview]]:
    """The pickle and its buffers, of either form. Buffers are views of `payload` when it is writable, else copies.

    Without `copy` they are views in any case.
    """
    view = memoryview(payload).cast("B")
    if view[: len(FRAMED)] != FRAMED:
        return view, []
    (count,) = struct.unpack_from("<Q", view, len(FRAMED))
    spans = struct.unpack_from(f"<{2 * count}Q", view, len(FRAMED) + 8)
    parts = [view[spans[i] : spans[i] + spans[i + 1]] for i in range(0, 2 * count, 2)]
    # An array that was writable must be so again; what cannot be written to is copied for it.
    return parts[0], [memoryview(bytearray(part)) for part in parts[1:]] if view.readonly and copy else parts[1:]
