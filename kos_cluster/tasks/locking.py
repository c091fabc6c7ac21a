"""A named lock of the cluster, held by a program: taken, renewed in time by a thread, given up.

Theory of operation. A lock is a lease that the cluster has agreed on (`core.replicated.locks`). It is renewed each
third of its time by a thread of its own, through whichever node answers, so the loss of the coordinator costs no lock.
What is known here of the lease counts from before the question that was answered, by this machine's monotonic clock,
and ends as early as the cluster's clock can end it when a node's clock was set forward (`core.replicated.stamp`).

Rules: `held` turns False when the lease may have ended, never later: because somebody else is known to hold it, or
because nobody could be asked in time. A lease that was lost is not taken again. A holder that was stopped past its
lease cannot know that yet; so what the lock protects should refuse a `token` smaller than the largest that it has seen.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from types import TracebackType
from typing import Protocol, TypeVar

from kos_cluster.core.names import checked
from kos_cluster.core.replicated.stamp import RATE_MOST
from kos_cluster.errors import KosError, LockHeldError, StateError, UnreachableError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.locks import LockReleased, LockRenewed, LockState, LockWanted
from kos_cluster.tasks.asking import DECISION_TIMEOUT_S

log = logging.getLogger(__name__)

TTL_S = 30.0  # of a lock for which nothing else is said
RENEWALS_A_LEASE = 3
FAILOVER_S = 20.0  # for which an answer is looked for when nodes fail or cannot decide
RENEWAL_TIMEOUT_S = 5.0  # for one answer, before another node is asked
RELEASE_TIMEOUT_S = 5.0
PAUSE_S = 0.1  # between two tries
POLL_S = 5.0  # for which a node holds the question of one who waits, at most

T = TypeVar("T")


class Asks(Protocol):
    """The connection to the cluster; see `tasks.mesh`."""

    def request(self, question: wire.Asked, kind: type[T], *, timeout_s: float) -> T: ...


class Lock:
    """Use as `with cluster.lock(name) as lock`. Leaving it raises LockHeldError when the lease was lost meanwhile.

    `wait_s`: how long to wait for it; None: as long as it takes. Entering raises LockHeldError when it was not free in
    that time, UsageError for a name or time that cannot be, UnreachableError when the cluster cannot decide.
    """

    def __init__(self, mesh: Asks, name: str, ttl_s: float, wait_s: float | None) -> None:
        if wait_s is not None and not wait_s >= 0:
            raise UsageError(f"Nobody can wait {wait_s:g} s for a lock.", "Give a time of 0 or more, or None.")
        self.name = checked(name, "lock")
        self.token = 0
        self._mesh = mesh
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._owner = ""
        self._until_s = 0.0  # the lease holds until then at least, by the monotonic clock
        self._lost = ""  # why, when it is known
        self._left = threading.Event()
        self._renewing: threading.Thread | None = None

    @property
    def held(self) -> bool:
        """Whether the lease goes on, as far as can be known here."""
        return bool(self.token) and not self._lost and time.monotonic() < self._until_s

    @property
    def lost(self) -> str:
        """Why the lease is lost, as a sentence; empty while it is held."""
        if self.held:
            return ""
        return self._lost or f"The lease of the lock {self.name!r} could not be renewed in time."

    def __enter__(self) -> Lock:
        if self._owner:
            raise StateError(f"The lock {self.name!r} is taken already by this object.", "Make another: cluster.lock.")
        self._owner, self._lost = secrets.token_hex(8), ""
        self._left.clear()
        try:
            self.token = self._acquired()
        except BaseException:
            self._give_up()
            raise
        self._renewing = threading.Thread(target=self._renew, name=f"kos-lock-{self.name}", daemon=True)
        self._renewing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        lost = self.lost
        self._left.set()
        if self._renewing is not None:
            self._renewing.join()
        self._give_up()
        if lost and error is None:
            raise LockHeldError(lost, "What was done since may not have been done alone.")
        if lost and error is not None:
            error.add_note(lost)

    def __repr__(self) -> str:
        return f"<kos Lock {self.name!r}, {f'token {self.token}' if self.held else 'not held'}>"

    # ---- taking

    def _acquired(self) -> int:
        """Wait for it; the fencing token."""
        began_s = time.monotonic()
        deadline_s = float("inf") if self._wait_s is None else began_s + self._wait_s
        while True:
            asked_s = time.monotonic()
            wait_s = min(max(deadline_s - asked_s, 0.0), POLL_S)
            if self._wait_s:
                wait_s = max(wait_s, PAUSE_S)  # a place in the queue is not asked for with no patience at all
            question = LockWanted(self.name, self._owner, self._ttl_s, wait_s)
            state = self._answer(question, wait_s + DECISION_TIMEOUT_S)
            self._until_s = asked_s + self._ttl_s / RATE_MOST
            if state.token and time.monotonic() < self._until_s:
                return state.token
            if time.monotonic() >= deadline_s:
                why = state.held or "its lease had ended before the answer came"
                raise LockHeldError(
                    f"The lock {self.name!r} could not be had within {self._wait_s:g} s: {why}.",
                    "Wait longer for it, or try again later.",
                )

    def _answer(self, question: LockWanted, timeout_s: float) -> LockState:
        """Ask until a node answers. To ask again for what was granted already changes nothing."""
        deadline_s = time.monotonic() + FAILOVER_S
        while True:
            try:
                return self._mesh.request(question, LockState, timeout_s=timeout_s)
            except UnreachableError:
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(PAUSE_S)

    def _give_up(self) -> None:
        """Release the lock, or one's place in its queue. Who cannot be told will see the lease end."""
        owner, self._owner, self.token = self._owner, "", 0
        release = LockReleased(self.name, owner)
        try:
            self._mesh.request(release, bool, timeout_s=RELEASE_TIMEOUT_S)
        except KosError as error:
            log.warning("The lock %r is free when its lease of %g s ends: %s", self.name, self._ttl_s, error.message)

    # ---- keeping

    def _renew(self) -> None:
        """Keep the lease, in a thread of its own, until it is left or lost."""
        pause_s = self._ttl_s / RENEWALS_A_LEASE
        while not self._left.wait(pause_s) and self.held:
            asked_s = time.monotonic()
            timeout_s = max(PAUSE_S, min(RENEWAL_TIMEOUT_S, (self._until_s - asked_s) / 2))
            try:
                question = LockRenewed(self.name, self._owner, self.token)
                self._mesh.request(question, LockState, timeout_s=timeout_s)
                self._until_s = asked_s + self._ttl_s / RATE_MOST
                pause_s = self._ttl_s / RENEWALS_A_LEASE
            except LockHeldError as error:
                self._lost = error.message
            except KosError:  # asked again until the lease has ended; then that is said
                pause_s = PAUSE_S
