"""The agreement of three nodes in one process, over links and disks that fail when they are told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from kos_cluster.core import raft
from kos_cluster.core.raft import log as raftlog
from kos_cluster.core.replicated import commands, replies
from kos_cluster.errors import StateError, UnreachableError, UsageError
from kos_cluster.net import wire
from kos_cluster.net.controlplane import Proposed
from kos_cluster.node import consensus as module
from kos_cluster.node.consensus import Consensus
from kos_cluster.node.raftlog import RaftLog

NODES = ("a", "b", "c")
GROUP = "lab"
WITHIN_S = 20.0
TOGETHER = 40  # proposals, fewer than a session may have under way


class Group:
    """Three nodes. `cut` has the nodes that no message reaches or leaves; `lost` the kinds that get lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cut: set[str] = set()
        self.lost: tuple[type, ...] = ()
        self.nodes: dict[str, Consensus] = {}
        self.changes: dict[str, list[replies.Change]] = {name: [] for name in NODES}

    def start(self, name: str) -> None:
        node = Consensus(
            name,
            GROUP,
            lambda: self.log(name),
            lambda to, message: self.carry(name, to, message),
            self.changes[name].extend,
            lambda: None,
            lambda: {name} if name in self.cut else set(NODES) - self.cut,
        )
        self.nodes[name] = node
        node.start()

    def log(self, name: str) -> RaftLog:
        path = self.folder / f"{name}.sqlite"
        return RaftLog(path, GROUP) if path.exists() else RaftLog.create(path, GROUP, raft.founding(NODES))

    def carry(self, sender: str, to: str, message: wire.Message) -> None:
        if not isinstance(message, self.lost):
            asyncio.get_running_loop().call_soon(self.arrive, sender, to, message)

    def arrive(self, sender: str, to: str, message: wire.Message) -> None:
        if not self.cut & {sender, to} and to in self.nodes:
            self.nodes[to].said(sender, message)

    async def leader(self, among: tuple[str, ...] = NODES) -> Consensus:
        return await until(lambda: next((self.nodes[n] for n in among if self.nodes[n].leads), None))

    async def follower(self) -> Consensus:
        leading = await self.leader()
        return next(node for node in self.nodes.values() if node is not leading)

    def name_of(self, node: Consensus) -> str:
        return next(name for name, known in self.nodes.items() if known is node)


async def until(condition: Callable[[], object]) -> object:
    async with asyncio.timeout(WITHIN_S):
        while not (value := condition()):
            await asyncio.sleep(0.005)
        return value


@asynccontextmanager
async def group(folder: Path) -> AsyncIterator[Group]:
    made = Group(folder)
    try:
        for name in NODES:
            made.start(name)
        yield made
    finally:
        for node in made.nodes.values():
            await node.close()


def setting(value: str) -> commands.SetSetting:
    return commands.SetSetting("colour", value)


