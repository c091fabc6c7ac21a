"""What makes a daemon's proposals safe to repeat: its session with the replicated state, and a serial for each.

Theory of operation (Ongaro, 2014, section 6.3). The state keeps the replies of a session by serial, until the session
says that it has them; so a proposal that comes a second time gets the reply of the first.

Rules: at most `SESSION_PROPOSALS_LIMIT` proposals are under way in a session, fewer than the replies that are kept for
it. A session that was silent for so long that it may have ended is not used again.
"""

from __future__ import annotations

import asyncio

from kos_cluster.core.replicated.sessions import SESSION_S

SESSION_PROPOSALS_LIMIT = 48
SESSION_IDLE_S = SESSION_S / 2  # of silence, after which a new session is opened


class Session:
    """One daemon's, opened anew as needed. `room` is held for each proposal, `opening` while one is opened."""

    def __init__(self) -> None:
        self.number = 0
        self.room = asyncio.Semaphore(SESSION_PROPOSALS_LIMIT)
        self.opening = asyncio.Lock()
        self._used_s = 0.0
        self._next = 1
        self._open: set[int] = set()

    def is_good(self, now: float) -> bool:
        """Whether the session is there, and cannot have ended."""
        return bool(self.number) and (bool(self._open) or now - self._used_s <= SESSION_IDLE_S)

    @property
    def answered_below(self) -> int:
        """All replies below this serial have come."""
        return min(self._open, default=self._next)

    def renew(self, number: int) -> None:
        """The state has opened a session of this number."""
        self.number, self._next = number, 1

    def use(self, now: float) -> None:
        self._used_s = now

    def begin(self) -> int:
        """The serial of a new proposal."""
        serial, self._next = self._next, self._next + 1
        self._open.add(serial)
        return serial

    def end(self, serial: int) -> None:
        self._open.discard(serial)
