"""Agreement as the daemon uses it: propose a command and get its reply, read the state, know who coordinates.

Theory of operation. One Raft machine, its `Ordering` and its log on disk, and the state that committed commands make.
Machine and state live in the daemon's loop; the disk has a thread of its own, with one write in flight. Any node may
propose: what it proposes goes to the coordinator (the Raft leader), and is sent again, under the session and serial
that make a repetition harmless, until a reply comes or its time is over. The coordinator stamps the time on it.

Rules. Nothing is told to anyone before the log holds it; that order is `core.ordering`'s. When the disk fails the node
steps down and takes no more part, says why in `trouble`, and is built anew from the disk when that takes writes again.
An error in here is never taken for a decision.

    state      event                         next
    serving    the disk fails                stopped
    serving    an entry is not known here    stopped, until a newer version is installed
    stopped    `RETRY_DISK_S` later, and the disk takes writes    serving
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from kos_cluster.core import raft
from kos_cluster.core.ordering import Action, Ordering, Write
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.replicated.stamp import Stamp
from kos_cluster.core.replicated.state import ClusterState
from kos_cluster.core.voters import undecided_sentence
from kos_cluster.errors import KosError, StateError, UnreachableError
from kos_cluster.net import controlplane, wire
from kos_cluster.net.outcome import from_wire
from kos_cluster.node.alarm import Alarm
from kos_cluster.node.forwarding import Forwarding
from kos_cluster.node.raftlog import RaftLog
from kos_cluster.node.reading import REFUSED_PAUSE_S, Reads
from kos_cluster.node.session import Session

log = logging.getLogger(__name__)

PROPOSE_TIMEOUT_S = 10.0  # for a reply, over all attempts
AGAIN_S = 1.0  # after which a proposal that went to another node is sent again
PROPOSALS_LIMIT = 4096  # of this node that wait for a reply
COMPACT_ENTRIES = 4096  # applied since the last snapshot, when the next is taken
COMPACT_BYTES = 8 << 20  # or of so many bytes
RETRY_DISK_S = 5.0


@dataclass(slots=True)
class _Placed:
    """A proposal in the coordinator's own log, until its index is applied."""

    term: int
    answer: asyncio.Future[replies.Reply | None]  # None: another entry took its place, so it was not applied