def test_what_any_node_proposes_is_on_every_node(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            follower = await nodes.follower()
            assert isinstance(await follower.propose(setting("red")), replies.Done)
            await until(lambda: all(n.state.settings.get("colour") == "red" for n in nodes.nodes.values()))

    asyncio.run(scene())


def test_a_refusal_is_raised_as_what_it_is_wherever_it_was_proposed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            for node in (await nodes.leader(), await nodes.follower()):
                with pytest.raises(UsageError, match="cannot be the name of a setting"):
                    await node.propose(commands.SetSetting("", "x"))

    asyncio.run(scene())


def test_the_coordinators_death_delays_a_proposal_and_no_more(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading, follower = await nodes.leader(), await nodes.follower()
            await follower.propose(setting("red"))
            nodes.cut.add(nodes.name_of(leading))
            await follower.propose(setting("blue"))
            assert follower.state.settings.get("colour") == "blue"
            with pytest.raises(UnreachableError, match="2 of its 3 voters must agree, and only 1 can be reached"):
                await leading.propose(setting("green"), timeout_s=3.0)
            nodes.cut.clear()
            await until(lambda: leading.state.settings.get("colour") == "blue" and not leading.leads)

    asyncio.run(scene())


def test_a_proposal_whose_reply_got_lost_is_applied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.2)

    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading, follower = await nodes.leader(), await nodes.follower()
            await follower.propose(setting("red"))  # opens its session
            nodes.lost = (Proposed,)
            waiting = asyncio.ensure_future(follower.propose(commands.SwapSetting("colour", "red", "blue")))
            await until(lambda: leading.state.settings.get("colour") == "blue")
            await asyncio.sleep(3 * module.AGAIN_S)  # it is sent again meanwhile
            nodes.lost = ()
            # A second application would be refused: the setting is not red any more.
            assert isinstance(await waiting, replies.Done)

    asyncio.run(scene())


def test_proposals_that_are_made_together_share_the_disks_syncs(tmp_path: Path) -> None:
    """In WAL with synchronous=FULL each commit is a sync. There are far fewer of them than entries, on each node."""

    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading = await nodes.leader()
            await leading.propose(setting("red"))  # opens its session
            statements: dict[str, list[str]] = {name: [] for name in NODES}
            for name, node in nodes.nodes.items():
                assert node._log is not None
                node._log._db.set_trace_callback(statements[name].append)
            await asyncio.gather(*(leading.propose(setting(str(number))) for number in range(TOGETHER)))
            await until(lambda: {node._index for node in nodes.nodes.values()} == {leading._index})
            for name, traced in statements.items():
                entries = sum(statement.startswith("INSERT INTO entries") for statement in traced)
                assert entries >= TOGETHER, name
                assert 1 <= traced.count("COMMIT") <= entries / 4, (name, traced.count("COMMIT"))

    asyncio.run(scene())


def test_a_read_does_not_wait_where_the_last_entry_is_no_command(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            follower = await nodes.follower()  # the leader's first entry of its term is none
            async with asyncio.timeout(WITHIN_S / 2):
                await follower.read()

    asyncio.run(scene())


def test_a_read_sees_what_was_decided_before_it(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading, follower = await nodes.leader(), await nodes.follower()
            for number in range(20):
                await leading.propose(setting(str(number)))
                assert (await follower.read()).settings.get("colour") == str(number)
            nodes.cut.update(NODES)
            with pytest.raises(UnreachableError):
                await follower.read(timeout_s=0.5)

    asyncio.run(scene())


def test_a_node_that_starts_again_has_what_it_had(tmp_path: Path) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            for number in range(30):
                await (await nodes.follower()).propose(setting(str(number)))
            name = nodes.name_of(await nodes.leader())
            await nodes.nodes[name].close()
            nodes.start(name)
            await until(lambda: nodes.nodes[name].state.settings.get("colour") == "29")

    asyncio.run(scene())


def test_a_snapshot_takes_the_place_of_a_long_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_ENTRIES", 20)
    monkeypatch.setattr(raftlog, "TAIL_ENTRIES", 5)

    async def scene() -> None:
        async with group(tmp_path) as nodes:
            behind = nodes.name_of(await nodes.follower())
            nodes.cut.add(behind)
            leading = await nodes.leader(tuple(n for n in NODES if n != behind))
            for number in range(100):
                await leading.propose(setting(str(number)))
            assert leading._raft is not None
            await until(lambda: leading._raft.first_index > 60)
            nodes.cut.clear()
            await until(lambda: nodes.nodes[behind].state.settings.get("colour") == "99")

    asyncio.run(scene())


def test_a_disk_that_fails_makes_a_node_step_down_say_so_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_DISK_S", 0.2)
    full: set[Path] = set()
    write = RaftLog.write

    def failing(self: RaftLog, batch: raft.Persist) -> None:
        if self._path in full:
            raise StateError("The log could not be written (disk full).", "Make room on that disk.")
        write(self, batch)

    monkeypatch.setattr(RaftLog, "write", failing)

    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading, follower = await nodes.leader(), await nodes.follower()
            await follower.propose(setting("red"))
            full.add(tmp_path / f"{nodes.name_of(leading)}.sqlite")
            await follower.propose(setting("blue"))
            await until(lambda: leading.trouble)
            assert "disk full" in leading.trouble
            assert not leading.leads
            async with asyncio.timeout(module.PROPOSE_TIMEOUT_S / 2):  # it does not wait for its disk
                with pytest.raises(UnreachableError, match="disk full"):
                    await leading.propose(setting("green"))
                with pytest.raises(UnreachableError, match="disk full"):
                    await leading.read()
            full.clear()
            await until(lambda: not leading.trouble and leading.state.settings.get("colour") == "blue")
            await leading.propose(setting("yellow"))

    asyncio.run(scene())


def test_an_entry_of_a_newer_version_stops_a_node_which_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading = await nodes.leader()
            newer = bytes((commands.FORMAT + 1,)) + b"of tomorrow"
            leading._feed(raft.Propose(10**9, newer))
            # The last one may never learn that it was committed, as nobody is left to tell it.
            await until(lambda: sum(bool(node.trouble) for node in nodes.nodes.values()) >= 2)
            assert any("Install the version of kos-cluster" in node.trouble for node in nodes.nodes.values())

    asyncio.run(scene())


AHEAD_S = 3600.0
TTL_S = 30.0


def set_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sets the wall clock that the nodes read."""
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: time.time() + AHEAD_S))


async def hold(node: Consensus) -> int:
    granted = await node.propose(commands.AcquireLock("door", "me", "me", TTL_S))
    assert isinstance(granted, replies.LockGranted)
    return granted.token


async def is_held(node: Consensus, token: int) -> bool:
    renewed = await node.propose(commands.RenewLock("door", "me", token))
    return isinstance(renewed, replies.LockGranted)


def test_a_lease_outlives_a_coordinators_clock_that_is_set_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with group(tmp_path) as nodes:
            leading = await nodes.leader()
            token = await hold(leading)
            set_forward(monkeypatch)
            await leading.propose(commands.Tick())
            assert await is_held(leading, token)
            assert leading.state.clock_s < time.time() + AHEAD_S / 2

    asyncio.run(scene())


def test_a_lease_outlives_a_restart_of_all_with_clocks_that_are_set_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever coordinates then is asked before it knows which entries of its log are committed."""
    load = RaftLog.load

    def forgetful(self: RaftLog) -> raft.Restored:
        restored = load(self)
        return msgspec.structs.replace(restored, hard_state=msgspec.structs.replace(restored.hard_state, commit=0))

    monkeypatch.setattr(RaftLog, "load", forgetful)

    async def scene() -> None:
        async with group(tmp_path) as nodes:
            token = await hold(await nodes.leader())
            for node in nodes.nodes.values():
                await node.close()
            set_forward(monkeypatch)
            for name in NODES:
                nodes.start(name)
            asked = [asyncio.ensure_future(node.propose(commands.Tick())) for node in nodes.nodes.values()]
            await asyncio.gather(*asked)
            assert await is_held(nodes.nodes["a"], token)

    asyncio.run(scene())
