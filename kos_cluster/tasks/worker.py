"""A worker: the process that runs user code. The fork server calls `main` in a fresh fork.

Theory of operation. One channel to the daemon, and one loop in the main thread: take parts, run batches. Within
a batch the loop claims each task before it starts, since the daemon may have given it back (`net.local`), and notes it
on the scoreboard. It sends outcomes on when `FLUSH_S` has passed, after a task that was not tiny, and at the end; those
it keeps lie on the scoreboard meanwhile, where the daemon finds them when the next task lasts. User threads may show
things while a task runs, so the channel has one lock.

Rules: user code runs in the main thread. SIGINT means "cancel": it interrupts user code, and only that; the batch's
remaining tasks then end as cancelled and the worker lives on. Results of `BULK_BYTES` and more stay in the node's
shared memory where their owner wants that and there is room; else they go to files in the spool. A worker that cannot
be set up, has taken more parts than `PARTS_LIMIT_BYTES`, or was interrupted while it imported something, asks to be
retired.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import msgspec

from kos_cluster.core.records import Runs, indices_of, runs_of
from kos_cluster.errors import BlockLostError, KosError
from kos_cluster.net import local
from kos_cluster.net.channel import Channel, Frames
from kos_cluster.net.scoreboard import SIZE_BYTES, Scoreboard
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.tasks import blocks, environment, failures, places, randomness, semaphores, serialise
from kos_cluster.tasks.context import here
from kos_cluster.tasks.framing import Segments
from kos_cluster.tasks.interrupts import Interrupts
from kos_cluster.tasks.yielding import GENERATORS, Yielding

FLUSH_S = 0.100  # an outcome waits no longer than this for the next task's
NOT_TINY_S = 0.010  # after a task of this length, sending its outcome at once costs nothing that counts
FLUSH_BYTES = 4 << 20  # of outcomes in one Done; a control message holds 16 MiB
CAUSES_LIMIT = 100  # failed tasks in one Done that are told with what they raised
MEET_POLL_S = 0.1  # between two looks for an interrupt, while a rank waits for the others
PARTS_LIMIT_BYTES = 512 << 20  # of parts held in memory
WANTED_POLL_S = 0.5  # between two looks at what a thread of the task may have taken from the channel
_TO_BE_RUN = frozenset({types.CoroutineType, *GENERATORS})


class _Outcomes:
    """What a batch has brought since the last Done."""

    __slots__ = (
        "causes",
        "data",
        "failed",
        "indices",
        "large",
        "lost",
        "size",
        "started",
        "stayed",
        "yielding",
    )

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.data: list[bytes] = []
        self.failed: list[int] = []
        self.causes: dict[int, str] = {}
        self.large: dict[int, tuple[str, int]] = {}
        self.stayed: dict[int, int] = {}
        self.lost: dict[int, list[str]] = {}
        self.size = 0
        self.started = perf_counter()
        self.yielding: Yielding | None = None  # of a task that yields, which is alone in its batch


class Worker:
    """Serves one daemon until it is told to stop."""

    def __init__(self, spawn: local.Spawn, channel: Channel, scoreboard: Scoreboard, claims_fd: int) -> None:
        self._channel = channel
        self._lock = threading.Lock()  # of the channel
        self._early: deque[Frames] = deque()  # came while a thread waited for Displayed
        self._scoreboard = scoreboard
        self._claims_fd = claims_fd
        self._spool = Path(spawn.spool)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(local.ToWorker).decode
        self._decode_payloads = msgspec.msgpack.Decoder(list[bytes]).decode
        self._parts: dict[str, bytes] = {}
        self._files: dict[str, str] = {}  # part hash -> path
        self._parts_bytes = 0
        self._functions: dict[str, Callable[..., Any]] = {}
        self._environment: str | None = None  # hash of the one that is applied
        self._serves = 0  # tasks before it retires; 0: no limit
        self._served = 0
        self._named: set[str] = set()  # blocks that the results of this batch refer to
        self._began_s = 0.0  # this batch
        self._interrupts = Interrupts()
        self._pid = os.getpid()
        self._streams = (sys.stdout, sys.stderr)
        os.register_at_fork(after_in_child=self._stop_in_fork)
        here.show = self.show
        here.arena = self._spool.parent / "arena"
        places.find_parts_by(self._part)
        here.meet = self.meet

    def _stop_in_fork(self) -> None:
        """A process that user code forked runs no further task, should it come back from the one that forked it."""
        self._interrupts.seen = True

    def serve(self) -> None:
        signal.signal(signal.SIGINT, self._interrupts.handle)
        self._send(local.Ready(self._pid))
        while True:
            frames = self._receive()
            message = self._decode(frames[0])
            if isinstance(message, local.Run):
                self._run(message, self._decode_payloads(frames[1]))
            elif isinstance(message, local.Part):
                self._take_part(message, frames)
            elif isinstance(message, local.Stop):
                return

    # ---- messages

    def _receive(self) -> Frames:
        with self._lock:
            return self._early.popleft() if self._early else self._channel.receive()

    def _send(self, message: local.FromWorker, payload: bytes = b"") -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a fork of this process that came back from its task; the original reports
        with self._lock:
            self._channel.send(self._encode(message), payload)

    def _take_part(self, part: local.Part, frames: Frames) -> None:
        if part.path:
            self._files[part.hash] = part.path
        elif part.hash not in self._parts:
            self._parts[part.hash] = frames[1]
            self._parts_bytes += len(frames[1])

    def _part(self, part: str) -> bytes | memoryview:
        """A part's bytes. A file is mapped anew each time and privately, so that a task may write to arrays in it."""
        path = self._files.get(part)
        if path is None:
            try:
                return self._parts[part]
            except KeyError:
                raise KosError(f"Part {part[:12]} did not reach this worker.", "Run the task again.") from None
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))

    def show(self, batch: int, index: int, data: bytes) -> None:
        """Send a display after all output so far, and wait until the daemon has it; called in any thread of a task."""
        if os.getpid() != self._pid:
            raise KosError("display() was called in a process that the task forked.", "Call it in the task itself.")
        with self._interrupts.held():
            self._flush_streams()
            self._exchange_display(batch, index, data)

    def meet(self, batch: int, index: int, data: bytes) -> bytes:
        """Say something to a rank's owner, and wait for its answer: that it is in place, or of a checkpoint. In one
        thread of the rank at a time."""
        with self._interrupts.held(), self._lock:
            self._channel.send(self._encode(local.RankReady(batch, index)), data)
            while not self._interrupts.seen:
                if self._channel.wait(MEET_POLL_S):
                    frames = self._channel.receive()
                    if isinstance(self._decode(frames[0]), local.RankTable):
                        return frames[1]
                    self._early.append(frames)
        raise KeyboardInterrupt

    def _exchange_display(self, batch: int, index: int, data: bytes) -> None:
        with self._lock:
            if not here.runs(batch):
                raise KosError("display() was called by a thread whose task has ended.", "Join the thread in the task.")
            self._channel.send(self._encode(local.Display(batch, index)), data)
            while True:
                frames = self._channel.receive()
                if isinstance(self._decode(frames[0]), local.Displayed):
                    return
                self._early.append(frames)

    # ---- running

    def _run(self, run: local.Run, payloads: list[bytes]) -> None:
        """Run a batch and send its outcomes. Only the end of the process ends this early."""
        if (here.node, here.owner, here.attempt) != (run.node, run.owner, run.attempt):
            os.environ["KOS_NODE"] = run.node
            os.environ["KOS_OWNER"] = run.owner
            os.environ["KOS_ATTEMPT"] = str(run.attempt)
        here.node, here.owner, here.job = run.node, run.owner, run.job
        here.attempt, here.batch = run.attempt, run.batch
        self._interrupts.seen = False
        blocks.let_go(run.hold_s)
        self._named.clear()
        self._began_s = monotonic()
        self._scoreboard.take()  # set-up runs user code too, and may end the process
        indices = list(indices_of(run.runs))
        refusal = self._prepare(run)
        if refusal is None:
            self._run_tasks(run, indices, payloads)
        else:
            cancelled = self._interrupts.seen and isinstance(refusal, KeyboardInterrupt)
            mine = indices[: 1 + self._claim_rest()]
            out = self._fail_rest(run.batch, _Outcomes(), mine, refusal, cancelled=cancelled)
            self._flush(run.batch, out, last=True, retire=True)

    def _prepare(self, run: local.Run) -> BaseException | None:
        """Set up what the batch needs. Returns why that cannot be; KeyboardInterrupt when it was interrupted."""
        interrupts = self._interrupts
        try:
            try:
                interrupts.enter()
                if self._environment != run.env:
                    self._set_up(run)
                if run.seed is not None:
                    randomness.prepare_seeding()
                interrupts.in_user_code = False
            except KosError as error:
                interrupts.in_user_code = False
                return error
        except KeyboardInterrupt as interrupt:
            interrupts.in_user_code = False
            return interrupt
        return None

    def _set_up(self, run: local.Run) -> None:
        if self._environment is not None:
            raise KosError(
                f"A worker on node {run.node} was given work for a second environment.", "Run the task again."
            )
        self._environment = run.env
        if run.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = run.gpus
        wanted = local.Environment()
        if run.env:
            wanted = msgspec.msgpack.decode(self._part(run.env), type=local.Environment)
        self._serves = 1 if wanted.fresh else wanted.serves
        environment.apply(wanted, self._part, node=run.node, key=run.env, workspaces=self._spool.parent / "workspaces")

    def _run_tasks(self, run: local.Run, indices: list[int], payloads: list[bytes]) -> None:
        loads, dumps, putenv = pickle.loads, serialise.dumps_result, os.putenv
        environ = vars(os.environ)["_data"]  # with putenv five times faster than assigning, which encodes each time
        claim, claims_fd = os.read, self._claims_fd
        interrupts, begin, keep = self._interrupts, self._scoreboard.begin, self._scoreboard.keep
        batch, task_name, seed, large = run.batch, os.fsencode(run.job.replace("%", "%%")) + b".%d", run.seed, run.large
        function = self._functions.get(run.fn)
        out = _Outcomes()
        before = out.started
        ran = len(indices)
        last = ran - 1
        args: Any = None
        for position, index in enumerate(indices):
            if position:
                try:
                    claim(claims_fd, 1)
                except BlockingIOError:
                    ran = position  # the rest was given back
                    break
            begin(position)
            plain = False  # whether its outcome may wait for others, since the daemon can tell it
            environ[b"KOS_TASK"] = name = task_name % index
            putenv(b"KOS_TASK", name)
            here.index = index
            if seed is not None:
                randomness.seed_task(seed, index)
            try:
                try:
                    interrupts.enter()
                    if function is None:
                        function = self._load_function(run.fn)
                    args, kwargs = self._load_large(large[index]) if index in large else loads(payloads[position])
                    if blocks.arrivals.any:
                        args, kwargs = blocks.resolved(args, kwargs)
                    value = function(*args, **kwargs)
                    if type(value) in _TO_BE_RUN:
                        value = self._run_on(run, value, out)
                    outcome = dumps(value)
                    interrupts.in_user_code = False
                except BaseException as error:
                    interrupts.in_user_code = False
                    if args is None and isinstance(error, BlockLostError):
                        call = self._part(large[index]) if index in large else payloads[position]
                        out.lost[index] = blocks.lost_of(call)
                    args = kwargs = value = None
                    self._fail(out, index, error, cancelled=interrupts.seen and isinstance(error, KeyboardInterrupt))
                else:
                    args = kwargs = value = None  # not kept while waiting for more work
                    if type(outcome) is bytes and len(outcome) < BULK_BYTES:
                        plain = True
                        out.indices.append(index)
                        out.data.append(outcome)
                        out.size += len(outcome)
                    else:
                        self._keep_large(out, index, outcome, run.stays)
            except KeyboardInterrupt as interrupt:  # it struck while an exception was being caught
                self._fail(out, index, interrupt, cancelled=True)
            if interrupts.seen:
                rest = indices[position + 1 : position + 1 + self._claim_rest()]
                out = self._fail_rest(batch, out, rest, KeyboardInterrupt(), cancelled=True)
                break
            now = perf_counter()
            if position != last and (
                now - before >= NOT_TINY_S
                or now - out.started >= FLUSH_S
                or out.size >= FLUSH_BYTES
                or not (plain and not blocks.departed and keep(position, out.data[-1], now - out.started))
            ):
                self._flush(batch, out, last=False)
                out = _Outcomes()
                now = out.started
            before = now
        here.leave()
        self._served += ran
        used_up = 0 < self._serves <= self._served or self._parts_bytes > PARTS_LIMIT_BYTES
        self._flush(batch, out, last=True, retire=used_up or interrupts.broke_import)

    def _claim_rest(self) -> int:
        """Make all of the batch's tasks ours that were not given back; how many they are."""
        if os.getpid() != self._pid:
            os._exit(0)  # as in `_send`: what is left is the original's
        try:
            return len(os.read(self._claims_fd, local.CLAIMS_LIMIT))
        except BlockingIOError:
            return 0

    def _run_on(self, run: local.Run, value: Any, out: _Outcomes) -> Any:
        """Run what a call has only made: a coroutine, or, where the owner takes items, a generator."""
        if isinstance(value, types.CoroutineType):
            from kos_cluster.tasks import coroutines

            return coroutines.run(value, self._interrupts)
        if run.stream is None:
            return value  # a result, which cannot be pickled
        out.yielding = Yielding(value, *run.stream)
        return out.yielding.run(self, self._interrupts)

    def send_item(self, position: int, data: bytes | Segments) -> None:
        """Raises KosError when a large item cannot be written."""
        self._flush_streams()
        if isinstance(data, bytes) and len(data) < BULK_BYTES:
            self._send(local.Item(here.batch, position), data)
            return
        try:
            spooled = self._spill([data] if isinstance(data, bytes) else data)
        except OSError as error:
            raise KosError(f"An item could not be written on node {here.node}: {error}.", "Make room there.") from error
        self._send(local.Item(here.batch, position, spooled))

    def more_wanted(self) -> int:
        """Wait until the running task may yield more; up to which position then. May be interrupted while it waits."""
        while True:
            self._interrupts.enter()
            if not self._early:
                self._channel.wait(WANTED_POLL_S)  # an interrupt of what follows would cut a message in two
            self._interrupts.in_user_code = False
            with self._lock:  # a thread of the task may have taken what came, while it showed something
                there = self._early or self._channel.wait(0)
            message = self._decode(self._receive()[0]) if there else None
            if isinstance(message, local.ItemsWanted) and message.batch == here.batch:
                self._interrupts.enter()
                return message.until

    def _load_function(self, part: str) -> Callable[..., Any]:
        function: Callable[..., Any] = serialise.loads(self._part(part))
        self._functions[part] = function
        return function

    def _load_large(self, part: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = serialise.loads(self._part(part))
        return args, kwargs

    # ---- outcomes

    def _keep_large(
        self, out: _Outcomes, index: int, outcome: bytes | Segments, stays: Mapping[int, str] | None
    ) -> None:
        pieces: Segments = [outcome] if isinstance(outcome, bytes) else outcome
        if stays is not None and self._stay(out, index, pieces, stays.get(index, "")):
            return
        try:
            spooled = self._spill(pieces)
        except OSError as error:
            problem = KosError(f"The result could not be written on node {here.node}: {error}.", "Make room there.")
            self._fail(out, index, problem)
            return
        out.large[index] = spooled
        out.indices.append(index)
        out.data.append(b"")

    def _stay(self, out: _Outcomes, index: int, pieces: Segments, block: str) -> bool:
        """Let a result stay here as a block. False when the arena cannot have it, be it that it is full."""
        try:
            data = blocks.result_stays(pieces, block)
        except KosError:  # whatever it is, the result has another way
            return False
        out.stayed[index] = sum(map(len, pieces))
        out.indices.append(index)
        out.data.append(data)
        out.size += len(data)
        return True

    def _spill(self, segments: Segments) -> tuple[str, int]:
        name = os.urandom(16).hex()
        path = self._spool / name
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", buffering=0) as file:
                for segment in segments:
                    rest = memoryview(segment)
                    while rest:
                        rest = rest[file.write(rest) :]
        except BaseException:
            path.unlink()
            raise
        return name, sum(map(len, segments))

    def _fail(self, out: _Outcomes, index: int, error: BaseException, *, cancelled: bool = False) -> None:
        if isinstance(error, ModuleNotFoundError):
            failures.name_missing_package(error, here.node)
        failure = failures.failure_of(
            error, node=here.node, task=f"{here.job}.{index}", attempt=here.attempt, cancelled=cancelled
        )
        data = pickle.dumps(failure, serialise.PROTOCOL)
        out.indices.append(index)
        out.data.append(data)
        out.size += len(data)
        out.failed.append(index)
        if len(out.causes) < CAUSES_LIMIT:
            out.causes[index] = failure.cause

    def _fail_rest(
        self, batch: int, out: _Outcomes, indices: list[int], error: BaseException, *, cancelled: bool
    ) -> _Outcomes:
        """Fail tasks that have not started; what is left to send is returned."""
        for index in indices:
            if out.size >= FLUSH_BYTES:
                self._flush(batch, out, last=False)
                out = _Outcomes()
            self._fail(out, index, error, cancelled=cancelled)
        return out

    def _flush(self, batch: int, out: _Outcomes, *, last: bool, retire: bool = False) -> None:
        self._flush_streams()
        elapsed_s = perf_counter() - out.started
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        items = out.yielding.count if out.yielding is not None else 0
        named = blocks.take_departed()
        self._named.update(named)
        done = local.Done(
            batch,
            _runs(out.indices),
            out.failed,
            out.large,
            elapsed_s,
            last,
            retire,
            peak_bytes,
            items,
            named,
            out.causes,
            out.stayed,
            out.lost,
        )
        self._send(done, self._encode(out.data))
        self._scoreboard.sent()
        if last:
            blocks.let_go_unnamed(self._named, self._began_s)

    def _flush_streams(self) -> None:
        for stream in self._streams:
            if not stream.closed:
                try:
                    stream.flush()
                except OSError:  # the task closed the descriptor beneath it: its text has nowhere to go
                    continue


def _runs(indices: list[int]) -> Runs:
    """`runs_of` for ascending indices, at once where they have no gap."""
    if indices and indices[-1] - indices[0] == len(indices) - 1:
        return [(indices[0], len(indices))]
    return runs_of(indices)


def main(spawn: local.Spawn, scoreboard_fd: int, channel_fd: int, claims_fd: int) -> int:
    """Run a worker in this process, which has just been forked, until the daemon stops it. Returns its exit status."""
    _open_streams()
    scoreboard = Scoreboard(mmap.mmap(scoreboard_fd, SIZE_BYTES))
    os.close(scoreboard_fd)
    randomness.renew()
    semaphores.name_by_worker()
    sys.path.insert(0, "")  # as in an interactive session: the folder that the task works in
    environment.stand_for_main(types.ModuleType("__main__"))
    channel = Channel(socket.socket(fileno=channel_fd))
    with contextlib.suppress(EOFError):  # the daemon is gone; nobody waits for this worker
        Worker(spawn, channel, scoreboard, claims_fd).serve()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    atexit._run_exitfuncs()  # what user code has registered
    channel.close()
    return 0


def _open_streams() -> None:
    """Text streams over descriptors 1 and 2, which the fork server has just put in place."""
    sys.stdout = sys.__stdout__ = _text_over(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text_over(2)  # type: ignore[misc]


def _text_over(fd: int) -> TextIOWrapper:
    return open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
