"""The Jupyter kernels that run on this node: started, found by their tunnels, ended.

Theory of operation. A kernel is one task of a job whose owner is a process of this machine, its host
(`tasks.kernelhost`), started by this daemon: so its slots are counted like those of any work, and neither the silence
nor the end of whoever asked for it ends the kernel. The worker becomes the kernel. It listens on UNIX sockets in a
folder of its own; tunnels over the bulk port (`net.tunnel`) lead there. Nothing about a kernel is agreed on: it lives
and ends with its node.

Rules. The connection file is written here, 0600 in a 0700 folder, and removed when the kernel has ended. Only who has
started a kernel, by the authenticated identity, gets to its sockets; an admin may end it too. `tunnel` is called by
other threads than the daemon's.

    kernel     event                           next
    waiting    a slot is free, it listens      running
    waiting,   it ends by itself; is stopped;  ended
    running    its node stops
"""

from __future__ import annotations

import asyncio
import enum
import logging
import shutil
import socket
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kos_cluster.core.roles import Command, may
from kos_cluster.errors import AuthError, KosError, LimitError, NoSuchTaskError, StateError, UsageError
from kos_cluster.home import private_folder, write_private
from kos_cluster.net import driven, tunnel, unixsockets, wire
from kos_cluster.net import kernels as asks
from kos_cluster.net.identity import Peer
from kos_cluster.node.drives import Driver, Output

log = logging.getLogger(__name__)

KERNELS_LIMIT = 64  # of one node at once
ENDED_LIMIT = 256  # that are remembered
TUNNELS_OF_KERNEL_LIMIT = 128  # at once
GONE_TIMEOUT_S = 5.0  # from the end of a kernel's host to that of its process
GONE_POLL_S = 0.02  # between two looks meanwhile
CONNECT_TIMEOUT_S = 1.0  # to a socket of this machine
LAST_WORDS_BYTES = 2000  # of what a kernel wrote that are told when it has failed

# In a connection file a socket is a number. These are the names of the sockets in the kernel's folder.
SOCKETS = {"shell": "k-1", "iopub": "k-2", "stdin": "k-3", "control": "k-4", "hb": "k-5"}
CONNECTION_FILE = "connection.json"
PID_FILE = "pid"
# The descriptor of its folder that a kernel inherits: its sockets' addresses are short, wherever KOS_HOME is.
FOLDER_FD = 63


