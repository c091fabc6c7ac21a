"""The owners that have work on this node: how to reach them, what they have not taken yet, whether they still live.

Rules. An owner is (authenticated identity, instance); its route is that of its newest `Hello`. Results and losses are
kept until the owner releases them, so a broken link loses nothing. Silence is not death: an owner's work is freed at
once when it says goodbye or its process on this machine ends, otherwise after `OWNER_LEASE_S`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from kos_cluster.core.queue import Owner
from kos_cluster.core.records import JobSummary
from kos_cluster.net import wire
from kos_cluster.net.identity import Peer
from kos_cluster.net.streams import Item
from kos_cluster.net.takingback import Returned
from kos_cluster.net.transport import Route
from kos_cluster.node import machine

log = logging.getLogger(__name__)

OWNER_LEASE_S = 600.0
OUTBOX_LIMIT_BYTES = 64 << 20  # results kept in memory for one owner; beyond it the node takes no more of its work
SPOOLED_LIMIT_BYTES = 8 << 30  # and in files
OWNERS_LIMIT = 512  # owners known at once
REPEAT_AFTER_S = 2.0  # a result that was not released by then is sent again

PROGRAM_LIMIT_CHARACTERS = 120  # of what an owner says that it is
RECENT_JOBS = 64  # of one owner, known from its batches before it lists them

Returning = wire.Result | wire.Lost | Returned | Item  # what is kept until the owner has it
Kept = tuple[Returning, bytes]


@dataclass(slots=True)
class OwnerState:
    """One owner, as this node knows it."""

    owner: Owner
    peer: Peer
    route: Route
    heard_s: float
    jobs: list[JobSummary] = field(default_factory=list)
    view: int = 0
    program: str = ""  # what it is, in its own words
    pidfd: int | None = None
    was_local: bool = False  # its process is, or was, on this machine
    next_serial: int = 1
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT_JOBS))  # jobs of its newest batches
    outbox: dict[int, tuple[Kept, float]] = field(default_factory=dict)  # serial -> (message, last sent)
    outbox_bytes: int = 0
    spooled_bytes: int = 0  # of the files that messages in the outbox name
    kept_batches: dict[int, int] = field(default_factory=dict)  # batch -> how many of its messages are in the outbox

    @property
    def is_local(self) -> bool:
        return self.was_local

    def submitted(self, job: str) -> None:
        """A batch of this job came."""
        if not self.recent or self.recent[-1] != job:
            self.recent.append(job)

    def has(self, job: str) -> bool:
        """Whether a job is this owner's, as far as it has told."""
        return job in self.recent or any(known.job == job for known in self.jobs)

    def keep(self, message: Returning, payload: bytes, now: float) -> None:
        self.outbox[message.serial] = ((message, payload), now)
        self.kept_batches[message.batch] = self.kept_batches.get(message.batch, 0) + 1
        self.outbox_bytes += len(payload)
        self.spooled_bytes += sum(size_bytes for _, size_bytes in files_of(message))

    @property
    def full(self) -> bool:
        """Whether so much is kept for it that it has to take some before it gets more work."""
        return self.outbox_bytes > OUTBOX_LIMIT_BYTES or self.spooled_bytes > SPOOLED_LIMIT_BYTES

    def release(self, serials: list[int]) -> list[Returning]:
        """Forget what the owner has; returns it, so that its large outcomes can be removed."""
        released = []
        for serial in serials:
            kept = self.outbox.pop(serial, None)
            if kept is not None:
                (message, payload), _ = kept
                count = self.kept_batches.pop(message.batch)
                if count > 1:
                    self.kept_batches[message.batch] = count - 1
                self.outbox_bytes -= len(payload)
                self.spooled_bytes -= sum(size_bytes for _, size_bytes in files_of(message))
                released.append(message)
        return released

    def overdue(self, now: float) -> Iterator[Kept]:
        """What was sent long ago and not released: send it again."""
        for serial, (kept, sent_s) in list(self.outbox.items()):
            if now - sent_s >= REPEAT_AFTER_S:
                self.outbox[serial] = (kept, now)
                yield kept


def files_of(message: Returning) -> Collection[tuple[str, int]]:
    """The files in the spool that go with a message, with their sizes in bytes."""
    if isinstance(message, wire.Result):
        return message.large.values()
    return [message.large] if isinstance(message, Item) and message.large else ()


class Owners:
    """All owners of one node. `ended(state)` is called once when an owner's work should be freed."""

    def __init__(self, ended: Callable[[OwnerState], None]) -> None:
        self._ended = ended
        self._by_owner: dict[Owner, OwnerState] = {}
        self._by_route: dict[Route, OwnerState] = {}
        self._loop = asyncio.get_running_loop()

    def __iter__(self) -> Iterator[OwnerState]:
        return iter(list(self._by_owner.values()))

    def hello(
        self, peer: Peer, route: Route, hello: wire.Hello, now: float, *, on_this_machine: bool
    ) -> OwnerState | None:
        """An owner presents itself, for the first time or on a new link; None when there are too many.

        One link is one owner: another name on it ends the one before.
        """
        owner = (peer.id, hello.instance)
        before = self._by_route.get(route)
        if before is not None and before.owner != owner:
            self.end(before)
        state = self._by_owner.get(owner)
        if state is None:
            if len(self._by_owner) >= OWNERS_LIMIT:
                return None
            state = self._by_owner[owner] = OwnerState(owner, peer, route, now)
            if on_this_machine:
                self._watch(state, hello)
        self._by_route.pop(state.route, None)
        state.route, state.heard_s, state.peer = route, now, peer
        state.program = hello.program[:PROGRAM_LIMIT_CHARACTERS]
        self._by_route[route] = state
        return state

    def of_route(self, route: Route, peer: Peer) -> OwnerState | None:
        """The owner that speaks on a route, if it is the same identity that said hello on it; it lives, then."""
        state = self._by_route.get(route)
        if state is None or state.peer.id != peer.id:
            return None
        state.heard_s = time.monotonic()
        return state

    def get(self, owner: Owner) -> OwnerState | None:
        return self._by_owner.get(owner)

    def end(self, state: OwnerState) -> None:
        """Forget an owner and have its work freed."""
        if self._by_owner.pop(state.owner, None) is None:
            return
        self._by_route.pop(state.route, None)
        self._unwatch(state)
        self._ended(state)

    def expire(self, now: float) -> None:
        for state in self:
            if now - state.heard_s >= OWNER_LEASE_S:
                self.end(state)

    def close(self) -> None:
        for state in self:
            self._unwatch(state)

    def _watch(self, state: OwnerState, hello: wire.Hello) -> None:
        """Follow a client's process on this machine, so that its end is known at once even after SIGKILL."""
        if hello.boot_id != machine.boot_id() or hello.pid_namespace != machine.pid_namespace() or hello.pid <= 0:
            return
        try:
            state.pidfd = os.pidfd_open(hello.pid)
        except (OSError, OverflowError) as error:  # it has ended, or there can be no such process
            log.info("The process %d of %s cannot be followed: %s", hello.pid, state.peer, error)
            state.was_local = True
            self._loop.call_soon(self.end, state)
            return
        state.was_local = True
        self._loop.add_reader(state.pidfd, self.end, state)

    def _unwatch(self, state: OwnerState) -> None:
        if state.pidfd is not None:
            self._loop.remove_reader(state.pidfd)
            os.close(state.pidfd)
            state.pidfd = None
