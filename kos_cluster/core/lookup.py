"""One look-up: asks contacts ever closer to a key, until nobody knows a closer one.

Theory of operation (Maymounkov, Mazières 2002, section 2.3). The look-up keeps the contacts that it heard of, sorted
by their distance to the key, and has up to `PARALLEL` questions under way to the closest that were not asked. Each
answer names contacts that are closer: at least half of the distance that is left goes with each step. It ends when the
node that it seeks has answered, or when the `BUCKET_SIZE` closest that have not failed have all answered.

    contact     event                           next
    -           named by an answer, or a seed   new
    new         its turn                        asked
    asked       answered                        answered
    asked       failed, another address known   new
    asked       failed, no other address        failed
    failed      named with an untried address   new

Rules: an address is a hint. Whoever lies about the address of a node delays the look-up by one question: what others
say of the same node is tried next, up to `ADDRESSES_LIMIT` addresses. A look-up asks `QUESTIONS_LIMIT` questions at
most, so it hears of QUESTIONS_LIMIT * BUCKET_SIZE, 2,048 contacts at most.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from kos_cluster.core.buckets import BUCKET_SIZE, Contact, key_of

PARALLEL = 3  # questions under way: alpha of the paper
QUESTIONS_LIMIT = 128  # questions of one look-up
ADDRESSES_LIMIT = 4  # addresses of one node that are tried


class _Stage(enum.Enum):
    """How far the look-up is with a contact."""

    NEW = enum.auto()
    ASKED = enum.auto()
    ANSWERED = enum.auto()
    FAILED = enum.auto()


@dataclass(slots=True)
class _Candidate:
    """A node that the look-up heard of. The first of `addresses` that was not tried is next."""

    hops: int  # messages from the seeker to it, along those who named it
    addresses: list[Contact] = field(default_factory=list)
    tried: int = 0
    stage: _Stage = _Stage.NEW
    proved: Contact | None = None  # as its answer came


class LookUp:
    """The search for the contacts closest to a key; with `target`, for the node of that id, which has this key."""

    def __init__(self, key: int, seeds: Iterable[Contact], target: str = "") -> None:
        self.key = key
        self.target = target
        self.questions = 0
        self._candidates: dict[str, _Candidate] = {}
        self._by_distance: list[tuple[int, str]] = []  # all candidates
        self._under_way = 0
        for contact in seeds:
            self.add(contact, 1)

    @property
    def found(self) -> Contact | None:
        """The target, once it has answered."""
        candidate = self._candidates.get(self.target)
        return candidate.proved if candidate is not None else None

    @property
    def hops(self) -> int:
        """The messages along the way to the target; 0 while it is not found."""
        return self._candidates[self.target].hops if self.found is not None else 0

    @property
    def done(self) -> bool:
        return self.found is not None or (self._under_way == 0 and self._turn() is None)

    def closest(self) -> tuple[Contact, ...]:
        """The closest contacts that have answered, at most `BUCKET_SIZE`."""
        proved = (self._candidates[id_].proved for _, id_ in self._by_distance)
        return tuple(contact for contact in proved if contact is not None)[:BUCKET_SIZE]

    def add(self, contact: Contact, hops: int) -> None:
        """Hear of a contact, or of another address for one."""
        candidate = self._candidates.get(contact.id)
        if candidate is None:
            candidate = self._candidates[contact.id] = _Candidate(hops)
            bisect.insort(self._by_distance, (key_of(contact.id) ^ self.key, contact.id))
        if contact in candidate.addresses or len(candidate.addresses) >= ADDRESSES_LIMIT:
            return
        candidate.addresses.append(contact)
        if candidate.stage is _Stage.FAILED:
            candidate.stage = _Stage.NEW

    def next(self) -> list[Contact]:
        """Whom to ask now. Each gets one `answered` or `failed`."""
        asked: list[Contact] = []
        while not self.done and self._under_way < PARALLEL and (candidate := self._turn()) is not None:
            asked.append(candidate.addresses[candidate.tried])
            candidate.tried += 1
            candidate.stage = _Stage.ASKED
            self._under_way += 1
            self.questions += 1
        return asked

    def answered(self, contact: Contact, named: Iterable[Contact]) -> None:
        """A contact has answered, at the address that its link has proved."""
        candidate = self._candidates[contact.id]
        candidate.proved = contact
        candidate.stage = _Stage.ANSWERED
        self._under_way -= 1
        for other in named:
            self.add(other, candidate.hops + 1)

    def failed(self, id_: str) -> None:
        """The contact of this id did not answer, or not properly, where it was asked."""
        candidate = self._candidates[id_]
        candidate.stage = _Stage.NEW if candidate.tried < len(candidate.addresses) else _Stage.FAILED
        self._under_way -= 1

    def _turn(self) -> _Candidate | None:
        """The closest candidate to ask, if it is among the `BUCKET_SIZE` closest that have not failed."""
        if self.questions >= QUESTIONS_LIMIT:
            return None
        standing = 0
        for _, id_ in self._by_distance:
            candidate = self._candidates[id_]
            if candidate.stage is _Stage.NEW:
                return candidate
            standing += candidate.stage is not _Stage.FAILED
            if standing == BUCKET_SIZE:
                break
        return None
