"""The host of a Jupyter kernel: a client process that owns the one task which the kernel is. A daemon starts it.

Theory of operation. The host connects as the client of this machine and submits a task to this very node, so that the
kernel has its slots and its place in the node's queue. The task puts the kernel into the worker's place (`execve`):
same process, same group, same pipes. So a signal reaches what the kernel has started, as it would on the user's own
machine; the fork server sees how it ends, and tells a kernel that ran out of memory from others.

Rules. The host holds nothing else: when the daemon closes the channel it ends, and with it the kernel. The kernel is
never started a second time.
"""

from __future__ import annotations

import concurrent.futures
import os
import socket
import sys
import threading
from pathlib import Path

import msgspec

from kos_cluster.core.records import AttemptEnd, Story
from kos_cluster.errors import KosError
from kos_cluster.net import driven
from kos_cluster.net.channel import Channel
from kos_cluster.net.local import Environment
from kos_cluster.node.kernels import CONNECTION_FILE, FOLDER_FD, PID_FILE
from kos_cluster.tasks import serialise
from kos_cluster.tasks.cluster import connect
from kos_cluster.tasks.driver import EXIT_LOST, Link, watch
from kos_cluster.tasks.functions import ship
from kos_cluster.tasks.futures import Future
from kos_cluster.tasks.job import JobSpec
from kos_cluster.tasks.options import Options

MODULE = "kos_kernel.remote"  # only named here: the kernel needs KOS, not the other way round


def become_kernel(folder: str) -> None:
    """Put a kernel into this worker's place. Does not return."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.dup2(descriptor, FOLDER_FD, inheritable=True)
    os.close(descriptor)
    Path(folder, PID_FILE).write_text(str(os.getpid()))
    sys.stdout.flush()
    sys.stderr.flush()
    connection = str(Path(folder, CONNECTION_FILE))
    environ = {**os.environ, "JPY_PARENT_PID": str(os.getppid())}  # it ends with the node, and prints nothing at first
    os.execve(sys.executable, [sys.executable, "-P", "-m", MODULE, "-f", connection], environ)


def _spec(order: driven.HostKernel, link: Link) -> JobSpec:
    environ = {**order.environ, "KOS_CLUSTER": order.cluster}
    shipped = ship(serialise.dumps_callable(become_kernel))
    environment = Environment(environ=environ, threads=order.cpus, cwd=order.cwd, fresh=True)
    options = Options(order.cpus, order.memory_bytes, order.node, retries=0, env=environ, fresh=True)
    return JobSpec(shipped.payload, environment, shipped.parts, options, link, order.name)


def _how_it_ended(future: Future, story: Story | None) -> str:
    if future.cancelled():
        return "it was cancelled"
    last = story.attempts[-1] if story is not None and story.attempts else None
    if last is None or last.end is AttemptEnd.FAILED:  # it could not even begin
        return str(future.exception())
    if last.end is AttemptEnd.OUT_OF_MEMORY:
        return f"it ran out of memory ({last.cause})"
    return f"its process ended ({last.cause})"


def main(descriptor: int) -> int:
    """Host what the daemon at the other end of the socket says."""
    channel = Channel(socket.socket(fileno=descriptor))
    header, _ = channel.receive()
    order = msgspec.msgpack.decode(header, type=driven.HostKernel)
    link = Link(channel)
    try:
        cluster = connect(order.cluster)
    except KosError as error:
        link.send(driven.Failed(str(error), EXIT_LOST))
        return EXIT_LOST
    threading.Thread(target=watch, args=(channel, cluster), name="watch", daemon=True).start()
    try:
        job = cluster.launch(_spec(order, link), order.id)
        future = job.add(serialise.dumps_args((order.folder,), {}))
        concurrent.futures.wait([future])
        sentence = _how_it_ended(future, job.story(0))
    except KosError as refused:
        sentence = str(refused)
    link.send(driven.Failed(sentence, 1))
    cluster.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
