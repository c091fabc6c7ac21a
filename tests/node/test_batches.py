"""The batches of a node, with a test as their one worker: what is told of its scoreboard, and of what it sends; and
that an owner has to take it."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from kos_cluster.core.capacity import SLOTS_ALONE
from kos_cluster.core.records import Cause, Needs, Runs
from kos_cluster.core.roles import Role
from kos_cluster.net import local, wire
from kos_cluster.net.channel import Channel
from kos_cluster.net.identity import Peer
from kos_cluster.net.scoreboard import SIZE_BYTES, Scoreboard
from kos_cluster.node import owners, workers
from kos_cluster.node.batches import Batches
from kos_cluster.node.history import History
from kos_cluster.node.owners import OwnerState
from kos_cluster.node.parts import Parts
from kos_cluster.node.workers import Workers

PATIENCE_S = 20.0
TASKS = 4  # of each batch
_encode = msgspec.msgpack.encode


def owner(name: str) -> OwnerState:
    return OwnerState((name, "one"), Peer("lab", name, name, Role.CLIENT, 1, b"", 0.0), b"", 0.0)


class Node:
    """Real batches and workers; the test is the fork server, and the worker that it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[str, wire.Message, bytes]] = []
        self.when_told: Callable[[wire.Message], None] = lambda message: None
        owners = {state.owner: state for state in map(owner, ("ada", "eve"))}
        self._owners = {state.peer.id: state for state in owners.values()}
        self.batches = Batches(
            "node-a",
            1,
            SLOTS_ALONE,
            Parts(folder / "parts"),
            cast(Any, owners),
            History("node-a"),
            self._send,
            lambda answer: None,
            lambda owner, blocks: None,
        )
        self.workers = Workers(folder, {}, self.batches)

    def fork_server(self, *_: object, pass_fds: list[int], **__: object) -> SimpleNamespace:
        self._server = socket.socket(fileno=os.dup(pass_fds[0]))
        return SimpleNamespace(wait=lambda timeout=None: 0)

    def start(self, pid: int) -> None:
        self.workers.start()
        self.batches.start(self.workers)
        _, fds, _, _ = socket.recv_fds(self._server, 1 << 16, 5)
        self._out, self._err, board_fd, channel_fd, self._claims = fds
        self.board = Scoreboard(mmap.mmap(board_fd, SIZE_BYTES))
        os.close(board_fd)
        self.channel = Channel(socket.socket(fileno=channel_fd))
        if pid:
            self._server.send(_encode(local.Forked(1, pid)))
        self.channel.send(_encode(local.Ready(pid)))

    def close(self) -> None:
        self.workers.close()
        self._server.close()
        self.channel.close()
        for fd in (self._out, self._err, self._claims):
            os.close(fd)

    def _send(self, owner: OwnerState, message: wire.Message, payload: Any = b"") -> bool:
        self.told.append((owner.peer.id, message, bytes(payload)))
        self.when_told(message)
        return True

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for _, message, _ in self.told if isinstance(message, kind)]

    def results(self) -> list[tuple[Runs, list[bytes]]]:
        return [(m.runs, msgspec.msgpack.decode(data)) for _, m, data in self.told if isinstance(m, wire.Result)]

    def ask(self, name: str, number: int = 1) -> None:
        """A batch of this owner arrives."""
        message = wire.Exec(number, "job", "f", [(0, TASKS)], 1, "", "", [], Needs())
        self.batches.execute(self._owners[name], message, _encode([b""] * TASKS))

    async def give(self, name: str, number: int = 1) -> None:
        """One does, and comes to the worker."""
        self.ask(name, number)
        await until(lambda: self.channel.wait(0))
        header, _ = self.channel.receive()
        assert msgspec.msgpack.decode(header, type=local.ToWorker).batch == number  # type: ignore[union-attr]

    def release(self, name: str, result: wire.Result) -> None:
        """The owner has it."""
        self.batches.release(self._owners[name], [result.serial])

    def tick(self, times: int) -> None:
        for _ in range(times):
            self.batches.tick(time.monotonic())

    def done(self, runs: Runs, outcomes: list[bytes], *, last: bool = False, number: int = 1) -> None:
        self.channel.send(_encode(local.Done(number, runs, [], {}, 0.1, last)), _encode(outcomes))

    def die(self) -> None:
        self._server.send(_encode(local.Exited(1, signal.SIGKILL, False)))


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(scene: Callable[[Node], Awaitable[None]], pid: int = 0) -> None:
        async def whole() -> None:
            node = Node(tmp_path)
            stands_for = SimpleNamespace(Popen=node.fork_server, DEVNULL=None, TimeoutExpired=TimeoutError)
            monkeypatch.setattr(workers, "subprocess", stands_for)
            node.start(pid)
            try:
                await scene(node)
            finally:
                node.close()

        asyncio.run(whole())

    return run


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def test_results_that_a_worker_keeps_are_told_when_it_stays_at_a_task_and_once(play: Callable[..., None]):
    async def scene(node: Node) -> None:
        await node.give("ada")
        node.board.take()
        node.board.keep(0, b"zero", 0.1)
        node.board.begin(1)
        node.tick(1)
        assert node.results() == []
        node.tick(2)
        assert node.results() == [([(0, 1)], [b"zero"])]
        node.done([(0, 2)], [b"zero", b"one"])
        await until(lambda: len(node.results()) > 1)
        assert node.results()[1:] == [([(1, 1)], [b"one"])]

    play(scene)


