"""What each rank of an engine runs: its head, or one of its workers.

Theory of operation. Rank 0 of an engine's first gang starts the head and tells the other ranks where it is; those start
a worker each and say when the head knows it. When all have, the head writes its address into a register, where the
supervisor finds it. Gangs that come later, for more workers or in place of lost ones, are told the address.

To connect to the cluster costs a process half a second of a core, so only rank 0 of a gang does, and asks for the
others' certificates too.

Rules. Each rank makes its own key, which never leaves it. Files that an engine keeps lie in a folder
that the fork server removes when the rank's process has ended, however it has ended. A rank is ended by an interrupt;
it has KOS's usual grace to let go, then it and all that it has started are killed.
"""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import kos_cluster as kos
from kos_cluster.home import private_folder
from kos_cluster.net.engineauthority import ends_s, make_request
from kos_cluster.net.local import HOST_VARIABLE
from kos_cluster.services.engines.engine import Address, Credentials, Engine, Place
from kos_cluster.services.engines.kinds import engine_of
from kos_cluster.services.engines.registers import say_began
from kos_cluster.services.engines.spec import Began, Spec
from kos_cluster.tasks.context import here
from kos_cluster.tasks.enginekeys import credentials

if TYPE_CHECKING:
    from kos_cluster.tasks.comm.communicator import Communicator

CLOSE_S = 0.3  # for a rank to let go after its interrupt; its node kills it after 0.4 s
LOOK_S = 0.5  # between two looks for an interrupt, at most


class Serves(Protocol):
    """A head or a worker."""

    def serve(self, stop: threading.Event) -> None: ...


def serve_first(spec: Spec, life: int) -> None:
    """A rank of an engine's first gang: the head, or a worker that waits for it."""
    engine, comm = _loaded(spec.kind), kos.comm()
    place = _place(comm, spec)
    if comm.rank:
        worker = engine.worker(place, comm.recv(0))
        comm.send(True, 0)
        _serve(worker)
        return
    head = engine.head(place)
    for rank in range(1, comm.size):
        comm.send(head.address, rank)
    for rank in range(1, comm.size):
        comm.recv(rank)
    began = Began(spec.id, life, head.address, ends_s(place.credentials.certificate))
    say_began(kos.connect(), spec.name, began)
    _serve(head)


def serve_further(spec: Spec, address: Address) -> None:
    """A worker that comes later."""
    engine = _loaded(spec.kind)
    _serve(engine.worker(_place(kos.comm(), spec), address))


def _loaded(kind: str) -> Engine:
    """The engine, with what it imports: all ranks do that at the same time, before any of them waits for another."""
    engine = engine_of(kind)
    for package in engine.packages:
        importlib.import_module(package)
    return engine


def _place(comm: Communicator, spec: Spec) -> Place:
    host = os.environ.get(HOST_VARIABLE) or "127.0.0.1"
    return Place(
        engine=spec.name,
        host=host,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        folder=str(_folder()),
        credentials=_credentials(comm, spec, host),
    )


def _credentials(comm: Communicator, spec: Spec, host: str) -> Credentials:
    """This rank's keys."""
    key_pem, request_pem = make_request()
    if comm.rank:
        comm.send((request_pem, host), 0)
        return credentials(comm.recv(0), key_pem)
    cluster = kos.connect()
    own = cluster.engine_certificate(spec.id, request_pem, host)
    for rank in range(1, comm.size):
        comm.send(cluster.engine_certificate(spec.id, *comm.recv(rank)), rank)
    return credentials(own, key_pem)


def _folder() -> Path:
    """A folder of this rank's own. The fork server removes what bears its process's number there."""
    assert here.arena is not None  # this is a worker
    return private_folder(here.arena.parent / "workspaces" / f"engine-{os.getpid()}")


def _serve(server: Serves) -> None:
    """Serve in a thread, as an interrupt may come at any moment in this one. Raises what ended it."""
    stop, failure = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            server.serve(stop)
        except BaseException as error:  # whatever it is, the rank has ended by it
            failure.append(error)

    thread = threading.Thread(target=run, name="kos-engine", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(LOOK_S)
    except KeyboardInterrupt:
        stop.set()
        thread.join(CLOSE_S)
        raise
    if failure:
        raise failure[0]
