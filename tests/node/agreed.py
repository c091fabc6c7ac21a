"""A cluster of one mind: what is proposed is applied at once, and who is alive is what a test says."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

from kos_cluster import errors
from kos_cluster.core.driving import Kind, Work, encode
from kos_cluster.core.records import Member, MemberState, Versions
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.replicated.commands import Part, SubmitJob
from kos_cluster.core.replicated.jobs import Job
from kos_cluster.core.replicated.state import ClusterState

VERSIONS = Versions("0", 1, "3.11.0", "", "3")
BUNDLE = "ab" * 32


class Agreement:
    """Stands for `Consensus`. `undecided` proposals fail before one is decided again."""

    def __init__(self) -> None:
        self.state = ClusterState()
        self.leader = "a"
        self.term = 1
        self.undecided = 0
        self.proposed: list[commands.Command] = []
        self._moved = asyncio.Event()

    async def propose(self, command: commands.Command) -> replies.Reply:
        self.proposed.append(command)
        if self.undecided:
            self.undecided -= 1
            raise errors.UnreachableError("The cluster could not decide in time.")
        entry = commands.encode(commands.Proposal(time.time(), command))
        reply = self.state.apply(self.state.applied_index + 1, entry).reply
        self._moved.set()
        self._moved = asyncio.Event()
        if isinstance(reply, replies.Refusal):
            raise getattr(errors, reply.error)(reply.message, reply.hint)
        return reply

    async def read(self, timeout_s: float) -> ClusterState:
        return self.state

    async def moved(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._moved.wait(), timeout_s)
        except TimeoutError:
            return

    def of(self, kind: type) -> list[Any]:
        return [command for command in self.proposed if isinstance(command, kind)]

    async def submit(
        self, id_: str = "j", count: int = 2, kind: Kind = Kind.MAP, holders: tuple[str, ...] = ("a", "b")
    ) -> None:
        spec = encode(Work(kind, count, BUNDLE))
        await self.propose(SubmitJob(id_, "client-1", "ada", "work", spec, (Part(BUNDLE, holders),)))

    def job(self, id_: str = "j") -> Job:
        job = self.state.jobs.get(id_)
        assert job is not None
        return job


class View:
    """Stands for `Membership`."""

    def __init__(self, *names: str) -> None:
        self.known = {name: _member(name) for name in names}

    def members(self) -> list[Member]:
        return list(self.known.values())

    def member(self, id_: str) -> Member | None:
        return self.known.get(id_)

    def now(self, name: str, **changed: Any) -> None:
        """A member is different from now on."""
        self.known[name] = msgspec.structs.replace(self.known[name], **changed)

    def dead(self, name: str) -> None:
        self.now(name, state=MemberState.DEAD)


def _member(name: str) -> Member:
    return Member(name, f"node-{name}", "127.0.0.1", 1, 1, VERSIONS, 1, boot_id=f"machine-{name}")
