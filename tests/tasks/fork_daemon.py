"""The daemon's side of a fork server and its workers, for tests: real processes, no daemon's logic."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster.core.records import Runs, indices_of
from kos_cluster.net import local, scoreboard
from kos_cluster.net.channel import Channel
from kos_cluster.tasks import serialise
from kos_cluster.tasks.failures import Failure

PATIENCE_S = 20.0
_from_server = msgspec.msgpack.Decoder(local.FromForkServer)
_from_worker = msgspec.msgpack.Decoder(local.FromWorker)


@dataclass
class Batch:
    """What came back for one Run."""

    values: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    displays: list[tuple[int, dict[str, Any], str]] = field(default_factory=list)  # index, content, stdout until then
    spooled: dict[int, tuple[str, int]] = field(default_factory=dict)
    messages: list[local.Done] = field(default_factory=list)

    @property
    def retire(self) -> bool:
        return self.messages[-1].retire


class TestedWorker:
    """One worker, as its daemon sees it."""

    __test__ = False

    def __init__(self, daemon: ForkDaemon, number: int) -> None:
        self.daemon = daemon
        self.number = number
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        self.channel = Channel(ours)
        self.pid = 0
        self._batch = 0
        self._stdout, out = os.pipe()
        self._stderr, err = os.pipe()
        for fd in (self._stdout, self._stderr):
            os.set_blocking(fd, False)
        board = scoreboard.create()
        self.board = mmap.mmap(board, scoreboard.SIZE_BYTES)
        self.claims = os.pipe2(os.O_NONBLOCK)
        self.out = self.err = ""
        spawn = local.Spawn(number, str(daemon.spool), str(daemon.folder))
        passed = [out, err, board, theirs.fileno(), self.claims[0]]
        socket.send_fds(daemon.server, [msgspec.msgpack.encode(spawn)], passed)
        theirs.close()
        for fd in (out, err, board):
            os.close(fd)

    def progress(self) -> tuple[int, int]:
        at = scoreboard.glance(self.board)
        return at.batch, at.position

    def part(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.send(local.Part(digest), data)
        return digest

    def environment(self, **settings: Any) -> str:
        return self.part(msgspec.msgpack.encode(local.Environment(**settings)))

    def send(self, message: local.ToWorker, *payload: bytes) -> None:
        self.channel.send(msgspec.msgpack.encode(message), *payload)

    def start(
        self,
        fn: Callable[..., Any] | bytes,
        calls: list[tuple[Any, ...]],
        *,
        env: str = "",
        runs: Runs | None = None,
        **settings: Any,
    ) -> int:
        self._batch += 1
        payloads = [serialise.dumps_args(call, {}) for call in calls]
        function = fn if isinstance(fn, bytes) else serialise.dumps_callable(fn)
        run = local.Run(
            self._batch, "job", runs or [(0, len(calls))], 1, self.part(function), env, "node-a", **settings
        )
        os.write(self.claims[1], bytes(len(calls) - 1))
        self.send(run, msgspec.msgpack.encode(payloads))
        return self._batch

    def run(self, fn: Callable[..., Any] | bytes, calls: list[tuple[Any, ...]], **settings: Any) -> Batch:
        self.start(fn, calls, **settings)
        return self.finish()

    def value(self, fn: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        batch = self.run(fn, [args], **settings)
        assert not batch.failures, batch.failures[0].traceback or batch.failures[0].message
        return batch.values[0]

    def finish(self) -> Batch:
        """Collect until the last Done."""
        batch = Batch()
        while not (batch.messages and batch.messages[-1].last):
            message, payload = self.receive()
            if isinstance(message, local.Display):
                self.read_streams()
                batch.displays.append((message.index, json.loads(payload), self.out))
                self.send(local.Displayed())
            elif isinstance(message, local.Done):
                batch.messages.append(message)
                self._take(batch, message, msgspec.msgpack.decode(payload))
        self.read_streams()
        return batch

    def _take(self, batch: Batch, done: local.Done, outcomes: list[bytes]) -> None:
        failed = set(done.failed)
        for index, data in zip(indices_of(done.runs), outcomes, strict=True):
            if index in done.large:
                batch.spooled[index] = done.large[index]
                data = bytearray((self.daemon.spool / done.large[index][0]).read_bytes())
            if index in failed:
                batch.failures[index] = pickle.loads(data)
            else:
                batch.values[index] = serialise.loads_result(data)

    def receive(self) -> tuple[local.FromWorker, bytes]:
        """Its next message; fails with its stderr when none comes."""
        try:
            header, payload = self.channel.receive()
        except TimeoutError:
            self.read_streams()
            raise AssertionError(f"no message; {self.err}") from None
        return _from_worker.decode(header), payload

    def read_streams(self) -> None:
        self.out += _read(self._stdout)
        self.err += _read(self._stderr)

    def close(self) -> None:
        os.close(self._stdout)
        os.close(self._stderr)
        self.board.close()
        for fd in self.claims:
            os.close(fd)
        self.channel.close()


class ForkDaemon:
    """Starts a fork server and owns the sockets that a daemon owns."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.spool = folder / "spool"
        self.spool.mkdir(mode=0o700)
        self.server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.log = open(folder / "log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kos_cluster.tasks.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        theirs.close()
        self.exits: dict[int, local.Exited] = {}
        self.workers: list[TestedWorker] = []
        warm = self.hear()
        assert warm == local.Warm([], {})

    def hear(self) -> local.FromForkServer:
        self.server.settimeout(PATIENCE_S)
        packet = self.server.recv(1 << 16)
        assert packet, (self.folder / "log").read_text()
        return _from_server.decode(packet)

    def worker(self) -> TestedWorker:
        worker = TestedWorker(self, len(self.workers))
        self.workers.append(worker)
        forked = self.hear()
        assert isinstance(forked, local.Forked) and forked.worker == worker.number
        worker.pid = forked.pid
        ready, _ = worker.receive()
        assert ready == local.Ready(worker.pid)
        return worker

    def preload(self, *modules: str) -> local.Warm:
        self.server.send(msgspec.msgpack.encode(local.Preload(list(modules))))
        warm = self.hear()
        assert isinstance(warm, local.Warm)
        return warm

    def exited(self, worker: TestedWorker) -> local.Exited:
        while worker.number not in self.exits:
            message = self.hear()
            if isinstance(message, local.Exited):
                self.exits[message.worker] = message
        return self.exits[worker.number]

    def close(self) -> None:
        """End it as a daemon's end would."""
        self.server.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            for worker in self.workers:
                worker.close()
            self.log.close()


def gone(pid: int) -> bool:
    """Wait until a process has ended (a zombie has)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        ended = bool(selector.select(PATIENCE_S))
    os.close(fd)
    return ended


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def interrupt(worker: TestedWorker) -> None:
    os.kill(worker.pid, signal.SIGINT)


def _read(fd: int) -> str:
    data = b""
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            break
        if not chunk:
            break
        data += chunk
    return data.decode()
