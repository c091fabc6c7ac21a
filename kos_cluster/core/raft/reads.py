"""Linearizable reads without a write: the read index.

Source: Ongaro's thesis, 6.4. Theory: a read may be answered from any state that holds all that was committed when the
read was asked. The leader knows its commit index to be that recent once it has committed an entry of its own term. It
knows that it still led when the read was asked once a majority has answered a heartbeat that it sent after that. No
clock matters. One round of heartbeats serves all reads that wait for it; those that come meanwhile share the next.

    read asked at     own term committed    next
    leader            no                    kept until it is
    leader            yes                   waits for a round that begins now or later, then ready
    follower          -                     forwarded to the leader; ready, refused or given up by its answer
"""

from __future__ import annotations

from kos_cluster.core.raft.events import ReadReady
from kos_cluster.core.raft.messages import ReadRequest, ReadResponse
from kos_cluster.core.raft.state import State

READS_LIMIT = 4096  # reads that wait at one node

_Read = tuple[int, str | None]  # id, and the node that asks; None: this one


class LeaderReads:
    """The reads that wait for the leader to be confirmed."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.round = 0  # the last round that was begun
        self._early: list[_Read] = []  # no entry of this term is committed yet
        self._current: list[tuple[_Read, int]] = []  # (read, index) that wait for round `round`
        self._next: list[tuple[_Read, int]] = []  # that wait for the one after it

    @property
    def waiting(self) -> bool:
        """Reads wait for the present round."""
        return bool(self._current)

    def add(self, id: int, source: str | None) -> bool:
        """Take a read; True when a new round is to be sent."""
        if len(self._early) + len(self._current) + len(self._next) >= READS_LIMIT:
            self._refuse((id, source), f"{READS_LIMIT} reads wait already")
            return False
        state = self._state
        if state.log.term_at(state.commit) != state.term:
            self._early.append((id, source))
            return False
        self._next.append(((id, source), state.commit))
        return self._advance()

    def begin(self) -> bool:
        """More is committed. True when a new round is to be sent."""
        early, self._early = self._early, []
        self._next += [(read, self._state.commit) for read in early]
        return self._advance()

    def confirm(self, round: int) -> bool:
        """A majority has answered `round`; True when a new round is to be sent."""
        if round < self.round:
            return False
        ready, self._current = self._current, []
        for (id, source), index in ready:
            if source is None:
                self._state.emit(ReadReady(id, index))
            else:
                self._state.send(source, ReadResponse(**self._state.heading, id=id, index=index))
        return self._advance()

    def close(self) -> None:
        """This node leads no longer."""
        for read in [*self._early, *(read for read, _ in self._current + self._next)]:
            if read[1] is None:  # others see the new term, or give up by their own clock
                self._refuse(read, "this node no longer leads")

    def _advance(self) -> bool:
        if self._current or not self._next:
            return False
        self._current, self._next = self._next, []
        self.round += 1
        return True

    def _refuse(self, read: _Read, reason: str) -> None:
        id, source = read
        if source is None:
            self._state.refuse(id, reason)
        else:
            self._state.send(source, ReadResponse(**self._state.heading, id=id, refused=reason))


class ForwardedReads:
    """The reads that this node has asked its leader about."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._asked: dict[int, float] = {}  # id -> when it is given up; oldest first

    @property
    def deadline(self) -> float:
        return next(iter(self._asked.values()), float("inf"))

    def ask(self, id: int) -> None:
        state = self._state
        if state.leader is None:
            state.refuse(id, "no leader is known")
        elif len(self._asked) >= READS_LIMIT:
            state.refuse(id, f"{READS_LIMIT} reads wait already")
        else:
            self._asked[id] = state.now + state.timing.election_max_s
            state.send(state.leader, ReadRequest(**state.heading, id=id))

    def answered(self, response: ReadResponse) -> None:
        if self._asked.pop(response.id, None) is None:
            return
        if response.refused:
            self._state.refuse(response.id, response.refused)
        else:
            self._state.emit(ReadReady(response.id, response.index))

    def tick(self) -> None:
        while self.deadline <= self._state.now:
            self._give_up(next(iter(self._asked)), "the leader did not answer in time")

    def leader_changed(self) -> None:
        for id in list(self._asked):
            self._give_up(id, "the leader changed meanwhile")

    def _give_up(self, id: int, reason: str) -> None:
        del self._asked[id]
        self._state.refuse(id, reason)
