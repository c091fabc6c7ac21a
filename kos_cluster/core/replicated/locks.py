"""Named locks: leases with fencing tokens, and a first-come queue for each.

Theory of operation (Gray & Cheriton, "Leases", 1989). A lock is held until its lease ends by the replicated clock, is
renewed, or is released. A holder that is stalled past its lease still believes that it holds the lock; so each lease
has a token, larger than that of any earlier lease of any lock, and the resource refuses smaller ones (`core.fencing`).
Who waits gets the lock in the order of asking, with a full lease from then on. A waiter that is gone is found out by
its patience, or, when it gets the lock, by its lease.

Rules: `owner` is unique to one acquisition; asking twice changes no token and no place. The counter of tokens outlives
every lock. Who waits asks again before `wait_s` is over to stay in the queue.

    state     command or clock         next
    -         acquire                  held
    held      acquire, other, waits    held, the other in the queue
    held      acquire or renew, same   held, lease anew, same token
    held      release, lease over      held by the first in the queue with a new token, or -
    queued    wait over, release       out of the queue
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.replicated.commands import AcquireLock, ReleaseLock, RenewLock
from kos_cluster.core.replicated.deadlines import Deadlines
from kos_cluster.core.replicated.replies import Change, LeaseEnded, LockGranted, LockPassedOn, LockQueued
from kos_cluster.errors import LimitError, LockHeldError, UsageError

LOCKS_LIMIT = 4096  # held at once
WAITERS_LIMIT = 128  # for one lock
NAME_LIMIT_CHARACTERS = 256  # of a lock's, owner's or holder's name
TTL_LEAST_S = 1.0
TTL_LIMIT_S = 24 * 3600.0
WAIT_LIMIT_S = 24 * 3600.0


class Waiter(msgspec.Struct, frozen=True):
    """`since_s`: when it asked first. It leaves the queue at `until_s`."""

    owner: str
    holder: str
    ttl_s: float
    since_s: float
    until_s: float


class Lock(msgspec.Struct):
    """A held lock. Times are of the replicated clock."""

    name: str
    owner: str
    holder: str
    token: int
    ttl_s: float
    since_s: float
    until_s: float
    queue: list[Waiter] = []


class Locks:
    """The locks that are held, and who waits for them."""

    def __init__(self, restored: list[Lock], last_token: int) -> None:
        self._locks = {lock.name: lock for lock in restored}
        self.last_token = last_token
        self._ends = Deadlines()
        for lock in restored:
            self._watch(lock)

    def snapshot(self) -> list[Lock]:
        return list(self._locks.values())

    @property
    def due_s(self) -> float:
        """No lease and no patience ends before."""
        return self._ends.earliest_s

    def get(self, name: str) -> Lock | None:
        return self._locks.get(name)

    def acquire(self, command: AcquireLock, clock_s: float) -> LockGranted | LockQueued:
        """Raises LockHeldError when it is held and `wait_s` is 0, UsageError or LimitError."""
        _check(command)
        lock = self._locks.get(command.name)
        if lock is None:
            if len(self._locks) >= LOCKS_LIMIT:
                raise LimitError(f"{LOCKS_LIMIT} locks are held already, which is the limit.", "Release some.")
            lock = Lock(command.name, "", "", 0, 0.0, 0.0, 0.0)
            self._locks[command.name] = lock
            self._give(lock, command.owner, command.holder, command.ttl_s, clock_s)
        elif lock.owner == command.owner:
            lock.ttl_s, lock.until_s = command.ttl_s, clock_s + command.ttl_s
            self._watch(lock)
        else:
            return self._enqueue(lock, command, clock_s)
        return LockGranted(lock.name, lock.token, lock.until_s)

    def renew(self, command: RenewLock, clock_s: float) -> LockGranted:
        """Raises LockHeldError when the lease has ended."""
        lock = self._locks.get(command.name)
        if lock is None or (lock.owner, lock.token) != (command.owner, command.token):
            now = "nobody holds it" if lock is None else _held(lock, clock_s)
            raise LockHeldError(
                f"The lease of the lock {command.name[:NAME_LIMIT_CHARACTERS]!r} with token {command.token} has ended; "
                f"{now}.",
                "Stop what needs the lock, then acquire it again.",
            )
        lock.until_s = clock_s + lock.ttl_s
        self._watch(lock)
        return LockGranted(lock.name, lock.token, lock.until_s)

    def release(self, command: ReleaseLock, clock_s: float) -> list[Change]:
        """Nothing happens when the owner neither holds the lock nor waits for it, so that a retry is harmless."""
        lock = self._locks.get(command.name)
        if lock is None:
            return []
        if lock.owner == command.owner:
            return self._pass_on(lock, clock_s)
        lock.queue = [waiter for waiter in lock.queue if waiter.owner != command.owner]
        return []

    def expire(self, clock_s: float) -> list[Change]:
        """End the leases that are over, and the patience of those who wait."""
        changes: list[Change] = []
        for name in self._ends.due(clock_s):
            lock = self._locks[name]
            gone = [waiter for waiter in lock.queue if waiter.until_s <= clock_s]
            lock.queue = [waiter for waiter in lock.queue if waiter.until_s > clock_s]
            changes += [LeaseEnded(name, waiter.owner, 0) for waiter in gone]
            if lock.until_s <= clock_s:
                changes.append(LeaseEnded(name, lock.owner, lock.token))
                changes += self._pass_on(lock, clock_s)
            else:
                self._watch(lock)
        return changes

    def _enqueue(self, lock: Lock, command: AcquireLock, clock_s: float) -> LockQueued:
        places = {waiter.owner: place for place, waiter in enumerate(lock.queue)}
        place = places.get(command.owner)
        if command.wait_s == 0:
            raise LockHeldError(
                f"The lock {lock.name!r} is taken: {_held(lock, clock_s)}.", "Wait for it, or try again later."
            )
        if place is None and len(lock.queue) >= WAITERS_LIMIT:
            raise LimitError(f"{WAITERS_LIMIT} wait for the lock {lock.name!r} already, which is the limit.")
        since_s = clock_s if place is None else lock.queue[place].since_s
        waiter = Waiter(command.owner, command.holder, command.ttl_s, since_s, clock_s + command.wait_s)
        if place is None:
            place = len(lock.queue)
            lock.queue.append(waiter)
        else:
            lock.queue[place] = waiter
        self._watch(lock)
        return LockQueued(lock.name, place + 1, _held(lock, clock_s))

    def _pass_on(self, lock: Lock, clock_s: float) -> list[Change]:
        if not lock.queue:
            del self._locks[lock.name]
            self._ends.drop(lock.name)
            return []
        waiter = lock.queue.pop(0)
        self._give(lock, waiter.owner, waiter.holder, waiter.ttl_s, clock_s)
        return [LockPassedOn(lock.name, lock.owner, lock.token)]

    def _give(self, lock: Lock, owner: str, holder: str, ttl_s: float, clock_s: float) -> None:
        self.last_token += 1
        lock.owner, lock.holder, lock.token = owner, holder, self.last_token
        lock.ttl_s, lock.since_s, lock.until_s = ttl_s, clock_s, clock_s + ttl_s
        self._watch(lock)

    def _watch(self, lock: Lock) -> None:
        self._ends.set(lock.name, min([lock.until_s, *(waiter.until_s for waiter in lock.queue)]))


def _check(command: AcquireLock) -> None:
    for what, text in (("name", command.name), ("owner", command.owner), ("holder", command.holder)):
        if not 0 < len(text) <= NAME_LIMIT_CHARACTERS:
            raise UsageError(f"The {what} of a lock has 1 to {NAME_LIMIT_CHARACTERS} characters, not {len(text)}.")
    if not TTL_LEAST_S <= command.ttl_s <= TTL_LIMIT_S:
        raise UsageError(
            f"A lock cannot be leased for {command.ttl_s:g} s.", f"Give {TTL_LEAST_S:g} to {TTL_LIMIT_S:g} s."
        )
    if not 0 <= command.wait_s <= WAIT_LIMIT_S:
        raise UsageError(f"Nobody can wait {command.wait_s:g} s for a lock.", f"Give 0 to {WAIT_LIMIT_S:g} s.")


def _held(lock: Lock, clock_s: float) -> str:
    waiting = f", {len(lock.queue)} waiting" if lock.queue else ""
    return (
        f"{lock.holder} has held it for {clock_s - lock.since_s:.0f} s, "
        f"its lease ends in {lock.until_s - clock_s:.0f} s{waiting}"
    )
