"""Collectives from messages between two ranks.

Theory of operation. `broadcast` and `reduce` go along binomial trees, `barrier` is a dissemination (D. Hensgen,
R. Finkel, U. Manber, 1988), `allgather` a ring, `alltoall` a round of exchanges in pairs. `allreduce` of an array of
`RING_FROM_BYTES` and more is a reduce-scatter and an allgather around the ring, which moves the least that any
algorithm can, 2 (n - 1) / n of the array each way (R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective
Communication Operations in MPICH", IJHPCA 19(1), 2005); of anything smaller it is a reduce and a broadcast. Ranks of a
node are neighbours in the ring, so on all but one link of each node segments of `links.SHARED_FROM_BYTES` and more go
through shared memory.

Rules. An operation is associative, not always commutative: trees combine ranks in their order. All ranks get the same
bits from `allreduce`, as each element is computed once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kos_cluster.tasks.comm import frames
from kos_cluster.tasks.comm.exchange import Array, Exchange
from kos_cluster.tasks.comm.frames import Call
from kos_cluster.tasks.comm.links import CHUNK_BYTES

RING_FROM_BYTES = 128 << 10

Operation = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Elementwise:
    """An operation on arrays element by element, which on anything else is Python's own."""

    ufunc: np.ufunc
    plain: Operation

    def __call__(self, one: Any, other: Any) -> Any:
        numeric = isinstance(one, np.ndarray | np.generic) or isinstance(other, np.ndarray | np.generic)
        return self.ufunc(one, other) if numeric else self.plain(one, other)


OPERATIONS: dict[str, Operation] = {
    "sum": Elementwise(np.add, operator.add),
    "prod": Elementwise(np.multiply, operator.mul),
    "min": Elementwise(np.minimum, min),
    "max": Elementwise(np.maximum, max),
}


class Collectives:
    """The algorithms for one rank of `size`. `serial` numbers the collective on all ranks alike."""

    def __init__(self, exchange: Exchange, rank: int, size: int) -> None:
        self._exchange = exchange
        self._rank = rank
        self._size = size

    def barrier(self, serial: int) -> None:
        distance = 1
        while distance < self._size:
            to, source = (self._rank + distance) % self._size, (self._rank - distance) % self._size
            self._exchange.send(to, frames.encode(None, Call.BARRIER, serial))
            self._exchange.receive(source, Call.BARRIER, serial)
            distance *= 2

    def broadcast(self, serial: int, value: Any, root: int, call: Call = Call.BROADCAST) -> Any:
        """From the root down a binomial tree; the value."""
        place = (self._rank - root) % self._size
        bit = 1
        while bit < self._size and not place & bit:
            bit *= 2
        if place:
            value = self._exchange.receive((place - bit + root) % self._size, call, serial)
        message = None
        while bit > 1:
            bit //= 2
            if place + bit < self._size:
                message = message or frames.encode(value, call, serial)
                self._exchange.send((place + bit + root) % self._size, message)
        return value

    def scatter(self, serial: int, values: Sequence[Any] | None, root: int) -> Any:
        if values is None:
            return self._exchange.receive(root, Call.SCATTER, serial)
        for rank in range(self._size):
            if rank != root:
                self._exchange.send(rank, frames.encode(values[rank], Call.SCATTER, serial))
        return values[root]

    def gather(self, serial: int, value: Any, root: int) -> list[Any] | None:
        if self._rank != root:
            self._exchange.send(root, frames.encode(value, Call.GATHER, serial))
            return None
        others = (self._exchange.receive(r, Call.GATHER, serial) if r != root else value for r in range(self._size))
        return list(others)

    def allgather(self, serial: int, value: Any) -> list[Any]:
        values = [value] * self._size
        right, left = (self._rank + 1) % self._size, (self._rank - 1) % self._size
        for step in range(self._size - 1):
            message = frames.encode(values[(self._rank - step) % self._size], Call.ALLGATHER, serial)
            sent = self._exchange.start(right, message)
            values[(self._rank - step - 1) % self._size] = self._exchange.receive(left, Call.ALLGATHER, serial)
            sent.result()
        return values

    def reduce(self, serial: int, value: Any, operation: Operation, root: int, call: Call = Call.REDUCE) -> Any:
        """Up a binomial tree to rank 0, in the order of the ranks, and from there to the root; None elsewhere."""
        bit = 1
        while bit < self._size:
            if self._rank & bit:
                self._exchange.send(self._rank - bit, frames.encode(value, call, serial))
                break
            if self._rank + bit < self._size:
                value = operation(value, self._exchange.receive(self._rank + bit, call, serial))
            bit *= 2
        if root:
            if self._rank == 0:
                self._exchange.send(root, frames.encode(value, call, serial))
            elif self._rank == root:
                return self._exchange.receive(0, call, serial)
        return value if self._rank == root else None

    def allreduce(self, serial: int, value: Any, operation: Operation, out: Array | None) -> Any:
        """`out` may be the value itself: the result is then in its place."""
        if self._rings(value, operation):
            assert isinstance(operation, Elementwise)
            if out is None:
                out = np.array(value, copy=True, order="C")
            elif out is not value:
                out[...] = value
            self._ring(serial, out.reshape(-1), operation.ufunc)
            return out
        reduced = self.reduce(serial, value, operation, 0, Call.ALLREDUCE)
        reduced = self.broadcast(serial, reduced, 0, Call.ALLREDUCE)
        if out is None:
            return reduced
        out[...] = reduced
        return out

    def alltoall(self, serial: int, values: Sequence[Any]) -> list[Any]:
        received = [values[self._rank]] * self._size
        for step in range(1, self._size):
            to, source = (self._rank + step) % self._size, (self._rank - step) % self._size
            sent = self._exchange.start(to, frames.encode(values[to], Call.ALLTOALL, serial))
            received[source] = self._exchange.receive(source, Call.ALLTOALL, serial)
            sent.result()
        return received

    def _rings(self, value: Any, operation: Operation) -> bool:
        return (
            self._size > 1
            and frames.is_plain(value)
            and isinstance(operation, Elementwise)
            and value.nbytes >= RING_FROM_BYTES
            and value.dtype.kind in "biufc"
            and CHUNK_BYTES % value.itemsize == 0
        )

    def _ring(self, serial: int, flat: Array, operation: np.ufunc) -> None:
        """Reduce-scatter, then allgather, in place."""
        size, rank = self._size, self._rank
        segments = np.array_split(flat, size)
        right, left = (rank + 1) % size, (rank - 1) % size
        for step in range(size - 1):
            message = frames.encode_array(segments[(rank - step) % size], Call.ALLREDUCE, serial)
            sent = self._exchange.start(right, message)
            target, start = segments[(rank - step - 1) % size], 0
            for chunk in self._exchange.receive_chunks(left, Call.ALLREDUCE, serial, target):
                part = target[start : start + len(chunk)]
                operation(part, chunk, out=part)
                start += len(chunk)
            sent.result()
        for step in range(size - 1):
            message = frames.encode_array(segments[(rank + 1 - step) % size], Call.ALLREDUCE, serial)
            sent = self._exchange.start(right, message)
            self._exchange.receive_into(left, Call.ALLREDUCE, serial, segments[(rank - step) % size])
            sent.result()
