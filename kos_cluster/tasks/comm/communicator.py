"""`kos.comm()`: the calls by which the ranks of a gang speak with each other.

Rules. Collectives are called by all ranks in the same order. Numpy arrays of plain values move as they lie in memory,
anything else is pickled; what is received is the caller's own. One thread at a time; not in a forked child. A wait in
which nothing moves for `patience_s` ends with an error that names who is missing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kos_cluster.errors import UsageError
from kos_cluster.tasks.comm import frames
from kos_cluster.tasks.comm.collectives import OPERATIONS, Collectives
from kos_cluster.tasks.comm.endpoint import Doing, Endpoint
from kos_cluster.tasks.comm.exchange import Array, Exchange
from kos_cluster.tasks.comm.frames import Call

TAG_LIMIT = (1 << 32) - 1


class Communicator:
    """One rank's side of its gang."""

    def __init__(self, endpoint: Endpoint) -> None:
        table, rank = endpoint.table, endpoint.rank
        near = table.neighbours(rank)
        self.rank = rank
        self.size = len(table.places)
        self.local_rank = near.index(rank)  # among the ranks of this node
        self.local_size = len(near)
        self.node = table.places[rank].name
        self.nodes = [place.name for place in table.places]  # by rank
        self.gang = table.gang
        self.epoch = table.epoch  # 1 more with each restart
        self._endpoint = endpoint
        self._exchange = Exchange(endpoint)
        self._collectives = Collectives(self._exchange, self.rank, self.size)
        self._serial = 0
        self._busy = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<kos Communicator rank {self.rank} of {self.size} on {self.node}, epoch {self.epoch}>"

    @property
    def patience_s(self) -> float:
        """Seconds without a byte from whoever is waited for, after which a call fails."""
        return self._exchange.patience_s

    @patience_s.setter
    def patience_s(self, seconds: float) -> None:
        self._exchange.patience_s = _seconds(seconds)

    # ---- from rank to rank

    def send(self, value: Any, to: int, tag: int = 0) -> None:
        """Send a value to a rank. A large one waits until that rank receives it."""
        with self._alone():
            self._check_peer("to", to)
            self._exchange.send(to, frames.encode(value, Call.SEND, _tag(tag)))

    def recv(self, source: int, tag: int = 0) -> Any:
        """The next value that this rank sent with this tag."""
        with self._alone():
            self._check_peer("source", source)
            return self._exchange.receive(source, Call.SEND, _tag(tag))

    # ---- all together

    def barrier(self) -> None:
        """Wait until every rank has called it."""
        with self._collective(Call.BARRIER) as serial:
            self._collectives.barrier(serial)

    def broadcast(self, value: Any = None, root: int = 0) -> Any:
        """The root's value, on every rank."""
        self._check_rank("root", root)
        with self._collective(Call.BROADCAST) as serial:
            return self._collectives.broadcast(serial, value, root)

    def scatter(self, values: Sequence[Any] | Array | None = None, root: int = 0) -> Any:
        """The element of the root's `values` at this rank's place; it has one for each rank."""
        self._check_rank("root", root)
        mine = self._one_each("scatter", values) if self.rank == root else None
        with self._collective(Call.SCATTER) as serial:
            return self._collectives.scatter(serial, mine, root)

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        """At the root, every rank's value in order; None elsewhere."""
        self._check_rank("root", root)
        with self._collective(Call.GATHER) as serial:
            return self._collectives.gather(serial, value, root)

    def allgather(self, value: Any) -> list[Any]:
        """Every rank's value in order."""
        with self._collective(Call.ALLGATHER) as serial:
            return self._collectives.allgather(serial, value)

    def reduce(self, value: Any, op: str | Callable[[Any, Any], Any] = "sum", root: int = 0) -> Any:
        """At the root, all values combined; None elsewhere. `op`: sum, prod, min, max, or an associative function."""
        self._check_rank("root", root)
        operation = _operation(op)
        with self._collective(Call.REDUCE) as serial:
            return self._collectives.reduce(serial, value, operation, root)

    def allreduce(self, value: Any, op: str | Callable[[Any, Any], Any] = "sum", out: Array | None = None) -> Any:
        """All values combined, on every rank. `out`: an array for the result, which may be `value` itself."""
        operation = _operation(op)
        if out is not None:
            _check_out(value, out)
        with self._collective(Call.ALLREDUCE) as serial:
            return self._collectives.allreduce(serial, value, operation, out)

    def alltoall(self, values: Sequence[Any] | Array) -> list[Any]:
        """What each rank had for this one, in order; `values` has one for each rank."""
        mine = self._one_each("alltoall", values)
        with self._collective(Call.ALLTOALL) as serial:
            return self._collectives.alltoall(serial, mine)

    def close(self) -> None:
        """Close all links. KOS does so when the rank's function has returned."""
        self._exchange.close()

    # ---- inside

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise UsageError("A process that a rank has forked cannot use its communicator.", "Use it in the rank.")
        if not self._busy.acquire(blocking=False):
            raise UsageError("Another thread of this rank uses its communicator.", "Let one thread do all of it.")
        try:
            yield
        finally:
            self._busy.release()

    @contextmanager
    def _collective(self, call: Call) -> Iterator[int]:
        with self._alone():
            self._serial += 1
            self._endpoint.doing = Doing(self._serial, call.word, inside=True)
            yield self._serial
            self._endpoint.doing = Doing(self._serial, call.word)

    def _check_rank(self, name: str, rank: object) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < self.size:
            raise UsageError(f"{name}={rank!r} is no rank of this gang.", f"Its ranks are 0 to {self.size - 1}.")

    def _check_peer(self, name: str, rank: int) -> None:
        self._check_rank(name, rank)
        if rank == self.rank:
            raise UsageError(f"Rank {rank} cannot send to itself.", "Keep the value.")

    def _one_each(self, call: str, values: Sequence[Any] | Array | None) -> Sequence[Any]:
        count = len(values) if values is not None else 0
        if values is None or count != self.size:
            raise UsageError(f"{call} was given {count} values for {self.size} ranks.", "Give it one for each rank.")
        return values if isinstance(values, list | tuple) else list(values)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"patience_s={value!r} is not a number of seconds above 0.", "Write for example 60.")
    return float(value)


def _tag(tag: object) -> int:
    if isinstance(tag, bool) or not isinstance(tag, int) or not 0 <= tag <= TAG_LIMIT:
        raise UsageError(f"tag={tag!r} is not a whole number from 0 to {TAG_LIMIT}.", "Leave it out for 0.")
    return tag


def _operation(op: str | Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if callable(op):
        return op
    if op not in OPERATIONS:
        raise UsageError(f"op={op!r} is no operation.", f"Give a function of two values, or {', '.join(OPERATIONS)}.")
    return OPERATIONS[op]


def _check_out(value: object, out: object) -> None:
    good = (
        isinstance(out, np.ndarray)
        and isinstance(value, np.ndarray)
        and out.shape == value.shape
        and out.dtype == value.dtype
        and out.flags.c_contiguous
        and out.flags.writeable
    )
    if not good:
        raise UsageError(
            "`out` must be a contiguous array of the value's shape and dtype, that can be written to.",
            "Leave it out, and the result is a new array.",
        )