class Consensus:
    """One node's part in the agreement. Used in the daemon's loop."""

    def __init__(
        self,
        node: str,
        group: str,
        open_log: Callable[[], RaftLog],
        send: Callable[[str, wire.Message], object],
        changed: Callable[[tuple[replies.Change, ...]], None],
        led: Callable[[], None],
        reachable: Callable[[], Collection[str]],
    ) -> None:
        self.state = ClusterState()
        self.trouble = ""  # why this node takes no part, if it does not
        self._node = node
        self._group = group
        self._open_log = open_log
        self._log: RaftLog | None = None
        self._send = send
        self._tell_changes = changed
        self._tell_led = led
        self._reachable = reachable
        self._loop = asyncio.get_running_loop()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="raft-disk")
        self._ordering = Ordering()
        self._raft: raft.Raft | None = None
        self._alarm = Alarm(self._tick)
        self._next = 1
        self._placing: dict[int, _Placed | raft.Refused] = {}  # the verdict on what is being placed
        self._reads = Reads(
            self._number, self._feed, lambda: self._index, self.moved, lambda: bool(self.trouble), PROPOSE_TIMEOUT_S
        )
        self._placed: dict[int, _Placed] = {}  # by index
        self._forwarding = Forwarding(send, self._offer_for_another)
        self._moved = asyncio.Event()  # set and made anew at each change of role, leader or applied index
        self._session = Session()
        self._index = 0  # of the last entry applied; not all are commands, so `state` may be behind
        self._snapshot_index = self._applied_bytes = 0  # the last snapshot's, and what was applied since
        self._stamp = Stamp()

    # ---- life

    def start(self) -> None:
        """Take part from what the disk holds. Raises StateError when that is damaged."""
        self._log = self._open_log()
        rng = random.Random(secrets.randbits(64))
        self._raft = raft.Raft(self._node, self._group, self._log.load(), rng, self._loop.time())
        self._perform(self._raft.start())
        self._set_alarm()

    async def close(self) -> None:
        """Stop; what is being written is written to its end."""
        self._alarm.cancel()
        self._raft = None
        await asyncio.to_thread(self._disk.shutdown)
        if self._log is not None:
            self._log.close()

    # ---- what is known

    @property
    def clock_s(self) -> float:
        """The replicated clock as it is now (Unix seconds): it goes on between two commands."""
        return self._stamp.now_s(time.time(), self._loop.time())

    @property
    def leader(self) -> str | None:
        """The id of the node that coordinates, when it is known here."""
        return self._raft.leader if self._raft is not None else None

    @property
    def leads(self) -> bool:
        return self._raft is not None and self._raft.role is raft.Role.LEADER

    @property
    def term(self) -> int:
        return self._raft.term if self._raft is not None else 0

    @property
    def membership(self) -> raft.Membership:
        return self._raft.membership if self._raft is not None else raft.Membership()

    def followers(self) -> tuple[raft.Follower, ...]:
        """What this node knows of the others while it leads."""
        return self._raft.followers() if self._raft is not None else ()

    async def moved(self, timeout_s: float) -> None:
        """Wait until role, leader or applied index change, or the time is over."""
        try:
            await asyncio.wait_for(self._moved.wait(), timeout_s)
        except TimeoutError:
            return

    # ---- proposing and reading

    async def propose(self, command: commands.Command, timeout_s: float = PROPOSE_TIMEOUT_S) -> replies.Reply:
        """Have a command applied, once. Raises what refuses it, or UnreachableError when nobody can decide in time.

        After UnreachableError it may still be applied later. A node that takes no part raises it at once.
        """
        commands.check_format(command, self.state.format)
        deadline = self._loop.time() + timeout_s
        async with self._session.room:
            await self._session_open(deadline)
            serial = self._session.begin()
            proposal = commands.Proposal(0.0, command, self._session.number, serial, self._session.answered_below)
            try:
                reply = await self._applied(proposal, deadline)
            finally:
                self._session.end(serial)
        if isinstance(reply, replies.Refusal):
            raise from_wire((reply.error, reply.message, reply.hint))
        return reply

    async def change(self, change: raft.Change) -> bool:
        """Change who votes, by one step, where this node leads. False when it lost its place and may or may not come.

        Raises StateError that says why it is refused.
        """
        placed = self._place(lambda id_: raft.ChangeConfig(id_, change))
        if isinstance(placed, raft.Refused):
            raise StateError(f"The change of voters was refused: {placed.reason}.", "See 'kos cluster status'.")
        return await placed.answer is not None

    def transfer(self, to: str) -> None:
        """Ask that another voter coordinate; it shows in `leader`."""
        self._feed(raft.Transfer(self._number(), to))

    async def read(self, timeout_s: float = PROPOSE_TIMEOUT_S) -> ClusterState:
        """The state with everything in it that was decided before this call. Raises UnreachableError."""
        if not await self._reads.up_to_date(timeout_s):
            raise self._undecided()
        return self.state

    async def _session_open(self, deadline: float) -> None:
        """Have a session; a new one after so long a silence that the former one may have ended."""
        session = self._session
        async with session.opening:
            if not session.is_good(self._loop.time()):
                reply = await self._applied(commands.Proposal(0.0, commands.OpenSession(self._node)), deadline)
                if not isinstance(reply, replies.SessionOpened):
                    raise StateError("The cluster did not open a session for this node.", "Try again.")
                session.renew(reply.session)
            session.use(self._loop.time())

    async def _applied(self, proposal: commands.Proposal, deadline: float) -> replies.Reply:
        """Offer it to whoever leads until it is applied. Raises UnreachableError."""
        while not self.trouble and (left_s := deadline - self._loop.time()) > 0:
            if self.leads:
                reply = await self._offer(proposal, deadline)
            elif self.leader is not None:
                reply = await self._forward(self.leader, proposal, min(AGAIN_S, left_s))
            else:
                await self.moved(min(AGAIN_S, left_s))
                continue
            if reply is not None:
                return reply
            await asyncio.sleep(0.01)
        raise self._undecided()

    async def _offer(self, proposal: commands.Proposal, deadline: float) -> replies.Reply | None:
        """Put it into this node's own log; None when it must be offered again, perhaps elsewhere."""
        while not self._stamp.knows(self.term):  # just elected: it has not applied all that was decided before
            if not self.leads or self._loop.time() >= deadline:
                return None
            await self.moved(deadline - self._loop.time())
        now_s = self._stamp.now_s(time.time(), self._loop.time())
        entry = commands.encode(msgspec.structs.replace(proposal, now_s=now_s), self.state.format)
        placed = self._place(lambda id_: raft.Propose(id_, entry))
        if isinstance(placed, raft.Refused):
            await self.moved(REFUSED_PAUSE_S)
            return None
        try:
            return await asyncio.wait_for(placed.answer, max(0.0, deadline - self._loop.time()))
        except TimeoutError:
            return None

    def _place(self, event: Callable[[int], raft.Event]) -> _Placed | raft.Refused:
        """Give the machine what it accepts or refuses at once."""
        id_ = self._number()
        self._placing[id_] = raft.Refused(id_, "this node takes no part in the agreement", None)
        self._feed(event(id_))
        return self._placing.pop(id_)

    async def _forward(self, leader: str, proposal: commands.Proposal, timeout_s: float) -> replies.Reply | None:
        """Have another node offer it; None when it must be offered again, perhaps elsewhere."""
        proposed = await self._forwarding.ask(leader, proposal, timeout_s)
        if proposed is None:
            return None
        if proposed.reply is None:
            await self.moved(REFUSED_PAUSE_S)
        return proposed.reply

    async def _offer_for_another(self, proposal: commands.Proposal) -> replies.Reply | None:
        if not self.leads or len(self._placed) >= PROPOSALS_LIMIT:
            return None
        try:
            return await self._offer(proposal, self._loop.time() + PROPOSE_TIMEOUT_S)
        except KosError as error:
            return replies.Refusal.of(error)

    def _undecided(self) -> UnreachableError:
        if self.trouble:
            return UnreachableError(self.trouble, "Mend that; 'kos doctor' looks at it.")
        voters = self.membership.voters
        reachable = len({self._node, *self._reachable()} & set(voters))
        return UnreachableError(
            undecided_sentence(len(voters), reachable),
            "Type 'kos cluster status' to see who is alive, then try again.",
        )

    # ---- from other nodes

    def said(self, sender: str, message: wire.Message) -> None:
        """Take in a message of the agreement from an authenticated node."""
        match message:
            case controlplane.Consensus(inner):
                self._feed(raft.Received(sender, inner))
            case controlplane.Propose() | controlplane.Proposed():
                self._forwarding.said(sender, message)

    # ---- the machine

    def _number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number

    def _feed(self, event: raft.Event) -> None:
        if self._raft is not None:
            self._perform(self._raft.handle(event, self._loop.time()))
            self._set_alarm()

    def _tick(self) -> None:
        if self._raft is not None:
            self._perform(self._raft.tick(self._loop.time()))
            self._set_alarm()

    def _set_alarm(self) -> None:
        self._alarm.set(self._raft.deadline if self._raft is not None else float("inf"))

    def _perform(self, effects: Sequence[raft.Effect]) -> None:
        self._act(self._ordering.take(effects))

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case raft.Send(to, message):
                    self._send(to, controlplane.Consensus(message))
                case Write(batch):
                    self._loop.create_task(self._write(batch), name="raft-write")
                case raft.Apply(entries):
                    self._apply(entries)
                case raft.Accepted(id_, index, term):
                    self._lose(index)
                    self._placing[id_] = self._placed[index] = _Placed(term, self._loop.create_future())
                case raft.Refused(id_):
                    if id_ in self._placing:
                        self._placing[id_] = action
                    self._reads.answered(action)
                case raft.ReadReady():
                    self._reads.answered(action)
                case raft.RestoreSnapshot(snapshot):
                    self._restore(snapshot)
                case raft.RoleChanged(role, term, leader):
                    log.info("Term %d: this node is %s, the coordinator is %s.", term, role, leader or "not known")
                    if role is not raft.Role.LEADER:
                        self._lose_all()
                    self._forwarding.give_up()
                    self._stir()
                    self._tell_led()
                case raft.MembershipChanged(membership):
                    log.info("Voters: %s.", ", ".join(membership.voters))
                    self._stir()
                    self._tell_led()
                case raft.Ignored(sender, why):
                    log.warning("A message of %s about the agreement was ignored: %s.", sender, why)
                case raft.Halt(reason):
                    self._stop(f"This node takes no part in the cluster's decisions: {reason}.")

    async def _write(self, batch: raft.Persist) -> None:
        serving = self._raft
        assert self._log is not None
        try:
            await self._loop.run_in_executor(self._disk, self._log.write, batch)
        except StateError as error:
            self._feed(raft.WriteFailed(error.message))
            self._stop(f"This node takes no part in the cluster's decisions, as its disk fails: {error.message}")
            self._loop.call_later(RETRY_DISK_S, self._try_again)
            return
        if self._raft is serving:
            self._act(self._ordering.written(batch.number))
            self._feed(raft.Persisted(batch.number))

    def _stop(self, trouble: str) -> None:
        if not self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble
        self._raft = None
        self._lose_all()
        self._stir()
        self._tell_led()

    def _try_again(self) -> None:
        """Build the machine anew from the disk, if that works again."""
        assert self._log is not None
        try:
            self._log.close()
            self._log = self._open_log()
            self._log.probe()
            self._log.close()
        except StateError as error:
            self.trouble = f"This node takes no part in the cluster's decisions, as its disk fails: {error.message}"
            self._loop.call_later(RETRY_DISK_S, self._try_again)
            return
        self.trouble = ""
        self.state, self._ordering = ClusterState(), Ordering()
        self._index = self._snapshot_index = self._applied_bytes = 0
        self.start()
        log.info("The disk takes writes again; this node takes part again.")

    # ---- the state

    def _apply(self, entries: Sequence[raft.Entry]) -> None:
        changes: list[replies.Change] = []
        for entry in entries:
            reply: replies.Reply = replies.Done()
            if entry.kind == raft.Kind.COMMAND:
                try:
                    outcome = self.state.apply(entry.index, entry.data)
                except commands.UnknownEntryError as error:
                    self._stop(f"This node takes no part in the cluster's decisions: {error.message} {error.hint}")
                    return
                reply = outcome.reply
                changes += outcome.changes
                self._applied_bytes += len(entry.data)
            self._index = entry.index
            placed = self._placed.pop(entry.index, None)
            if placed is not None:
                _settle(placed.answer, reply if placed.term == entry.term else None)
        self._stamp.applied(self.state.clock_s, entries[-1].term, self._loop.time())
        self._stir()
        if changes:
            self._tell_changes(tuple(changes))
        self._compact(entries[-1].index)

    def _restore(self, snapshot: raft.Snapshot) -> None:
        self.state = ClusterState.restore(snapshot.data) if snapshot.data else ClusterState()
        self._index = self._snapshot_index = snapshot.index
        self._applied_bytes = 0
        self._stamp.applied(self.state.clock_s, snapshot.term, self._loop.time())
        self._lose_all()
        self._stir()
        self._tell_changes(())

    def _compact(self, applied: int) -> None:
        """Take a snapshot when the log has grown, of just what is applied now; the machine gets it after this step."""
        if self._raft is None:
            return
        if applied - self._snapshot_index >= COMPACT_ENTRIES or self._applied_bytes >= COMPACT_BYTES:
            self._snapshot_index, self._applied_bytes = applied, 0
            self._loop.call_soon(self._feed, raft.Compact(applied, self.state.snapshot()))

    def _lose(self, index: int) -> None:
        """What stood at this place must be offered again; should it be applied all the same, its session knows it."""
        placed = self._placed.pop(index, None)
        if placed is not None:
            _settle(placed.answer, None)

    def _lose_all(self) -> None:
        for index in list(self._placed):
            self._lose(index)

    def _stir(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _settle(answer: asyncio.Future[Any] | None, value: object) -> None:
    if answer is not None and not answer.done():
        answer.set_result(value)
