"""The driver of a detached job: a client process that holds its tasks in its submitter's stead. A daemon starts it.

Theory of operation. The driver connects as the client of this machine, opens the job under its own id, and runs those
tasks that have no result yet. Outcomes go to the daemon as they come, those of `COLLECT_S` together; the daemon commits
them by agreement. It tells the daemon, when asked, why tasks wait, which only an owner knows. It has no state: when it
is lost, another goes on from what is committed.

Rules. User code does not run here; results stay pickled, but a program's, whose exit code is wanted. They all come
here, however large, since a copy in shared memory ends with its node. When the daemon closes the channel the driver
ends at once, and with it all that it has at nodes. With `retries=0` a task that a lost driver may have started is not
started again.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from kos_cluster.core.records import JobSummary, indices_of
from kos_cluster.core.replicated.jobs import INLINE_LIMIT_BYTES
from kos_cluster.errors import KosError, ProtocolError, TaskLostError
from kos_cluster.home import private_folder
from kos_cluster.net import driven
from kos_cluster.net.channel import Channel
from kos_cluster.net.standing import Standing
from kos_cluster.tasks import bundle, failures, serialise
from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.futures import Future, Outcome, Settled
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.script import CommandResult

COLLECT_S = 0.05  # for which outcomes are gathered
COLLECTED_LIMIT_BYTES = 32 << 20  # and at most so much
EXIT_LOST = 3  # the daemon has closed the channel, or there was no cluster to connect to

_encode = msgspec.msgpack.encode


class Link:
    """The channel to the daemon; its messages are sent by several threads."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def send(self, message: driven.FromDriver, payload: bytes = b"") -> None:
        with self._lock:
            self._channel.send(_encode(message), payload)

    # ---- tasks.output.Sink

    def write(self, task: str, stream: str, data: bytes) -> None:
        self.send(driven.Wrote(), data)

    def display(self, task: str, content: dict[str, Any]) -> None:
        """A detached job has no notebook; its plain text is output like any other."""
        text = content.get("data", {}).get("text/plain")
        if text:
            self.send(driven.Wrote(), f"{text}\n".encode())

    def progress(self, summary: JobSummary, waits: str) -> None:
        """`kos ps` shows it."""

    def finished(self, summary: JobSummary) -> None:
        """See `progress`."""


