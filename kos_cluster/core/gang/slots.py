"""What gangs have reserved of one node, and the requests that wait for it to become free.

Theory of operation. A request names a transaction, its gang, a number of ranks and what each takes. It is granted when
all of that is free. While one waits, its node starts no other work, so that slots become free at all; that ends with
its patience. A grant lasts until its ranks have come, it is released, or its lease is over.

Rules. Requests are granted in the order in which they came. A gang has one reservation on a node: a newer transaction
of the same gang takes the place of an older one, whose ranks will not come. What is granted is counted in the node's
account, and passes to each rank as it comes. A request beyond `REQUESTS_LIMIT` is denied.

    request     event                               next       effect
    -           asked                               waiting
    waiting     enough is free                      granted    Granted
    waiting     its patience is over, released      -          Denied
    granted     a rank comes                        granted, a rank less; - with the last one
    granted     released, superseded, lease over    -
    any         withdrawn, or its owner has ended   -          Denied, if it waited
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from kos_cluster.core.capacity import Account, Demand, fault_of

REQUESTS_LIMIT = 256  # waiting and granted on one node


class SlotsWanted(msgspec.Struct, frozen=True):
    """Event: reserve what the ranks of a gang take. `gang` names owner and epoch; see `reservation_key`."""

    txn: int
    gang: str
    ranks: int
    patience_s: float
    lease_s: float
    cpus: int = 1  # of each rank, as the rest
    memory_bytes: int = 0
    gpus: int = 0
    resources: tuple[tuple[str, int], ...] = ()
    owner: tuple[str, str] = ("", "")  # identity, and instance of the client


class SlotsReleased(msgspec.Struct, frozen=True):
    """Event: nobody will use what is left of this reservation."""

    txn: int


class SlotsWithdrawn(msgspec.Struct, frozen=True):
    """Event: the ranks of this gang will not come, whatever is reserved for them."""

    gang: str


class SlotsGranted(msgspec.Struct, frozen=True):
    """Effect: all of it is held."""

    txn: int


class SlotsDenied(msgspec.Struct, frozen=True):
    """Effect: it did not become free in time, or never can."""

    txn: int


Answer = SlotsGranted | SlotsDenied


def reservation_key(identity: str, gang: str) -> str:
    """Whose reservation it is: the owner's authenticated identity, and the job of the gang's epoch."""
    return f"{identity}/{gang}"


class _Whole(msgspec.Struct, frozen=True):
    """What some ranks take together."""

    cpus: int
    memory_bytes: int
    gpus: int
    resources: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class _Request:
    wanted: SlotsWanted
    patient_until_s: float
    left: int = 0  # ranks that it is held for and that have not come; 0: it waits
    gpus: tuple[str, ...] = ()  # of these ranks together
    until_s: float = 0.0  # the end of its lease, once granted


class ReservedSlots:
    """What `core.queue.NodeQueue` keeps of the gangs, counted in its account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._requests: dict[int, _Request] = {}

    def __bool__(self) -> bool:
        """Whether `tick` has anything to look at."""
        return bool(self._requests)

    @property
    def waiting(self) -> bool:
        """Whether a request waits: nothing else is to be started meanwhile."""
        return bool(self._requests) and any(not request.left for request in self._requests.values())

    def want(self, wanted: SlotsWanted, now: float) -> list[Answer]:
        """Take a request in; `grant` answers it."""
        if wanted.txn in self._requests:
            return []
        older = [txn for txn, known in self._requests.items() if known.wanted.gang == wanted.gang and txn < wanted.txn]
        answers = self._release_all(older)
        never = wanted.ranks < 1 or fault_of(wanted) or self._account.why_never(_whole(wanted, wanted.ranks))
        if never or len(self._requests) >= REQUESTS_LIMIT:
            answers.append(SlotsDenied(wanted.txn))
        else:
            self._requests[wanted.txn] = _Request(wanted, now + wanted.patience_s)
        return answers

    def grant(self, now: float) -> list[Answer]:
        """Grant what fits into what is free, the oldest first."""
        answers: list[Answer] = []
        for txn, request in self._requests.items():
            if request.left:
                continue
            whole = _whole(request.wanted, request.wanted.ranks)
            if not self._account.fits(whole):
                break
            request.gpus = self._account.take(whole)
            request.left, request.until_s = request.wanted.ranks, now + request.wanted.lease_s
            answers.append(SlotsGranted(txn))
        return answers

    def take(self, gang: str, rank: Demand) -> tuple[str, ...] | None:
        """A rank has come for what is held for it, which is its own from here on; its GPUs. None: nothing is held."""
        for txn, request in self._requests.items():
            wanted = request.wanted
            if wanted.gang == gang and request.left and _whole(rank, 1) == _whole(wanted, 1):
                gpus, request.gpus = request.gpus[: wanted.gpus], request.gpus[wanted.gpus :]
                request.left -= 1
                if not request.left:
                    del self._requests[txn]
                return gpus
        return None

    def release(self, txn: int) -> list[Answer]:
        """Free what is left of it; a request that still waits is denied."""
        request = self._requests.pop(txn, None)
        if request is None:
            return []
        if not request.left:
            return [SlotsDenied(txn)]
        self._account.give_back(_whole(request.wanted, request.left), lent=False)
        self._account.free(request.gpus)
        return []

    def withdraw(self, gang: str) -> list[Answer]:
        """Free what is reserved, or waits, for a gang."""
        return self._release_all(txn for txn, request in self._requests.items() if request.wanted.gang == gang)

    def owner_ended(self, owner: tuple[str, str]) -> list[Answer]:
        """Free what is reserved, or waits, for the gangs of a client that has ended."""
        return self._release_all(txn for txn, request in self._requests.items() if request.wanted.owner == owner)

    def _release_all(self, txns: Iterable[int]) -> list[Answer]:
        return [answer for txn in list(txns) for answer in self.release(txn)]

    def tick(self, now: float) -> list[Answer]:
        """End what is over: leases, and the patience of what waits."""
        over = [
            txn
            for txn, request in self._requests.items()
            if now >= (request.until_s if request.left else request.patient_until_s)
        ]
        return self._release_all(over)


def _whole(demand: Demand, ranks: int) -> _Whole:
    resources = tuple((name, ranks * count) for name, count in demand.resources)
    return _Whole(ranks * demand.cpus, ranks * demand.memory_bytes, ranks * demand.gpus, resources)