class State(enum.StrEnum):
    """What a kernel does."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(eq=False)
class _Kernel:
    id: str
    peer: Peer
    folder: Path
    output: Output = field(default_factory=lambda: Output(0))
    state: State = State.WAITING
    why: str = "it waits for free slots"
    hosting: asyncio.Task[None] | None = None
    stopped_by: str = ""
    tunnels: dict[str, tunnel.End] = field(default_factory=dict)


class Kernels:
    """One node's kernels. Used in the daemon's loop, but for `tunnel`."""

    def __init__(self, node: str, name: str, cluster: str, folder: Path) -> None:
        self._node = node
        self._name = name
        self._cluster = cluster
        self._folder = folder
        self._kernels: OrderedDict[str, _Kernel] = OrderedDict()
        self._lock = threading.Lock()  # of every kernel's tunnels
        self._closing = False
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run

    async def answer(self, peer: Peer, ask: wire.Asked) -> object:
        """Raises what refuses it."""
        match ask:
            case asks.StartKernel():
                return self._start(peer, ask)
            case asks.KernelOf(id_):
                return self._told(self._find(id_))
            case asks.StopKernel(id_):
                return self._stop(peer, self._find(id_))
        raise StateError(f"{type(ask).__name__} is not about a kernel.")

    def tunnel(self, peer: Peer, wanted: tunnel.Open) -> tunnel.End:
        """This node's end of a tunnel. May be called by any thread. Raises KosError."""
        kernel = self._find(wanted.kernel)
        if kernel.peer.id != peer.id:
            raise AuthError(
                f"Kernel {kernel.id} belongs to {kernel.peer.name}, not to {peer.name}.", "Start one of your own."
            )
        if kernel.state is State.ENDED:
            raise NoSuchTaskError(f"Kernel {kernel.id} on node {self._name} has ended: {kernel.why}.", "Restart it.")
        with self._lock:
            end = kernel.tunnels.get(wanted.id)
            if end is not None and not end.over:
                return end
            if not wanted.new:
                raise NoSuchTaskError(f"Node {self._name} has no tunnel {wanted.id[:16]!r} (any more).")
            open_ones = {id_: end for id_, end in kernel.tunnels.items() if not end.over}
            if len(open_ones) >= TUNNELS_OF_KERNEL_LIMIT:
                raise LimitError(
                    f"Kernel {kernel.id} has {TUNNELS_OF_KERNEL_LIMIT} tunnels open.", "Close clients of it."
                )
            end = tunnel.End(_connected(kernel, wanted.socket))
            kernel.tunnels = {**open_ones, wanted.id: end}
            return end

    async def close(self) -> None:
        """End all kernels."""
        self._closing = True
        hosting = [kernel.hosting for kernel in self._kernels.values() if kernel.hosting is not None]
        for task in hosting:
            task.cancel()
        await asyncio.gather(*hosting, return_exceptions=True)

    # ---- inside

    def _find(self, id_: str) -> _Kernel:
        kernel = self._kernels.get(id_)
        if kernel is None:
            raise NoSuchTaskError(
                f"Node {self._name} knows no kernel {id_[:64]!r}: it has ended, or the node was started anew.",
                "Restart it.",
            )
        return kernel

    def _start(self, peer: Peer, ask: asks.StartKernel) -> bool:
        known = self._kernels.get(ask.id)
        if known is not None:
            if known.peer.id != peer.id:
                raise AuthError(f"There is a kernel {ask.id[:64]!r} of {known.peer.name}.", "Choose another id.")
            return True
        if not (ask.id.isascii() and ask.id.isalnum() and len(ask.id) <= 64) or ask.cpus < 1 or ask.memory_bytes < 0:
            raise UsageError("A kernel needs an id of letters and digits, and at least one slot.")
        if self._closing:
            raise StateError(f"Node {self._name} stops.", "Start the kernel on another node.")
        running = sum(kernel.state is not State.ENDED for kernel in self._kernels.values())
        if running >= KERNELS_LIMIT:
            raise LimitError(f"Node {self._name} has {running} kernels.", "Shut kernels down that nobody needs.")
        kernel = self._kernels[ask.id] = _Kernel(ask.id, peer, private_folder(self._folder / ask.id))
        write_private(kernel.folder / CONNECTION_FILE, msgspec.json.encode(_connection(ask)))
        order = driven.HostKernel(
            id=ask.id,
            cluster=self._cluster,
            node=self._node,
            name=f"kernel of {peer.name}",
            folder=str(kernel.folder),
            cwd=ask.folder,
            cpus=ask.cpus,
            memory_bytes=ask.memory_bytes,
            environ=ask.environ,
        )
        log.info("Kernel %s of %s is started.", ask.id, peer)
        kernel.hosting = asyncio.get_running_loop().create_task(self._host(kernel, order), name=f"kernel-{ask.id}")
        return True

    def _told(self, kernel: _Kernel) -> asks.KernelState:
        if kernel.state is State.WAITING and (kernel.folder / PID_FILE).exists():
            kernel.why = "it is being started"
            if all((kernel.folder / name).exists() for name in SOCKETS.values()):
                kernel.state, kernel.why = State.RUNNING, ""
        return asks.KernelState(self._name, kernel.state, kernel.why)

    def _stop(self, peer: Peer, kernel: _Kernel) -> bool:
        if peer.id != kernel.peer.id and not may(peer.role, Command.CANCEL_ANY):
            raise AuthError(
                f"Kernel {kernel.id} belongs to {kernel.peer.name}; the role {peer.role} may only cancel its own work.",
                "Ask its owner, or use an admin's identity.",
            )
        if kernel.hosting is None or kernel.hosting.done():
            return False
        kernel.stopped_by = peer.name
        kernel.hosting.cancel()
        return True

    async def _host(self, kernel: _Kernel, order: driven.HostKernel) -> None:
        """Have the kernel run until it ends or this task is cancelled."""
        why = "its host ended"
        try:
            driver = await Driver.start(order)
            try:
                async for message, payload in driver.messages():
                    if isinstance(message, driven.Wrote):
                        kernel.output.wrote(payload)
                    elif isinstance(message, driven.Failed):
                        why = message.sentence
            finally:
                await driver.end()
        except asyncio.CancelledError:
            why = f"{kernel.stopped_by} has stopped it" if kernel.stopped_by else "the node was stopped"
        except (KosError, OSError) as error:
            why = str(error)
        finally:
            await asyncio.shield(self._gone(kernel, why))

    async def _gone(self, kernel: _Kernel, why: str) -> None:
        """Wait for the kernel's process to be gone, and leave nothing of it."""
        process = _process(kernel.folder)
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while process is not None and process.exists() and time.monotonic() < deadline:
            await asyncio.sleep(GONE_POLL_S)
        words = kernel.output.tail(LAST_WORDS_BYTES).decode(errors="replace").strip()
        if kernel.state is State.WAITING and words and not kernel.stopped_by:
            why = f"{why.rstrip('.')}; its last words: {words}"
        with self._lock:
            kernel.state, kernel.why = State.ENDED, why.rstrip(".")
            tunnels, kernel.tunnels = kernel.tunnels, {}
        for end in tunnels.values():
            end.close()
        shutil.rmtree(kernel.folder, ignore_errors=True)
        log.info("Kernel %s has ended: %s.", kernel.id, kernel.why)
        self._kernels.move_to_end(kernel.id)
        ended = [id_ for id_, other in self._kernels.items() if other.state is State.ENDED]
        for id_ in ended[:-ENDED_LIMIT]:
            del self._kernels[id_]


def _connection(ask: asks.StartKernel) -> dict[str, str | int]:
    numbers = {f"{channel}_port": int(name.removeprefix("k-")) for channel, name in SOCKETS.items()}
    return {
        "transport": "ipc",
        "ip": f"/proc/self/fd/{FOLDER_FD}/k",
        "key": ask.key,
        "signature_scheme": ask.signature_scheme,
        "kernel_name": "kos",
        **numbers,
    }


def _connected(kernel: _Kernel, channel: str) -> socket.socket:
    """A connection to one of a kernel's sockets. Raises UsageError, StateError."""
    if channel not in SOCKETS:
        raise UsageError(f"A kernel has no socket {channel[:16]!r}.", f"It has {', '.join(SOCKETS)}.")
    try:
        return unixsockets.connect(kernel.folder / SOCKETS[channel], timeout_s=CONNECT_TIMEOUT_S)
    except OSError as error:
        raise StateError(
            f"Kernel {kernel.id} does not listen on {channel} ({error.strerror or error}).", "Wait, or restart it."
        ) from None


def _process(folder: Path) -> Path | None:
    """Where the system shows the process of a kernel; None when it has never begun."""
    with suppress(OSError, ValueError):
        return Path("/proc") / str(int((folder / PID_FILE).read_text()))
    return None
