"""What a rank says to its gang's owner, at its node: one message at a time, repeated until it is answered.

Theory of operation. Stop-and-wait: messages are numbered from 0, the owner's answer has the number of what it answers,
and one to an earlier message is dropped, so the rank hears one answer to each. A message that is slow cannot be told
from one that is lost, and on a slow link each repeat is in the way of what follows. So the pause before a repeat is
learnt, as in Karn's algorithm: twice the time that the last answer took, if its message was said once; each repeat
doubles it, also for the messages to come. The longest pause is about as long as all ranks' pieces together may
take on a slow link (512 MiB at 7 Mbit/s): with a shorter one they would send more repeats than it carries. The first
message is small, and answered only when all ranks are in place: its time tells nothing of the link.

Rules. A pause is `AGAIN_S` to `AGAIN_LIMIT_S`; the node looks at each beat of the owner, so it may be a second longer.
"""

from __future__ import annotations

AGAIN_S = 2.0  # before a message is repeated, at least
AGAIN_LIMIT_S = 600.0  # and at most


class StopAndWait:
    """Of one rank. `said` is its message; empty: it waits for no answer."""

    def __init__(self) -> None:
        self.said = b""
        self.serial = -1
        self._said_s = 0.0  # when, for the last time
        self._repeated = False
        self._pause_s = AGAIN_S

    def say(self, said: bytes, now: float) -> None:
        """The rank has something new to say."""
        self.serial, self.said, self._said_s, self._repeated = self.serial + 1, said, now, False

    def again(self, now: float) -> bool:
        """Whether the message is to be repeated now."""
        if not self.said or now - self._said_s < self._pause_s:
            return False
        self._said_s, self._repeated = now, True
        if self.serial:
            self._pause_s = min(2 * self._pause_s, AGAIN_LIMIT_S)
        return True

    def answered(self, serial: int | None, now: float) -> bool:
        """Whether this is the answer that the rank waits for. None: the owner, of an older version, does not say."""
        if not self.said or serial not in (None, self.serial):
            return False
        if self.serial and not self._repeated:
            self._pause_s = min(max(AGAIN_S, 2 * (now - self._said_s)), AGAIN_LIMIT_S)
        self.said = b""
        return True
