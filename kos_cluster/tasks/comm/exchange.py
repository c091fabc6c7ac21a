"""Messages between two ranks: sent, received in the order in which they are asked for, and missed when they don't come.

Theory of operation. A link keeps its order, but a rank may ask for a later message first (`recv` by tag). What comes
before it is kept until it is asked for, up to `EARLY_LIMIT_BYTES`. Rings send and receive at once: what is sent then
goes from a thread of its own.

Rules. A message of another collective than the one that this rank is in is an error which names both. When nothing
moves for `patience_s`, every rank is asked what it is doing, and the error names those that are not in the collective.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from kos_cluster.errors import CollectiveTimeoutError, GangError, LimitError, RankGoneError
from kos_cluster.tasks import serialise
from kos_cluster.tasks.comm import frames, links
from kos_cluster.tasks.comm.endpoint import Doing, Endpoint
from kos_cluster.tasks.comm.frames import Call, Header, Message

EARLY_LIMIT_BYTES = 256 << 20  # of messages that came before they were asked for
PATIENCE_S = 300.0  # without a byte from the rank that is waited for

Array = np.ndarray[Any, Any]


class Exchange:
    """One rank's messages. Used by one thread at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.patience_s = PATIENCE_S
        self._early: dict[int, deque[tuple[Header, Any]]] = defaultdict(deque)
        self._early_bytes = 0
        self._sender: ThreadPoolExecutor | None = None

    # ---- sending

    def send(self, rank: int, message: Message) -> None:
        """Returns when the message is on its way. Raises RankGoneError, CollectiveTimeoutError."""
        try:
            self.endpoint.outgoing(rank).write(message.head, message.body, self.patience_s)
        except links.Gone:
            raise self._gone(rank) from None
        except links.Stalled:
            raise self._late(rank, "takes nothing") from None

    def start(self, rank: int, message: Message) -> Future[None]:
        """Send meanwhile; the result tells when that is done, or raises as `send`."""
        if self._sender is None:
            self._sender = ThreadPoolExecutor(1, thread_name_prefix="kos-rank-send")
        return self._sender.submit(self.send, rank, message)

    def close(self) -> None:
        """Close all links. What is being sent meanwhile fails within `links.LOOK_S`."""
        self.endpoint.close()
        if self._sender is not None:
            self._sender.shutdown(cancel_futures=True)

    # ---- receiving

    def receive(self, rank: int, call: Call, serial: int) -> Any:
        """The next value from a rank for this call."""
        early = self._early[rank]
        for place, (header, value) in enumerate(early):
            if (header.call, header.serial) == (call, serial):
                del early[place]
                self._early_bytes -= header.size_bytes
                return value
        return self._value(rank, self._head(rank, call, serial))

    def receive_into(self, rank: int, call: Call, serial: int, array: Array) -> None:
        """As `receive`, for an array of plain values that fills `array`, which is contiguous."""
        self._expect(rank, call, serial, array)
        self._filled(rank, frames.bytes_of(array))

    def receive_chunks(self, rank: int, call: Call, serial: int, like: Array) -> Iterator[Array]:
        """As `receive_into`, piece by piece, flat: each is read before the next is asked for."""
        self._expect(rank, call, serial, like)
        if not like.nbytes:
            return
        try:
            link = self.endpoint.incoming(rank, self.patience_s)
            for chunk in link.chunks(like.nbytes, self.patience_s):
                yield np.frombuffer(chunk, like.dtype)
        except links.Gone:
            raise self._gone(rank) from None
        except links.Stalled:
            raise self._late(rank, "sends nothing") from None

    def _expect(self, rank: int, call: Call, serial: int, like: Array) -> None:
        header = self._head(rank, call, serial)
        if not header.is_array or header.size_bytes != like.nbytes:
            kind = f"{header.size_bytes} bytes of an array" if header.is_array else "what is no array"
            raise GangError(
                f"In {call.word}, {self.endpoint.named(rank)} sent {kind}, and rank {self.endpoint.rank} has "
                f"{like.nbytes} bytes of one.",
                "Give arrays of one shape and dtype on all ranks.",
            )

    def _head(self, rank: int, call: Call, serial: int) -> Header:
        """The header of the message that is asked for; those before it are kept. Its body is still to be read."""
        while True:
            header = self._next(rank)
            if (header.call, header.serial) == (call, serial):
                return header
            if call is not Call.SEND and header.call is not Call.SEND:
                raise GangError(
                    f"{self.endpoint.named(rank)} is in its collective {header.serial}, {header.call.word}, while "
                    f"rank {self.endpoint.rank} is in its collective {serial}, {call.word}.",
                    "Call the same collectives in the same order on all ranks.",
                )
            if self._early_bytes + header.size_bytes > EARLY_LIMIT_BYTES:
                raise LimitError(
                    f"Messages of {self.endpoint.named(rank)} that rank {self.endpoint.rank} has not asked for take "
                    f"over {EARLY_LIMIT_BYTES >> 20} MiB.",
                    "Receive them in the order in which they are sent.",
                )
            self._early[rank].append((header, self._value(rank, header)))
            self._early_bytes += header.size_bytes

    def _next(self, rank: int) -> Header:
        try:
            link = self.endpoint.incoming(rank, self.patience_s)
            header, meta_bytes = frames.decode_head(link.read(frames.HEADER.size, self.patience_s))
            meta = link.read(meta_bytes, self.patience_s) if meta_bytes else b""
        except links.Gone:
            raise self._gone(rank) from None
        except links.Stalled:
            raise self._late(rank, "sends nothing") from None
        return header._replace(meta=meta)

    def _value(self, rank: int, header: Header) -> Any:
        if header.is_array:
            array, body = frames.empty_like(header)
            self._filled(rank, body)
            return array
        data = bytearray(header.size_bytes)
        self._filled(rank, memoryview(data))
        return serialise.loads(data)

    def _filled(self, rank: int, body: memoryview) -> None:
        if not body:
            return
        try:
            self.endpoint.incoming(rank, self.patience_s).fill(body, self.patience_s)
        except links.Gone:
            raise self._gone(rank) from None
        except links.Stalled:
            raise self._late(rank, "sends nothing") from None

    # ---- what went wrong

    def _gone(self, rank: int) -> RankGoneError:
        return RankGoneError(
            f"{self._doing_word()}, rank {self.endpoint.rank} waited for {self.endpoint.named(rank)}, which has ended.",
            "What ended it is told by the gang's own error.",
            rank,
        )

    def _late(self, rank: int, what: str) -> CollectiveTimeoutError:
        """Why nothing moves, by what the others say that they are doing."""
        mine = self.endpoint.doing
        waited = f"{self._doing_word()}, {self.endpoint.named(rank)} {what} for {self.patience_s:g} s"
        hint = "Call it on all ranks; or set kos.comm().patience_s to wait longer."
        others = [other for other in range(len(self.endpoint.table.places)) if other != self.endpoint.rank]
        told = [(other, self.endpoint.ask(other)) for other in (others if mine.inside else [rank])]
        missing = [(other, doing) for other, doing in told if doing is None or doing.serial < mine.serial]
        differ = [(o, doing) for o, doing in told if doing and doing.serial == mine.serial and doing.call != mine.call]
        if not mine.inside:
            return CollectiveTimeoutError(f"{waited}; {_told(self.endpoint, *told[0])}.", hint)
        if not missing and not differ:
            return CollectiveTimeoutError(f"{waited}, though every rank has called it.", hint)
        listed = "; ".join(_told(self.endpoint, other, doing) for other, doing in missing or differ)
        if not missing:
            return CollectiveTimeoutError(f"{waited}. Ranks have called another one in its place: {listed}.", hint)
        return CollectiveTimeoutError(f"{waited}. It was not called by {len(missing)} of the ranks: {listed}.", hint)

    def _doing_word(self) -> str:
        doing = self.endpoint.doing
        return f"In collective {doing.serial}, {doing.call}" if doing.inside else "In a message from rank to rank"


def _told(endpoint: Endpoint, rank: int, doing: Doing | None) -> str:
    if doing is None:
        return f"{endpoint.named(rank)} does not answer"
    if not doing.serial:
        return f"{endpoint.named(rank)} has called no collective yet"
    where = "is in" if doing.inside else "has ended"
    return f"{endpoint.named(rank)} {where} collective {doing.serial}, {doing.call}"