def test_what_was_told_before_is_left_out_whenever_it_comes(play: Callable[..., None]):
    async def scene(node: Node) -> None:
        await node.give("ada")
        node.board.take()
        node.board.keep(2, b"two", 0.1)
        node.board.begin(3)
        node.tick(2)
        assert node.results() == [([(2, 1)], [b"two"])]
        node.done([(0, 2)], [b"zero", b"one"])  # sent before that, but it is long
        node.done([(2, 2)], [b"two", b"three"], last=True)
        await until(lambda: len(node.results()) > 2)
        assert node.results()[1:] == [([(0, 2)], [b"zero", b"one"]), ([(3, 1)], [b"three"])]

    play(scene)


def test_results_of_a_worker_that_goes_on_while_they_are_read_are_told_as_it_sends_them(play: Callable[..., None]):
    async def scene(node: Node) -> None:
        def go_on(_: object) -> None:
            """It has sent the first result, and keeps another where that lay."""
            node.when_told = lambda message: None
            node.board.sent()
            node.board.keep(1, b"one!", 0.1)

        await node.give("ada")
        node.board.take()
        node.board.keep(0, b"zero", 0.1)
        node.board.begin(1)
        node.tick(1)
        os.write(node._out, b"text")
        node.when_told = go_on
        node.tick(1)
        assert len(node.of(wire.Output)) == 1
        assert node.results() == []
        node.done([(0, 1)], [b"zero"])
        await until(node.results)
        assert node.results() == [([(0, 1)], [b"zero"])]

    play(scene)


def test_what_a_worker_did_in_a_batch_of_another_owner_with_the_same_number_says_nothing(play: Callable[..., None]):
    async def scene(node: Node) -> None:
        await node.give("ada")
        node.board.take()
        node.board.begin(TASKS - 1)
        node.done([(0, TASKS)], [b""] * TASKS, last=True)
        await until(node.results)
        await node.give("eve")
        node.die()
        await until(lambda: node.of(wire.Lost))
        (lost,) = node.of(wire.Lost)
        assert (lost.ran, lost.untouched, lost.cause) == ([(0, 1)], [(1, TASKS - 1)], Cause.WORKER_DIED)

    play(scene)


def test_an_owner_that_leaves_its_results_lying_gets_no_more_work_until_it_has_taken_them(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    async def scene(node: Node) -> None:
        outcomes = [b"12345", b"", b"", b""]
        monkeypatch.setattr(owners, "OUTBOX_LIMIT_BYTES", len(_encode(outcomes)))
        for number in (1, 2):  # the first fills the outbox, the second is one too many
            await node.give("ada", number)
            node.done([(0, TASKS)], outcomes, last=True, number=number)
            await until(lambda count=number: len(node.results()) == count)
        node.ask("ada", 3)
        (refused,) = node.of(wire.Refused)
        assert (refused.batch, refused.reason) == (3, "results of this owner wait to be taken")
        await node.give("eve")
        node.done([(0, TASKS)], outcomes, last=True)
        await until(lambda: len(node.results()) == 3)
        node.release("ada", node.of(wire.Result)[0])
        await node.give("ada", 3)
        assert node.of(wire.Refused) == [refused]

    play(scene)


@pytest.mark.parametrize(
    ("runs", "outcomes"),
    [
        ([(0, 2)], [b"zero"]),
        ([(0, 2)], [b"zero", b"one", b"two"]),
        ([(1, 1), (0, 1)], [b"one", b"zero"]),
        ([(0, 1 << 62)], [b"zero"]),
    ],
)
def test_a_worker_that_sends_outcomes_of_other_tasks_than_it_names_is_ended(
    runs: Runs, outcomes: list[bytes], play: Callable[..., None]
):
    async def scene(node: Node) -> None:
        await node.give("ada")
        node.board.take()
        node.board.keep(0, b"zero", 0.1)
        node.board.begin(1)
        node.tick(2)
        assert node.results() == [([(0, 1)], [b"zero"])]
        node.done(runs, outcomes)
        await until(lambda: process.poll() == -signal.SIGKILL)
        node.die()
        await until(lambda: node.of(wire.Lost))
        assert node.of(wire.Lost)[0].ran == [(1, 1)]

    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        try:
            play(scene, process.pid)
        finally:
            process.kill()
