"""An interrupt reaches a cell that awaits, at once.

Theory of operation. ipykernel cancels an awaiting cell from its handler of SIGINT by a callback of the event loop. In
the loop's own thread that does not wake the loop (tornado's `add_callback`), and a signal alone does not end its wait
(PEP 475); so a cell that awaits nothing but a task would go on until something else happens. Here signals also
write to a socket that the loop reads.

Rules: only for a kernel, in its main thread, and where nobody else has set a wake-up descriptor.
"""

from __future__ import annotations

import signal
import socket
import threading
from typing import Any

READ_BYTES = 4096

_waking: tuple[socket.socket, socket.socket] | None = None


def register(shell: Any) -> None:
    """Have signals wake the kernel's loop. May be called again, for a kernel whose loop was not there yet."""
    global _waking
    io_loop = getattr(getattr(shell, "kernel", None), "io_loop", None)
    if io_loop is None or _waking is not None or threading.current_thread() is not threading.main_thread():
        return
    ours, signals = socket.socketpair()
    ours.setblocking(False)
    signals.setblocking(False)
    before = signal.set_wakeup_fd(signals.fileno(), warn_on_full_buffer=False)
    if before != -1:  # somebody else is woken; so is the loop then, if it is asyncio
        signal.set_wakeup_fd(before)
        ours.close()
        signals.close()
        return
    io_loop.asyncio_loop.add_reader(ours, ours.recv, READ_BYTES)
    _waking = ours, signals


def unregister(shell: Any) -> None:
    global _waking
    if _waking is not None:
        ours, signals = _waking
        signal.set_wakeup_fd(-1)
        shell.kernel.io_loop.asyncio_loop.remove_reader(ours)
        ours.close()
        signals.close()
        _waking = None
