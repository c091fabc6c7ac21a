"""What is written before what is said: the order in which Raft's effects are carried out.

The daemon and the simulator both run this code, so that the simulator tests the order that ships.

Theory of operation. The machine numbers its writes, and says of each message which write must be durable before it
leaves. A disk makes durable one batch at a time, and a batch costs about the same however much is in it. So at most one
write is in flight; all that accumulates meanwhile becomes the next one (group commit), under the number of its last
part. A message whose write is not yet durable waits; those released by one write leave in the order they were given.

    disk      effect or report     next      actions
    idle      Persist              writing   Write
    writing   Persist              writing   none; it joins the next batch
    writing   written, batch waits writing   the released Sends, then Write
    writing   written, none waits  idle      the released Sends
    any       Send, after durable  same      Send
    any       Send, after later    same      none; it is withheld
    any       any other effect     same      itself, at once

Other effects need no waiting: the machine gives Apply and RestoreSnapshot only for what is durable on this node.

Rules: batches are carried out whole or not at all, in order, each reported once by `written`. The caller then feeds
`Persisted(number)` to the machine. After a failed write nothing may be reported as written any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from kos_cluster.core.raft.events import Effect, Persist, Send

WITHHELD_LIMIT = 4096  # messages that wait for the disk; beyond it the oldest go, as if the network had lost them


class Write(msgspec.Struct, frozen=True):
    """Make this durable, as one, then call `written(batch.number)`."""

    batch: Persist


Action = Write | Effect  # never a Persist


class Ordering:
    """The queue between one machine and one disk."""

    def __init__(self) -> None:
        self.durable = 0  # the last write that is on the disk
        self._in_flight: int | None = None
        self._waiting: Persist | None = None
        self._withheld: deque[Send] = deque(maxlen=WITHHELD_LIMIT)

    def take(self, effects: Sequence[Effect]) -> list[Action]:
        """The machine's effects, in its order; returns what to do now."""
        actions: list[Action] = []
        for effect in effects:
            match effect:
                case Persist():
                    self._waiting = merge(self._waiting, effect) if self._waiting else effect
                case Send(after=after) if after > self.durable:
                    self._withheld.append(effect)
                case _:
                    actions.append(effect)
        self._start(actions)
        return actions

    def written(self, number: int) -> list[Action]:
        """The batch in flight is durable. Raises ValueError when it is another."""
        if number != self._in_flight:
            raise ValueError(f"write {number} was reported, but {self._in_flight} is in flight")
        self._in_flight, self.durable = None, number
        kept: deque[Send] = deque(maxlen=WITHHELD_LIMIT)
        actions: list[Action] = []
        for send in self._withheld:
            (actions if send.after <= number else kept).append(send)
        self._withheld = kept
        self._start(actions)
        return actions

    def _start(self, actions: list[Action]) -> None:
        if self._in_flight is None and self._waiting is not None:
            self._in_flight = self._waiting.number
            actions.append(Write(self._waiting))
            self._waiting = None


def merge(earlier: Persist, later: Persist) -> Persist:
    """One write that leaves the disk as both in turn would."""
    if later.reset:
        entries = later.entries
    elif later.entries:
        kept = later.entries[0].index - earlier.entries[0].index if earlier.entries else 0
        entries = earlier.entries[: max(0, kept)] + later.entries
    else:
        entries = earlier.entries
    return Persist(
        later.number,
        later.hard_state,
        later.first,
        entries,
        later.snapshot or earlier.snapshot,
        earlier.reset or later.reset,
    )
