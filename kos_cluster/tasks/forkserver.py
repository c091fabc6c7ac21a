"""The warm process that workers are forked from: `python -m kos_cluster.tasks.forkserver FD`.

FD is an inherited SOCK_SEQPACKET socket to the node's daemon; the messages are in `net.local`.

Rules: one thread, so that forking is safe. It holds no network and runs no user code; it
imports modules that workers will need, when it is idle. It is the parent of all workers: each has a process group of
its own, dies with this process, and takes what it started with it. When the daemon is gone it kills them all and
ends. What a worker is charged with ("out of memory") is what the kernel's counters show, nothing else.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

import msgspec

from kos_cluster.net import local
from kos_cluster.node import semaphores
from kos_cluster.tasks import environment, memory_kills, processes, worker

PACKET_LIMIT_BYTES = 256 << 10  # of one Spawn, which carries an environment
PASSED_FDS = 5  # stdout, stderr, scoreboard, channel, claims
SCOREBOARD_FD, CHANNEL_FD, CLAIMS_FD = 3, 4, 5  # where a worker finds the last three
FAILED_START = 70  # a worker's exit status when it could not even start


class _Child(NamedTuple):
    worker: int
    workspaces: Path
    memory_kills: int  # the kernel's count when it was forked


class ForkServer:
    """Forks workers on request and reports how they end."""

    def __init__(self, daemon: socket.socket) -> None:
        self._daemon = daemon
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}  # by pid
        self._preload: deque[str] = deque()
        self._tried: list[str] = []
        self._failed: dict[str, str] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(local.ToForkServer)
        self._memory = memory_kills.Counter()
        self._wake_read, self._wake_write = socket.socketpair()
        self._selector = selectors.PollSelector()  # holds no descriptor of its own, so a child has none to close

    def serve(self) -> None:
        """Until the daemon closes its end."""
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the client
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._daemon, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        gc.freeze()  # what is here now is shared by all workers; their collectors need not touch it
        self._say(local.Warm([], {}))
        try:
            while self._turn():
                pass
        finally:
            self._kill_all()

    def _turn(self) -> bool:
        """One round: children first, then one message, then (when idle) one module. False: the daemon is gone."""
        ready = {key.fileobj for key, _ in self._selector.select(0 if self._preload else None)}
        if self._wake_read in ready:
            self._drain_wakes()
            self._reap()
        if self._daemon in ready:
            return self._receive()
        if self._preload and not ready:
            self._import_one()
        return True

    def _receive(self) -> bool:
        try:
            packet, fds, flags, _ = socket.recv_fds(self._daemon, PACKET_LIMIT_BYTES, PASSED_FDS)
        except ConnectionResetError:
            return False
        if not packet:
            return False
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError(f"a packet of over {PACKET_LIMIT_BYTES} bytes or with over {PASSED_FDS} descriptors")
            message = self._decoder.decode(packet)
            if isinstance(message, local.Preload):
                self._preload.extend(message.modules)
            else:
                self._fork(message, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _fork(self, spawn: local.Spawn, fds: list[int]) -> None:
        if len(fds) != PASSED_FDS:
            raise ValueError(f"a Spawn needs {PASSED_FDS} descriptors, {len(fds)} came")
        kills = self._memory.read()
        pid = os.fork()
        if pid == 0:
            self._become_worker(spawn, fds)
        processes.lead_group(pid)  # here too, so that the daemon can signal the group as soon as it hears of it
        self._children[pid] = _Child(spawn.worker, Path(spawn.spool).parent / "workspaces", kills)
        self._say(local.Forked(spawn.worker, pid))

    def _become_worker(self, spawn: local.Spawn, fds: list[int]) -> None:
        """In the child; never returns."""
        status = FAILED_START
        try:
            processes.lead_group(0)
            processes.die_with_parent(self._pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._close_own()
            extra = {fds[2]: SCOREBOARD_FD, fds[3]: CHANNEL_FD, fds[4]: CLAIMS_FD}
            processes.take_descriptors(stdout=fds[0], stderr=fds[1], extra=extra)
            os.chdir(spawn.cwd)
            status = worker.main(spawn, SCOREBOARD_FD, CHANNEL_FD, CLAIMS_FD)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # to the worker's stderr, which the daemon keeps
        finally:
            processes.end(status)

    def _close_own(self) -> None:
        self._selector.close()
        for end in (self._daemon, self._wake_read, self._wake_write):
            end.close()

    def _drain_wakes(self) -> None:
        try:
            while self._wake_read.recv(4096):
                pass
        except BlockingIOError:
            return

    def _reap(self) -> None:
        """Report every child that has ended; what it left in its process group ends with it."""
        for pid, status in processes.ended_children(self._children):
            child = self._children.pop(pid, None)
            if child is None:
                continue  # an orphan of a worker, which came to us when its parent ended
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            self._say(local.Exited(child.worker, status, killed and self._memory.take(child.memory_kills)))
            _remove_workspaces(child.workspaces, pid)
            semaphores.remove_of(pid)

    def _import_one(self) -> None:
        name = self._preload.popleft()
        self._tried.append(name)
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever a module does at import; the daemon is told
            self._failed[name] = f"{type(error).__name__}: {error}"
        if not self._preload:
            gc.collect()
            gc.freeze()
            self._say(local.Warm(self._tried, self._failed))
            self._tried, self._failed = [], {}

    def _say(self, message: local.FromForkServer) -> None:
        try:
            self._daemon.send(self._encoder.encode(message))
        except (BrokenPipeError, ConnectionResetError):
            return  # the daemon is gone; the next receive ends this process

    def _kill_all(self) -> None:
        signal.set_wakeup_fd(-1)
        for pid in self._children:
            processes.kill_group(pid)
        processes.kill_and_reap_all()
        for pid, child in self._children.items():
            _remove_workspaces(child.workspaces, pid)
            semaphores.remove_of(pid)


def _remove_workspaces(folder: Path, pid: int) -> None:
    """A worker's unpacked workspace ends with it, however it ended."""
    if not folder.exists():
        return
    import shutil

    for path in folder.glob(f"*-{pid}"):
        shutil.rmtree(path, ignore_errors=True)  # a file that cannot be removed is left to the daemon's own clean-up
    for path in folder.glob(f".*-{pid}.kos-base"):  # what `workspace.unpack` noted beside it
        path.unlink(missing_ok=True)


def main(arguments: list[str]) -> None:
    """Serve the daemon at the descriptor that the first argument names."""
    # BLAS libraries read these once, when they are loaded; a worker that may use more cores raises its own limit.
    os.environ.update(dict.fromkeys(environment.THREAD_VARIABLES, "1"))
    if not sys.flags.safe_path:
        del sys.path[0]  # `-m` puts the daemon's own folder there; a worker searches its own
    processes.adopt_orphans()
    daemon = socket.socket(fileno=int(arguments[0]))
    daemon.set_inheritable(False)
    daemon.setblocking(True)
    ForkServer(daemon).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
