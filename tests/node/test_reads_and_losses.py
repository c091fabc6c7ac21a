"""Reads that hold all that was decided, and proposals that outlive their coordinator: nodes in one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kos_cluster.core import raft
from kos_cluster.core.replicated import commands
from kos_cluster.net import wire
from kos_cluster.node import consensus
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.raftlog import RaftLog

GROUP = "cluster-a"
WAIT_S = 30.0


class Group:
    """Voters that hear each other, but for those in `lost`."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.lost: set[str] = set()
        self.views = dict.fromkeys(names, 0)
        for name in names:
            RaftLog.create(folder / name, GROUP, raft.founding(names)).close()
        self.nodes = {name: self._node(folder, name) for name in names}

    def _node(self, folder: Path, name: str) -> Consensus:
        loop = asyncio.get_running_loop()

        def send(to: str, message: wire.Message) -> None:
            if not {name, to} & self.lost:
                loop.call_soon(self.nodes[to].said, name, message)

        def led() -> None:
            self.views[name] += 1

        return Consensus(
            name,
            GROUP,
            lambda: RaftLog(folder / name, GROUP),
            send,
            lambda changes: None,
            led,
            lambda: set(self.nodes) - self.lost,
        )

    @property
    def leader(self) -> str | None:
        return next((name for name, node in self.nodes.items() if node.leads and name not in self.lost), None)


@asynccontextmanager
async def group(folder: Path, *names: str) -> AsyncIterator[Group]:
    made = Group(folder, names)
    for node in made.nodes.values():
        node.start()
    try:
        await until(lambda: all(node.leader == made.leader is not None for node in made.nodes.values()))
        yield made
    finally:
        for node in made.nodes.values():
            await node.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def setting(value: str) -> commands.Command:
    return commands.SetSetting("colour", value)


def test_a_read_answers_when_the_last_entry_is_no_command(tmp_path: Path) -> None:
    async def go() -> None:
        async with group(tmp_path, "a") as made, asyncio.timeout(WAIT_S / 5):  # the first entry of a term is none
            assert (await made.nodes["a"].read()).settings.get("colour") is None

    asyncio.run(go())


def test_reads_hold_what_was_decided_before_them_on_every_node(tmp_path: Path) -> None:
    async def go() -> None:
        async with group(tmp_path, "a", "b", "c") as made:
            for number in range(20):
                writer, reader = "abc"[number % 3], "abc"[number // 3 % 3]
                await made.nodes[writer].propose(setting(str(number)))
                states = await asyncio.gather(*(made.nodes[reader].read() for _ in range(8)))
                assert {state.settings.get("colour") for state in states} == {str(number)}

    asyncio.run(go())


def test_reads_of_one_turn_of_the_loop_share_a_read_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    made_by_raft = raft.ReadIndex

    def read_index(id_: int) -> raft.ReadIndex:
        asked.append(id_)
        return made_by_raft(id_)

    monkeypatch.setattr(consensus.raft, "ReadIndex", read_index)

    async def go() -> None:
        async with group(tmp_path, "a") as made:
            await asyncio.gather(*(made.nodes["a"].read() for _ in range(50)))
            assert len(asked) == 1
            await made.nodes["a"].read()
            assert len(asked) == 2

    asyncio.run(go())


def test_a_reader_that_gives_up_does_not_end_the_read_of_the_others(tmp_path: Path) -> None:
    async def go() -> None:
        async with group(tmp_path, "a") as made:
            first, second = (asyncio.ensure_future(made.nodes["a"].read()) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            assert (await second).settings.get("colour") is None

    asyncio.run(go())


def test_what_was_forwarded_to_a_coordinator_that_is_lost_goes_to_the_next_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consensus, "AGAIN_S", 60.0)  # the time after which it would be sent again anyway

    async def go() -> None:
        async with group(tmp_path, "a", "b", "c") as made:
            await asyncio.gather(*(node.propose(setting("red")) for node in made.nodes.values()))  # sessions
            lost = made.leader
            assert lost is not None
            made.lost.add(lost)
            staying = [node for name, node in made.nodes.items() if name != lost]
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*(node.propose(setting("green"), timeout_s=WAIT_S) for node in staying))
            assert staying[0].state.settings.get("colour") == "green"

    asyncio.run(go())


def test_a_change_of_the_voters_is_told(tmp_path: Path) -> None:
    async def go() -> None:
        async with group(tmp_path, "a", "b", "c") as made:
            leader = made.leader
            assert leader is not None
            await made.nodes[leader].read()  # it has committed an entry of its term
            before = dict(made.views)
            other = next(name for name in made.nodes if name != leader)
            assert await made.nodes[leader].change(raft.Demote(other))
            await until(lambda: all(made.views[name] > before[name] for name in made.nodes))

    asyncio.run(go())


def test_a_node_that_takes_no_part_refuses_at_once(tmp_path: Path) -> None:
    async def go() -> None:
        async with group(tmp_path, "a") as made:
            node = made.nodes["a"]
            await node.propose(setting("red"))
            node._stop("its disk fails")
            placed = node._place(lambda id_: raft.Propose(id_, b""))
            assert isinstance(placed, raft.Refused)
            assert not node._placing

    asyncio.run(go())
