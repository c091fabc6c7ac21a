"""The session table: a command that is proposed again, since its reply was lost, is applied once.

Theory of operation (Ongaro, "Consensus: Bridging Theory and Practice", section 6.3). A proposer opens a session,
whose number is the log index of its opening, and counts its commands. The reply to each is kept until the proposer
says, by `answered_below` of a later command, that it has it. A command whose serial is known gets the reply of then.

Rules: a session is never made by a command that only names it: after its end it could not be told what had been
applied. Serials may arrive out of order, but a serial whose reply is no longer kept is refused, whether it was
applied or not. So a proposer keeps fewer than `OUTCOMES_LIMIT` commands in flight.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.replicated.deadlines import Deadlines
from kos_cluster.core.replicated.replies import Reply
from kos_cluster.errors import StateError

SESSIONS_LIMIT = 1024  # the one that was silent for longest makes room
OUTCOMES_LIMIT = 64  # replies kept for one session
SESSION_S = 3600.0  # of silence, after which a session ends
OWNER_LIMIT_CHARACTERS = 256
_ANEW = "Look whether it was done, then ask again."


class Session(msgspec.Struct):
    """`forgotten`: the largest serial whose reply is no longer kept."""

    number: int
    owner: str
    seen_s: float
    forgotten: int = 0
    replies: dict[int, Reply] = {}


class Sessions:
    """Who proposes, and what was replied to it."""

    def __init__(self, restored: list[Session]) -> None:
        self._sessions = {session.number: session for session in restored}  # longest silent first
        self._ends = Deadlines()
        for session in restored:
            self._ends.set(str(session.number), session.seen_s + SESSION_S)

    def snapshot(self) -> list[Session]:
        return list(self._sessions.values())

    def open(self, number: int, owner: str, clock_s: float) -> None:
        if len(self._sessions) >= SESSIONS_LIMIT:
            self._end(next(iter(self._sessions)))
        self._sessions[number] = Session(number, owner[:OWNER_LIMIT_CHARACTERS], clock_s)
        self._ends.set(str(number), clock_s + SESSION_S)

    def expire(self, clock_s: float) -> None:
        for key in self._ends.due(clock_s):
            self._end(int(key))

    def recall(self, number: int, serial: int, answered_below: int, clock_s: float) -> Reply | None:
        """The reply given before; None when the command is to be applied now. Raises StateError if nobody can tell."""
        session = self._sessions.pop(number, None)
        if session is None:
            raise StateError(
                f"The session {number} of this request has ended; whether it was applied is not known.", _ANEW
            )
        self._sessions[number] = session
        session.seen_s = clock_s
        self._ends.set(str(number), clock_s + SESSION_S)
        reply = session.replies.get(serial)
        if reply is None and serial <= session.forgotten:
            raise StateError(
                f"The outcome of request {serial} of session {number} is no longer kept; it is not applied again.",
                _ANEW,
            )
        for old in [old for old in session.replies if old < answered_below and old != serial]:
            self._forget(session, old)
        return reply

    def keep(self, number: int, serial: int, reply: Reply) -> None:
        """Remember the reply to a command that was just applied."""
        session = self._sessions.get(number)
        if session is None:  # pushed out by the command itself
            return
        session.replies[serial] = reply
        while len(session.replies) > OUTCOMES_LIMIT:
            self._forget(session, min(session.replies))

    def __len__(self) -> int:
        return len(self._sessions)

    def _forget(self, session: Session, serial: int) -> None:
        del session.replies[serial]
        session.forgotten = max(session.forgotten, serial)

    def _end(self, number: int) -> None:
        self._sessions.pop(number, None)
        self._ends.drop(str(number))
