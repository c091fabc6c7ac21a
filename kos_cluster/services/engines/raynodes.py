"""A Ray's head and workers: `ray start --block` in an enclosure, with what it may take and where it listens.

Theory of operation. Each rank runs one `ray start`, which starts Ray's own processes and ends when one of them dies.
It runs in an enclosure, so all of it ends with its rank. The rank asks the control store whether its raylet is known,
and, as a worker, whether it was let go.

The head has no CPUs for tasks: it keeps the store, the dashboard and the drivers of clients on other machines. A
worker has those of its place. Of the place's memory `OBJECTS_PERCENT` go to Ray's object store, which is shared memory
in /dev/shm and counts for KOS as all does that the rank's processes hold; `OWN_BYTES` are for Ray's own processes; the
rest is what tasks may ask for. Without a limit the object store takes `OBJECTS_BYTES`, or half of what /dev/shm has
free. What does not fit Ray spills to the place's folder.

Rules. Ray's files and sockets lie in the place's folder, which it is told as a path beneath /proc: the paths of UNIX
sockets may have 107 characters, and those of KOS's folders are longer. Ports are chosen here, so that the raylet does
not wait for those of its agents (15 s, within which they must have been loaded).
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

from kos_cluster.errors import EngineError, KosError, UnreachableError
from kos_cluster.services.engines import rayenvironment, raystart
from kos_cluster.services.engines.enclosure import Enclosure
from kos_cluster.services.engines.engine import Address, Place
from kos_cluster.services.engines.raygcs import Gcs, Node
from kos_cluster.services.engines.raystart import START_TIMEOUT_S

LOOK_S = 0.2
ASK_S = 1.0  # between two questions to the control store
OBJECTS_PERCENT = 30  # as Ray has it
OBJECTS_BYTES = 1 << 30
OBJECTS_LEAST_BYTES = 80_000_000  # Ray takes no less than 75 MiB
HEAD_OWN_BYTES = 1400 << 20  # 860 MiB were measured of one that had just started, and room to grow
WORKER_OWN_BYTES = 500 << 20  # estimated, not measured
TASKS_LEAST_BYTES = 100 << 20
TOLD_LINES = 4  # of what Ray said, in an error
LOOPBACK = "127.0.0.1"


class RayHead:
    """Implements `engine.Head`."""

    def __init__(self, place: Place) -> None:
        store, client, dashboard = (_free_port(host) for host in (place.host, place.host, LOOPBACK))
        self.address = Address(f"{place.host}:{store},{client}", dashboard)
        self._node = _Started(
            place,
            f"{place.host}:{store}",
            [
                "--head",
                f"--port={store}",
                "--num-cpus=0",
                f"--ray-client-server-port={client}",
                "--include-dashboard=true",
                f"--dashboard-host={LOOPBACK}",
                f"--dashboard-port={dashboard}",
                *_memory(place, HEAD_OWN_BYTES),
            ],
        )

    def serve(self, stop: threading.Event) -> None:
        try:
            while not stop.wait(LOOK_S):
                if self._node.ended:
                    raise EngineError(f"The head of Ray has ended: {self._node.said}.", _HINT)
        finally:
            self._node.close()


class RayWorker:
    """Implements `engine.Worker`."""

    def __init__(self, place: Place, address: Address) -> None:
        store = store_of(address)
        arguments = [f"--address={store}", f"--num-cpus={place.cpus}", *_memory(place, WORKER_OWN_BYTES)]
        self._node = _Started(place, store, arguments)

    def serve(self, stop: threading.Event) -> None:
        asked_s = time.monotonic()
        try:
            while not stop.wait(LOOK_S):
                if self._node.ended:
                    raise EngineError(f"A worker of Ray has ended: {self._node.said}.", _HINT)
                if time.monotonic() - asked_s > ASK_S:
                    asked_s = time.monotonic()
                    if self._node.let_go():
                        return
        finally:
            self._node.close()


_ENDED = "[exit code="
_CHATTER = ("\tINFO ", "\tSUCC ")  # the levels of its log that tell nothing of an end
_HINT = "See its rank's output with 'kos logs'."


def store_of(address: Address) -> str:
    """Where the control store is."""
    return address.head.partition(",")[0]


def client_of(address: Address) -> str:
    """Where Ray Client connects to."""
    host, _, ports = address.head.rpartition(":")
    return f"ray://{host}:{ports.partition(',')[2]}"


class _Started:
    """One `ray start` whose raylet the control store knows."""

    def __init__(self, place: Place, store: str, arguments: list[str]) -> None:
        self._folder = Path(place.folder) / "ray"
        self._folder.mkdir(mode=0o700)
        self._held = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._temp_dir = f"/proc/{os.getpid()}/fd/{self._held}"
        self._said = ""
        self._gcs = Gcs(store, place.credentials)
        self._enclosure = Enclosure(
            [sys.executable, "-m", raystart.__name__, "start", "--block", *arguments, *_common(place, self._temp_dir)],
            self._folder,
            rayenvironment.of_node(place.credentials, os.environ),
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        self._said = self._enclosure.said or self._said
        return self._enclosure.ended

    @property
    def said(self) -> str:
        """What Ray said of its end, in a line: which of its processes ended, else its last words but for the usual."""
        lines = [line.strip() for line in self._said.splitlines() if line.strip()]
        ended = [line for line in lines if _ENDED in line]
        telling = ended or [line for line in lines if not any(mark in line for mark in _CHATTER)]
        return "; ".join(telling[-TOLD_LINES:]).rstrip(".") or "it was killed"

    def let_go(self) -> bool:
        """Whether it has ended because it was to."""
        try:
            return any(node.let_go for node in self._mine())
        except UnreachableError:  # the head is gone, or busy: the supervisor looks to that
            return False

    def close(self) -> None:
        self._enclosure.close()
        self._gcs.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _wait(self) -> None:
        until_s = time.monotonic() + START_TIMEOUT_S
        while not self.ended:
            try:
                if any(node.alive for node in self._mine()):
                    return
            except KosError as error:
                if time.monotonic() > until_s:
                    raise EngineError(f"Ray did not start: {error.message}", _HINT) from error
            if time.monotonic() > until_s:
                raise EngineError(f"Ray did not start within {START_TIMEOUT_S:g} s: {self.said}.", _HINT)
            time.sleep(LOOK_S)
        raise EngineError(f"Ray did not start: {self.said}.", _HINT)

    def _mine(self) -> list[Node]:
        return [node for node in self._gcs.nodes() if node.temp_dir == self._temp_dir]


def _common(place: Place, temp_dir: str) -> list[str]:
    ports = ("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
    return [
        f"--node-ip-address={place.host}",
        f"--temp-dir={temp_dir}",
        *(f"--{name}={_free_port(place.host)}" for name in ports),
        f"--dashboard-agent-listen-port={rayenvironment.NO_PORT}",
        "--min-worker-port=0",  # any: several raylets may be on a machine
        "--max-worker-port=0",
        "--disable-usage-stats",
        "--log-style=record",
    ]


def _memory(place: Place, own_bytes: int) -> list[str]:
    """What its object store and its tasks may take. Raises EngineError."""
    shared = shutil.disk_usage("/dev/shm").free // 2
    if not place.memory_bytes:
        return [f"--object-store-memory={max(OBJECTS_LEAST_BYTES, min(OBJECTS_BYTES, shared))}"]
    objects = max(OBJECTS_LEAST_BYTES, min(place.memory_bytes * OBJECTS_PERCENT // 100, shared))
    tasks = place.memory_bytes - objects - own_bytes
    if tasks < TASKS_LEAST_BYTES:
        least = own_bytes + OBJECTS_LEAST_BYTES + TASKS_LEAST_BYTES
        raise EngineError(
            f"{place.memory_bytes >> 20} MiB are too little for Ray: its own processes take {own_bytes >> 20} MiB, "
            f"and its object store {objects >> 20} MiB.",
            f"Give it {least * 3 // 2 >> 20}M or more, or none for no limit.",
        )
    return [f"--object-store-memory={objects}", f"--memory={tasks}"]


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