class Driver:
    """Drives one job to its end."""

    def __init__(self, link: Link, order: driven.Drive, cluster: Cluster) -> None:
        self._link = link
        self._order = order
        self._cluster = cluster
        self._inline_bytes = order.inline_bytes
        self._came: queue.SimpleQueue[tuple[int, Settled]] = queue.SimpleQueue()
        self._job: Job | None = None

    def run(self) -> None:
        """Returns when the daemon was told of every outcome. Raises KosError when the job cannot be run."""
        spec, payloads = bundle.unpack(_intact(Path(self._order.bundle), self._order.sha256))
        settled = set(indices_of(self._order.settled))
        waiting = [index for index in range(len(payloads)) if index not in settled]
        if self._order.epoch > 1 and spec.options.retries == 0:
            for index in waiting:
                self._came.put((index, self._not_again(index)))
        else:
            self._launch(spec, payloads, waiting)
        self._tell(len(waiting))

    def _launch(self, spec: JobSpec, payloads: list[bytes], waiting: list[int]) -> None:
        job = self._cluster.launch(dataclasses.replace(spec, sink=self._link, stays=False), id=self._order.job)
        job.resume(payloads, self._order.settled)
        for index in waiting:
            self._follow(job, index)
        job.close()
        self._job = job

    def tell_standing(self) -> None:
        """The daemon has asked why the tasks wait; it gets an answer in any case, as it asks one thing at a time."""
        standing = None
        with suppress(KosError, TimeoutError):  # the connection is being closed, or has no time: it may ask again
            standing = self._job.standing() if self._job is not None else None
        self._link.send(driven.Stands(Standing(*standing) if standing is not None else None))

    def _follow(self, job: Job, index: int) -> None:
        def ended(future: concurrent.futures.Future[Any]) -> None:
            assert isinstance(future, Future)
            self._came.put((index, future.settled()))

        job.future(index).add_done_callback(ended)

    def _not_again(self, index: int) -> TaskLostError:
        return TaskLostError(
            f"Task {self._order.job}.{index} may have run when the node that drove its job was lost, and was not run "
            "again, as its retries are 0.",
            "Give it retries, if it may run more than once.",
        )

    def _tell(self, left: int) -> None:
        while left:
            came = [self._came.get()]
            until = time.monotonic() + COLLECT_S
            size_bytes = 0
            while len(came) < left and size_bytes < COLLECTED_LIMIT_BYTES:
                try:
                    came.append(self._came.get(timeout=max(0.0, until - time.monotonic())))
                except queue.Empty:
                    break
                outcome = came[-1][1]
                size_bytes += len(outcome.payload) if isinstance(outcome, Outcome) else 0
            left -= len(came)
            self._settle(came)

    def _settle(self, came: list[tuple[int, Settled]]) -> None:
        """Hand outcomes to the daemon, in the state while there is room, else as a file."""
        exit_codes: dict[int, int] = {}
        outcomes: dict[int, bytes] = {}
        for index, settled in came:
            outcome = settled if isinstance(settled, Outcome) else self._as_outcome(index, settled)
            exit_codes[index] = self._exit_code(outcome, settled)
            outcomes[index] = bundle.pack_outcome(outcome)
        size_bytes = sum(map(len, outcomes.values()))
        packed = bundle.pack_outcomes(outcomes)
        if self._inline_bytes + size_bytes <= INLINE_LIMIT_BYTES:
            self._inline_bytes += size_bytes
            self._link.send(driven.Settled(exit_codes), packed)
            return
        path = private_folder(Path(self._order.spool)) / f"results-{secrets.token_hex(8)}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(packed)
        self._link.send(driven.Settled(exit_codes, str(path), hashlib.sha256(packed).hexdigest()))

    def _exit_code(self, outcome: Outcome, settled: Settled) -> int:
        if isinstance(settled, KosError):
            return settled.exit_code
        if outcome.failed:
            return 1
        result = outcome.value() if self._order.programs else None
        return result.exit_code if isinstance(result, CommandResult) else 0

    def _as_outcome(self, index: int, error: BaseException | None) -> Outcome:
        """The end of a task that has no outcome of its own: an error of KOS, or None for cancelled."""
        failure = failures.failure_of(
            error or concurrent.futures.CancelledError(),
            node=os.environ.get("KOS_NODE", ""),
            task=f"{self._order.job}.{index}",
            attempt=self._order.epoch,
            cancelled=error is None,
        )
        pickled = serialise.dumps_result(msgspec.structs.replace(failure, traceback=""))
        assert isinstance(pickled, bytes)
        return Outcome(pickled, failed=True)


def _intact(path: Path, sha256: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ProtocolError(f"The work of the job in {path} is damaged.", "Submit it again.")
    return data


def watch(channel: Channel, cluster: Cluster, asked: Callable[[], None] | None = None) -> None:
    """End with the daemon, wherever the rest of this process is; goodbye frees the work. `asked`: at each message."""
    try:
        while True:
            channel.receive()
            if asked is not None:  # in a thread of its own, as the end must be seen whatever comes of it
                threading.Thread(target=asked, name="asked", daemon=True).start()
    except (EOFError, OSError):
        cluster.close()
        os._exit(EXIT_LOST)


def main(descriptor: int) -> int:
    """Drive what the daemon at the other end of the socket says."""
    channel = Channel(socket.socket(fileno=descriptor))
    header, _ = channel.receive()
    order = msgspec.msgpack.decode(header, type=driven.Drive)
    try:
        cluster = connect(order.cluster)
    except KosError as error:
        print(f"The driver of job {order.job} cannot connect: {error}", file=sys.stderr)
        return EXIT_LOST
    link = Link(channel)
    driver = Driver(link, order, cluster)
    threading.Thread(target=watch, args=(channel, cluster, driver.tell_standing), name="watch", daemon=True).start()
    try:
        driver.run()
    except KosError as error:
        link.send(driven.Failed(str(error), error.exit_code))
    cluster.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
