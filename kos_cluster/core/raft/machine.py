"""The machine of one node: takes an event, lets the part that is concerned act, and returns the effects.

See the package for the theory of operation; the parts have the tables.
"""

from __future__ import annotations

from random import Random

from kos_cluster.core.raft.checks import FROM_LEADER, why_impossible
from kos_cluster.core.raft.elections import Elections
from kos_cluster.core.raft.events import (
    ChangeConfig,
    Compact,
    Effect,
    Event,
    Persisted,
    Propose,
    ReadIndex,
    Received,
    Transfer,
    WriteFailed,
)
from kos_cluster.core.raft.following import Following
from kos_cluster.core.raft.leadership import Leadership
from kos_cluster.core.raft.messages import (
    Append,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    Message,
    ReadRequest,
    ReadResponse,
    SnapshotChunk,
    SnapshotResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from kos_cluster.core.raft.reads import ForwardedReads
from kos_cluster.core.raft.replication import Follower
from kos_cluster.core.raft.state import State, is_known, why_strange
from kos_cluster.core.raft.values import Membership, Restored, Role, Timing

DEFAULT_TIMING = Timing()


class Raft:
    """One node of one group. `start` comes first. `now` is in seconds of any clock; it never counts as going back.

    Raises StateError when `restored` cannot be the state of a node."""

    def __init__(
        self,
        node: str,
        group: str,
        restored: Restored,
        random: Random,
        now: float,
        timing: Timing = DEFAULT_TIMING,
    ) -> None:
        self._state = State(node, group, restored, random, now, timing)
        self._elections = Elections(self._state)
        self._following = Following(self._state)
        self._forwarded = ForwardedReads(self._state)
        self._office: Leadership | None = None
        self._strange = next((entry for entry in restored.entries if not is_known(entry)), None)

    def start(self) -> list[Effect]:
        """Restore and apply what the disk holds as committed. Once, before anything else."""
        effects = self._state.flush()
        if self._strange is not None and not self._state.halted:
            self._state.halt(why_strange(self._strange))
            effects += self._state.flush()
        return effects

    def handle(self, event: Event, now: float) -> list[Effect]:
        state = self._state
        state.now = max(state.now, now)
        before = (state.term, state.leader)
        if state.halted:
            self._decline(event)
        else:
            self._dispatch(event)
        return self._close_step(before)

    def tick(self, now: float) -> list[Effect]:
        state = self._state
        state.now = max(state.now, now)
        before = (state.term, state.leader)
        if not state.halted:
            self._forwarded.tick()
            if self._office:
                self._office.tick()
            else:
                self._elections.tick()
        return self._close_step(before)

    @property
    def deadline(self) -> float:
        """When the next `tick` can matter."""
        if self._state.halted:
            return float("inf")
        own = self._office.deadline if self._office else self._state.election_due_s
        return min(own, self._forwarded.deadline)

    # ---- what others may ask

    @property
    def node(self) -> str:
        return self._state.node

    @property
    def role(self) -> Role:
        return self._state.role

    @property
    def term(self) -> int:
        return self._state.term

    @property
    def voted_for(self) -> str | None:
        return self._state.voted_for

    @property
    def leader(self) -> str | None:
        """The leader of this term, when it is known."""
        return self._state.leader

    @property
    def membership(self) -> Membership:
        return self._state.membership

    @property
    def commit(self) -> int:
        return self._state.commit

    @property
    def applied(self) -> int:
        return self._state.applied

    @property
    def first_index(self) -> int:
        return self._state.log.first_index

    @property
    def last_index(self) -> int:
        return self._state.log.last_index

    @property
    def halted(self) -> str:
        """Why the machine does nothing any more, or ""."""
        return self._state.halted

    def followers(self) -> tuple[Follower, ...]:
        """What a leader knows of the other members; nothing on another node."""
        return self._office.replication.followers() if self._office else ()

    # ---- events

    def _dispatch(self, event: Event) -> None:
        state, office = self._state, self._office
        match event:
            case Received(sender, message):
                self._receive(sender, message)
            case Persisted(write):
                self._persisted(write)
            case Propose() if office:
                office.propose(event)
            case ChangeConfig() if office:
                office.change(event)
            case Transfer() if office:
                office.transfer(event)
            case Propose(id=id) | ChangeConfig(id=id) | Transfer(id=id):
                state.refuse(id, "this node is not the leader")
            case ReadIndex(id) if office:
                office.read(id, None)
            case ReadIndex(id):
                self._forwarded.ask(id)
            case Compact(index, data):
                reason = state.compact(index, data)
                if reason:
                    state.ignore(state.node, reason)
            case WriteFailed(reason):
                if office:
                    office.resign()
                state.halt(reason)

    def _decline(self, event: Event) -> None:
        match event:
            case Propose(id=id) | ChangeConfig(id=id) | Transfer(id=id) | ReadIndex(id=id):
                self._state.refuse(id, f"this node has halted: {self._state.halted}")
            case _:
                pass

    def _persisted(self, write: int) -> None:
        self._state.persisted(write)
        self._elections.persisted()
        if self._office:
            self._office.persisted()

    def _close_step(self, before: tuple[int, str | None]) -> list[Effect]:
        state = self._state
        if self._office and state.role is not Role.LEADER:
            self._office.close()
            self._office = None
        if (state.term, state.leader) != before:
            self._forwarded.leader_changed()
        if state.role is Role.LEADER and self._office is None:
            self._office = Leadership(state)
        return state.flush()

    # ---- messages

    def _receive(self, sender: str, message: Message) -> None:
        state = self._state
        reason = why_impossible(state, sender, message)
        if reason:
            state.ignore(sender, reason)
        elif isinstance(message, VoteRequest):
            self._elections.asked(sender, message)
        elif isinstance(message, VoteResponse):
            self._elections.answered(sender, message)
        elif message.term < state.term:
            self._stale(sender, message)
        elif isinstance(message, FROM_LEADER):
            self._hear_leader(sender, message)
        else:
            if message.term > state.term:
                state.follow(message.term, None)
            self._answer(sender, message)

    def _stale(self, sender: str, message: Message) -> None:
        """A leader of an older term is told of the newer one, and steps down; other late messages mean nothing."""
        if isinstance(message, FROM_LEADER):
            self._state.send(sender, HeartbeatResponse(**self._state.heading))

    def _hear_leader(self, leader: str, message: Message) -> None:
        state = self._state
        state.follow(message.term, leader)
        state.heard_leader_s = state.now
        state.restart_timer()
        match message:
            case Append():
                self._following.append(leader, message)
            case Heartbeat():
                self._following.heartbeat(leader, message)
            case SnapshotChunk():
                self._following.snapshot(leader, message)
            case TimeoutNow():
                self._elections.told_to_stand(leader, message)

    def _answer(self, sender: str, message: Message) -> None:
        office = self._office if self._state.role is Role.LEADER else None
        match message:
            case ReadRequest(id=id):
                self._asked_to_read(sender, id)
            case ReadResponse():
                if sender == self._state.leader:
                    self._forwarded.answered(message)
            case AppendResponse() if office and sender in office.replication.peers:
                office.appended(sender, message)
            case HeartbeatResponse() if office and sender in office.replication.peers:
                office.beaten(sender, message)
            case SnapshotResponse() if office and sender in office.replication.peers:
                office.replication.received_part(sender, message)
            case _:
                pass

    def _asked_to_read(self, sender: str, id: int) -> None:
        if self._office and self._state.role is Role.LEADER:
            self._office.read(id, sender)
        else:
            refusal = ReadResponse(**self._state.heading, id=id, refused="the asked node is not the leader")
            self._state.send(sender, refusal)
