"""A node that comes to coordinate carries on the reservations that it finds agreed, wherever the last one was lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec

from kos_cluster.core import twophase
from kos_cluster.core.gang.scheduler import Reserve
from kos_cluster.core.gang.slots import SlotsGranted, SlotsReleased, SlotsWanted, SlotsWithdrawn
from kos_cluster.core.records import Load, MemberState, Needs
from kos_cluster.core.replicated import commands, replies
from kos_cluster.core.roles import Role
from kos_cluster.net.gangs import GangWanted, GangWithdrawn
from kos_cluster.net.identity import Peer
from kos_cluster.node.gangs import Gangs
from tests.node.agreed import Agreement, View

TTL_S = 600.0
ADA = Peer("lab", "ada", "ada", Role.CLIENT, 1, b"", 0.0)


class Consensus(Agreement):
    """Which node a leads, or does not."""

    leads = False

    async def propose(self, command: commands.Command, timeout_s: float = TTL_S) -> replies.Reply:
        return await super().propose(command)

    @property
    def clock_s(self) -> float:
        return time.time()


class Scene:
    """Node a of a cluster of a and b, whose coordinator is lost. It led a transaction of both, and said nothing yet."""

    def __init__(self) -> None:
        self.agreed = Consensus()
        self.agreed.leader = "lost"
        self.told: list[twophase.ToParticipant] = []  # to b
        self.orders: list[SlotsWanted | SlotsReleased | SlotsWithdrawn] = []  # to the queue here
        self.gangs = Gangs("a", lambda: ("a", Load()), self.orders.append)
        self.members = View("a", "b")
        membership = SimpleNamespace(members=self.members.members, alive=lambda: ["b"], loads=dict)
        peers = SimpleNamespace(send=lambda to, message: self.told.append(message.message))
        self.control: Any = SimpleNamespace(consensus=self.agreed, membership=membership, peers=peers)
        self.txn = 0

    async def begin(self) -> None:
        payload = msgspec.msgpack.encode(Reserve("ada/g1", 1, Needs(), 1.0, TTL_S))
        reply = await self.agreed.propose(commands.BeginTransaction({"a": payload, "b": payload}, TTL_S))
        assert isinstance(reply, replies.TransactionState)
        self.txn = reply.txn

    def lead(self) -> None:
        self.agreed.leader, self.agreed.term, self.agreed.leads = "a", 2, True
        self.gangs.look()

    @property
    def transaction(self) -> Any:
        return self.agreed.state.transactions.get(self.txn)


def played(scene: Callable[[Scene], Awaitable[None]]) -> None:
    """Play a scene in which a transaction was begun, while the node lets time pass."""

    async def play() -> None:
        stage = Scene()
        await stage.begin()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            running = group.create_task(stage.gangs.run(stage.control))
            await scene(stage)
            running.cancel()

    asyncio.run(play())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_what_is_open_is_asked_for_again_and_committed_when_all_agree() -> None:
    async def scene(on: Scene) -> None:
        on.lead()
        await until(lambda: any(isinstance(told, twophase.Prepare) for told in on.told))
        await until(lambda: on.orders)  # and of this node, its own participant
        assert on.orders[0] == SlotsWanted(on.txn, "ada/g1", 1, 1.0, TTL_S)
        on.gangs.answered(SlotsGranted(on.txn))
        assert not on.transaction.committed
        on.gangs.said("b", twophase.Vote(on.txn, True))
        await until(lambda: on.transaction is None or on.transaction.committed)
        await until(lambda: twophase.Decided(on.txn, True) in on.told)
        on.gangs.said("b", twophase.Acked(on.txn))
        await until(lambda: on.transaction is None)  # all have it
        assert not any(isinstance(order, SlotsReleased) for order in on.orders)

    played(scene)


def test_what_one_refuses_is_aborted_and_slots_that_were_held_are_given_back() -> None:
    async def scene(on: Scene) -> None:
        on.lead()
        await until(lambda: on.orders)
        on.gangs.answered(SlotsGranted(on.txn))
        on.gangs.said("b", twophase.Vote(on.txn, False))
        await until(lambda: on.transaction is None)
        await until(lambda: SlotsReleased(on.txn) in on.orders)
        assert twophase.Decided(on.txn, True) not in on.told

    played(scene)


def test_what_a_client_wants_that_ends_is_aborted_and_its_slots_are_given_back() -> None:
    async def scene(on: Scene) -> None:
        on.lead()
        await until(lambda: on.orders)
        on.gangs.answered(SlotsGranted(on.txn))
        on.gangs.said("b", twophase.Vote(on.txn, False))
        await until(lambda: SlotsReleased(on.txn) in on.orders)
        asked = asyncio.create_task(on.gangs.answer(ADA, GangWanted("g2", 1, Needs(), 0.3, "instance")))
        await until(lambda: isinstance(on.orders[-1], SlotsWanted))
        wanted = on.orders[-1]
        assert isinstance(wanted, SlotsWanted) and (wanted.gang, wanted.owner) == ("ada/g2", ("ada", "instance"))
        on.gangs.answered(SlotsGranted(wanted.txn))
        on.gangs.owner_ended(("ada", "another"))
        on.gangs.owner_ended(("ada", "instance"))
        await until(lambda: SlotsReleased(wanted.txn) in on.orders)
        assert not (await asked).nodes

    played(scene)


def test_a_gang_that_is_withdrawn_is_let_go_by_the_node_that_is_told() -> None:
    async def scene(on: Scene) -> None:
        assert await on.gangs.answer(ADA, GangWithdrawn("g1"))
        assert on.orders == [SlotsWithdrawn("ada/g1")]

    played(scene)


def test_a_gang_waits_for_a_node_that_is_in_doubt_and_is_refused_without_it() -> None:
    async def scene(on: Scene) -> None:
        on.lead()
        await until(lambda: on.orders)
        for number, state in enumerate((MemberState.SUSPECT, MemberState.DEAD)):
            on.members.now("b", state=state)
            standing = await on.gangs.answer(ADA, GangWanted(f"wide{number}", 2, Needs(), 0.1, "instance"))
            assert not standing.nodes
            assert bool(standing.refused) == (state is MemberState.DEAD), standing
            assert standing.refused or "node-b: 0" in standing.waits

    played(scene)


def test_what_was_committed_is_told_until_all_have_it() -> None:
    async def scene(on: Scene) -> None:
        await on.agreed.propose(commands.DecideTransaction(on.txn, True))
        on.lead()
        await until(lambda: on.told.count(twophase.Decided(on.txn, True)) > 1)
        on.gangs.said("b", twophase.Acked(on.txn))
        await until(lambda: on.transaction is None)

    played(scene)
