"""The processes of a node: its fork server, its workers, their pipes. Carries out what `core.queue` decides.

Rules. Workers are known by number; each has a socket pair of its own, which nobody else can reach. What a worker wrote
to its pipes before it sent a message is delivered before that message. When a worker has ended, `exited` comes once,
after all that it sent and wrote. When the fork server dies, all its workers are ended and reported, and a new one is
started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from kos_cluster.errors import ProtocolError
from kos_cluster.home import private_folder
from kos_cluster.net import channel, local, scoreboard
from kos_cluster.node.footprint import held_bytes

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16  # taken from a pipe at once
NOTHING = scoreboard.Glance(0, 0, 0, 0)  # of a worker that has not begun its batch
UNSENT_LIMIT_BYTES = 256 << 20  # waiting for one worker to take them; it is ended beyond

_to_fork_server = msgspec.msgpack.Encoder()
_from_fork_server = msgspec.msgpack.Decoder(local.FromForkServer)
_from_worker = msgspec.msgpack.Decoder(local.FromWorker)
_encode = msgspec.msgpack.Encoder().encode


class Listener(Protocol):
    """What the daemon does with what workers say."""

    def worker_ready(self, worker: int) -> None: ...
    def worker_said(self, worker: int, message: local.FromTask, payload: bytes) -> None: ...
    def worker_wrote(self, worker: int, stream: str, data: bytes) -> None: ...
    def worker_exited(self, worker: int, detail: str, out_of_memory: bool, last: Last) -> None: ...


class Last(msgspec.Struct, frozen=True):
    """What the scoreboard of a worker tells that has ended: what it was at, and outcomes that it has not sent."""

    at: scoreboard.Glance
    kept: list[scoreboard.Outcome]
    elapsed_s: float


@dataclass(slots=True)
class _Worker:
    number: int
    stream: socket.socket  # our end of its channel
    pipes: dict[str, int]  # "stdout" and "stderr" -> read end
    scoreboard: mmap.mmap
    claims: tuple[int, int]  # the ends of its pipe, to read and to write
    pid: int = 0
    batches: int = 0  # that it was given
    given: set[str] = field(default_factory=set)  # hashes of parts that it holds
    signal: int = 0  # wanted before its pid was known
    decoder: channel.Decoder = field(default_factory=channel.Decoder)
    unsent: deque[memoryview] = field(default_factory=deque)
    poll: select.poll = field(default_factory=select.poll)  # of the pipes: one question instead of two failing reads


class Workers:
    """Runs the fork server and its workers on the running event loop."""

    def __init__(self, run: Path, environ: dict[str, str], listener: Listener) -> None:
        self._run = run
        home = Path.home()
        self._folder = home if os.access(home, os.W_OK | os.X_OK) else run  # where tasks work that name no folder
        self.spool = run / "spool"
        self._environ = environ
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._closing = False
        self.warm = asyncio.Event()

    def start(self) -> None:
        """Start the fork server. Its readiness sets `warm`."""
        private_folder(self.spool)
        self._start_fork_server()

    def fork(self, number: int) -> None:
        """Ask for a worker; `worker_ready` follows, or `worker_exited`."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        board_fd = scoreboard.create()
        claims = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        out_read, out_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        err_read, err_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for fd in (out_write, err_write):
            os.set_blocking(fd, True)
        pipes, board = {"stdout": out_read, "stderr": err_read}, mmap.mmap(board_fd, scoreboard.SIZE_BYTES)
        worker = _Worker(number, ours, pipes, board, claims)
        self._workers[number] = worker
        self._loop.add_reader(ours, self._receive, worker)
        for stream, fd in worker.pipes.items():
            self._loop.add_reader(fd, self._read_once, worker, stream)
            worker.poll.register(fd, select.POLLIN)
        spawn = local.Spawn(number, str(self.spool), str(self._folder))
        try:
            assert self._control is not None
            passed = [out_write, err_write, board_fd, theirs.fileno(), claims[0]]
            socket.send_fds(self._control, [_to_fork_server.encode(spawn)], passed)
        except OSError as error:
            log.warning("The fork server took no more work: %s", error)
            self._loop.call_soon(self._gone, worker, "the fork server is gone", False)
        finally:
            theirs.close()
            for fd in (out_write, err_write, board_fd):
                os.close(fd)

    def preload(self, modules: list[str]) -> None:
        """Have later workers start with these modules imported."""
        if self._control is not None:
            self._control.send(_to_fork_server.encode(local.Preload(modules)))

    def lacks(self, number: int, hashes: Iterable[str]) -> list[str]:
        """Those of these parts that a worker has not been given."""
        given = self._workers[number].given
        return [hash_ for hash_ in hashes if hash_ not in given]

    def give(self, number: int, part: local.Part, data: bytes | None) -> None:
        """Give a worker a part, unless it has it."""
        worker = self._workers[number]
        worker.given.add(part.hash)
        self._send(worker, part, data or b"")

    def send(self, number: int, message: local.ToWorker, payload: bytes = b"") -> None:
        """Send to a worker; one that has ended is left to its exit."""
        worker = self._workers.get(number)
        if worker is not None:
            self._send(worker, message, payload)

    def signal(self, number: int, what: signal.Signals) -> None:
        """Signal a worker's whole process group."""
        worker = self._workers.get(number)
        if worker is None:
            return
        if worker.pid:
            _signal_group(worker.pid, what)
        else:
            worker.signal = what

    def let_claim(self, number: int, tasks: int) -> None:
        """A worker is about to be given a batch, of which it is to claim so many tasks, one after the other."""
        worker = self._workers.get(number)
        if worker is None:
            return
        worker.batches += 1
        if tasks:
            _take_claims(worker)  # there are none, unless user code has meddled with the pipe
            os.write(worker.claims[1], bytes(tasks))

    def withhold(self, number: int) -> int:
        """Keep a worker from the tasks of its batch that it has not claimed, the last ones; how many they are."""
        worker = self._workers.get(number)
        return _take_claims(worker) if worker is not None else 0

    def glance(self, number: int) -> scoreboard.Glance:
        """Which task of its batch a worker has begun last, and what it keeps; `NOTHING` before it begins the batch."""
        worker = self._workers.get(number)
        return _glance(worker) if worker is not None else NOTHING

    def kept(self, number: int, seen: scoreboard.Glance) -> tuple[list[scoreboard.Outcome], float]:
        """The outcomes that a worker kept when this was seen; what it wrote until then is delivered before.

        Nothing when it has gone on since.
        """
        worker = self._workers.get(number)
        if worker is None:
            return [], 0.0
        for stream in list(worker.pipes):
            self._drain(worker, stream)
        return scoreboard.outcomes(worker.scoreboard, seen)

    def memory_bytes(self, number: int, limit_bytes: int) -> int:
        """What a worker holds with all that it has started; exact above the limit, an upper bound below it."""
        worker = self._workers.get(number)
        return held_bytes(worker.pid, limit_bytes) if worker is not None and worker.pid else 0

    def pause_output(self, number: int, pause_s: float) -> None:
        """Stop reading a worker's pipes for a while, so that it waits when its owner is slow to take its output."""
        worker = self._workers.get(number)
        if worker is None:
            return
        for fd in worker.pipes.values():
            self._loop.remove_reader(fd)
        self._loop.call_later(pause_s, self._resume_output, number)

    def close(self) -> None:
        """End everything: workers, their process groups, the fork server."""
        self._closing = True
        for worker in list(self._workers.values()):
            if worker.pid:
                _signal_group(worker.pid, signal.SIGKILL)
            self._drop(worker)
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    # ---- fork server

    def _start_fork_server(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kos_cluster.tasks.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=self._environ,
                cwd=self._run,
            )
        ours.setblocking(False)
        self._control = ours
        self._loop.add_reader(ours, self._fork_server_said)

    def _fork_server_said(self) -> None:
        assert self._control is not None
        try:
            packet = self._control.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._fork_server_died()
            return
        match _from_fork_server.decode(packet):
            case local.Forked(number, pid):
                self._forked(number, pid)
            case local.Exited(number, status, out_of_memory):
                worker = self._workers.get(number)
                if worker is not None:
                    self._gone(worker, _describe(status), out_of_memory)
            case local.Warm(_, failed):
                self.warm.set()
                for module, why in failed.items():
                    log.info("%s was not imported ahead: %s", module, why)

    def _forked(self, number: int, pid: int) -> None:
        worker = self._workers.get(number)
        if worker is not None:
            worker.pid = pid
            if worker.signal:
                _signal_group(pid, signal.Signals(worker.signal))

    def _fork_server_died(self) -> None:
        assert self._control is not None and self._process is not None
        self._loop.remove_reader(self._control)
        self._control.close()
        self._control = None
        if self._closing:
            return
        self._process.kill()
        log.error("The fork server ended (%s); a new one is started.", self._process.wait())
        for worker in list(self._workers.values()):
            if worker.pid:
                _signal_group(worker.pid, signal.SIGKILL)
        orphans = list(self._workers.values())
        self._start_fork_server()
        for worker in orphans:
            self._gone(worker, "its fork server ended", False)

    # ---- workers

    def _receive(self, worker: _Worker) -> bool:
        """Take what a worker has sent; False when there is nothing (more)."""
        try:
            data = worker.stream.recv(channel.READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:  # it has ended, or is about to; `Exited` follows
            self._loop.remove_reader(worker.stream)
            return False
        try:
            for header, payload in worker.decoder.feed(data):
                self._handle(worker, header, payload)
        except (ProtocolError, msgspec.DecodeError) as error:
            log.warning("Worker %d sent a malformed message (%s); it is ended.", worker.number, error)
            self.signal(worker.number, signal.SIGKILL)
        return True

    def _handle(self, worker: _Worker, header: bytes, payload: bytes) -> None:
        message = _from_worker.decode(header)
        if isinstance(message, local.Ready):
            self._listener.worker_ready(worker.number)
            return
        if worker.pipes and worker.poll.poll(0):
            for stream in list(worker.pipes):
                self._drain(worker, stream)
        self._listener.worker_said(worker.number, message, payload)

    def _send(self, worker: _Worker, message: local.ToWorker, payload: bytes | memoryview) -> None:
        """Write at once what the socket takes; the rest when it can take more."""
        pieces = channel.encode(_encode(message), payload)
        if not worker.unsent:
            first = pieces.pop(0)
            sent = self._write(worker, first)
            if sent < len(first):
                pieces.insert(0, memoryview(first)[sent:])
        if pieces:
            if not worker.unsent:
                self._loop.add_writer(worker.stream, self._send_more, worker)
            worker.unsent.extend(memoryview(piece) for piece in pieces)
            if sum(map(len, worker.unsent)) > UNSENT_LIMIT_BYTES:
                log.warning("Worker %d does not take what it is sent; it is ended.", worker.number)
                self.signal(worker.number, signal.SIGKILL)

    def _send_more(self, worker: _Worker) -> None:
        while worker.unsent:
            piece = worker.unsent[0]
            sent = self._write(worker, piece)
            if sent < len(piece):
                worker.unsent[0] = piece[sent:]
                return
            worker.unsent.popleft()
        self._loop.remove_writer(worker.stream)

    def _write(self, worker: _Worker, data: bytes | memoryview) -> int:
        try:
            return worker.stream.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:  # it has ended; `Exited` follows
            log.info("Worker %d could not be reached: %s", worker.number, error)
            return len(data)

    def _read_once(self, worker: _Worker, stream: str) -> bool:
        fd = worker.pipes.get(stream)
        if fd is None:
            return False
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(fd)
            worker.poll.unregister(fd)
            os.close(worker.pipes.pop(stream))
            return False
        self._listener.worker_wrote(worker.number, stream, data)
        return True

    def _drain(self, worker: _Worker, stream: str) -> None:
        """Take what is in the pipe now: at most what a pipe holds, so a talkative process can't keep us here."""
        for _ in range(16):
            if not self._read_once(worker, stream):
                return

    def _resume_output(self, number: int) -> None:
        worker = self._workers.get(number)
        if worker is not None:
            for stream, fd in worker.pipes.items():
                self._loop.add_reader(fd, self._read_once, worker, stream)

    def _gone(self, worker: _Worker, detail: str, out_of_memory: bool) -> None:
        if self._workers.get(worker.number) is not worker:
            return
        while self._receive(worker):
            pass
        for stream in list(worker.pipes):
            self._drain(worker, stream)
        if worker.pid:
            _signal_group(worker.pid, signal.SIGKILL)  # what it had started itself
        at = _glance(worker)
        last = Last(at, *scoreboard.outcomes(worker.scoreboard, at))
        self._drop(worker)
        self._listener.worker_exited(worker.number, detail, out_of_memory, last)

    def _drop(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        self._loop.remove_reader(worker.stream)
        self._loop.remove_writer(worker.stream)
        worker.stream.close()
        for fd in worker.pipes.values():
            self._loop.remove_reader(fd)
            os.close(fd)
        for fd in worker.claims:
            os.close(fd)
        worker.scoreboard.close()


def _glance(worker: _Worker) -> scoreboard.Glance:
    """What a worker is at in the batch that it was given last."""
    at = scoreboard.glance(worker.scoreboard)
    return at if at.batch == worker.batches else NOTHING


def _take_claims(worker: _Worker) -> int:
    """Take all claims out of a worker's pipe; how many they were."""
    try:
        return len(os.read(worker.claims[0], local.CLAIMS_LIMIT))
    except BlockingIOError:
        return 0


def _signal_group(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, what)


def _describe(status: int) -> str:
    """How a process ended, for people: a signal's name or its exit code."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
