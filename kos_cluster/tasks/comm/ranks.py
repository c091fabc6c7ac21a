"""What runs in a rank's worker before user code does, and how user code finds its communicator.

Theory of operation. The task of a rank is its function, wrapped. The wrapper listens, tells the owner where, and waits
until the owner tells where all are; then it sets the variables that launchers of other libraries set (torchrun's), and
calls the function. A program gets the same variables, and its listening sockets as descriptors: it makes its own
communicator when it first asks for one. What they speak with holds arrays, so it is imported in ranks alone: every
`kos` command comes by here, and would load numpy for nothing.

Rules: user code runs only when every rank is in place. `MASTER_PORT` is kept free for whatever listens there with
SO_REUSEADDR, as torch's store does; what other libraries send is theirs, and not encrypted by KOS.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from kos_cluster.errors import RankGoneError, StateError, UsageError
from kos_cluster.home import Home
from kos_cluster.net.channel import Channel
from kos_cluster.net.identity import Credentials
from kos_cluster.net.local import HOST_VARIABLE
from kos_cluster.tasks.comm.checkpoints import Checkpointer
from kos_cluster.tasks.comm.table import Table
from kos_cluster.tasks.context import here

if TYPE_CHECKING:
    from kos_cluster.tasks.comm.communicator import Communicator
    from kos_cluster.tasks.comm.endpoint import Listeners

RANK_GONE_CODE = 75  # of a program that ended because another rank had (EX_TEMPFAIL)
DESCRIPTORS = "KOS_RANK_FDS"  # in a program's environment: its listeners and its table

_current: Communicator | None = None
_checkpointer: Checkpointer | None = None


def comm() -> Communicator:
    """This rank's communicator. Raises UsageError outside of a gang."""
    return _own("comm")


def _own(called: str) -> Communicator:
    global _current
    if _current is None and DESCRIPTORS in os.environ:
        _current = _inherited(os.environ.pop(DESCRIPTORS))
    if _current is None:
        raise UsageError(
            f"kos.{called}() was called outside of a gang.",
            "Call it in a function that cluster.gang() runs, or in a script that 'kos run --gang N' starts.",
        )
    return _current


def checkpoint(state: Any) -> int:
    """Hand in this rank's state for the gang's next checkpoint, which counts once all ranks have; all ranks call it.

    Returns its number, from 1. Raises UsageError outside of a gang, NotPicklableError, LimitError.
    """
    return _own_checkpointer("checkpoint").checkpoint(state)


def restored() -> Any:
    """In a gang that was started anew: what this rank handed in for the last checkpoint. None where there was none."""
    return _own_checkpointer("restored").restored()


def _own_checkpointer(called: str) -> Checkpointer:
    _own(called)  # a program's is made when it first asks
    assert _checkpointer is not None
    return _checkpointer


class RankCall:
    """A function as the task of each rank."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.__qualname__ = getattr(fn, "__qualname__", type(fn).__name__)

    def __reduce__(self) -> Any:
        return RankCall, (self.fn,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        global _current, _checkpointer
        from kos_cluster.tasks.comm.communicator import Communicator
        from kos_cluster.tasks.comm.endpoint import Endpoint

        listeners, table = _meet()
        os.environ.update(variables(table, here.index))
        _current = Communicator(Endpoint(here.index, table, listeners, _own_credentials))
        _checkpointer = Checkpointer(_current, table.checkpoint, _ask_owner)
        try:
            return self.fn(*args, **kwargs)
        finally:
            _current.close()
            _current = _checkpointer = None


class ProgramCall:
    """A function that starts a program, as the task of each rank: it is called with `pass_fds` beside its own.

    A program that ends with another exit code than 0 ends its rank with that, so that the others do not wait for it.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __reduce__(self) -> Any:
        return ProgramCall, (self.fn,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        listeners, table = _meet()
        with _table_file(table) as file, _forwarded() as asking:
            sockets = (listeners.remote, listeners.local, listeners.held, asking)
            descriptors = (*(each.fileno() for each in sockets), file)
            os.environ.update(variables(table, here.index))
            os.environ[DESCRIPTORS] = ",".join(map(str, descriptors))
            try:
                result = self.fn(*args, **kwargs, pass_fds=descriptors)
            finally:
                listeners.close()
        if result.exit_code == RANK_GONE_CODE:
            raise RankGoneError(f"The program of rank {here.index} waited for a rank that has ended.")
        if result.exit_code:
            raise SystemExit(result.exit_code)
        return result


def variables(table: Table, rank: int) -> Mapping[str, str]:
    """What torch.distributed and others read."""
    near, first = table.neighbours(rank), table.places[0]
    return {
        "MASTER_ADDR": first.host,
        "MASTER_PORT": str(first.address.master_port),
        "RANK": str(rank),
        "WORLD_SIZE": str(len(table.places)),
        "LOCAL_RANK": str(near.index(rank)),
        "LOCAL_WORLD_SIZE": str(len(near)),
    }


def _meet() -> tuple[Listeners, Table]:
    """Say where this rank listens, and wait for the others."""
    from kos_cluster.tasks.comm.endpoint import Listeners

    assert here.meet is not None
    try:
        listeners = Listeners.open(os.environ.get(HOST_VARIABLE) or "127.0.0.1")
    except OSError as error:
        raise StateError(f"Rank {here.index} cannot listen on node {here.node}: {error}.", "See its limits.") from None
    data = here.meet(here.batch, here.index, msgspec.msgpack.encode(listeners.address()))
    return listeners, msgspec.msgpack.decode(data, type=Table)


def _ask_owner(said: bytes) -> bytes:
    assert here.meet is not None
    return here.meet(here.batch, here.index, said)


@contextmanager
def _forwarded() -> Iterator[socket.socket]:
    """What a program asks its gang's owner through; a thread passes it on."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_pass_on, args=(Channel(ours),), name="kos-checkpoints", daemon=True)
    thread.start()
    try:
        yield theirs
    finally:
        theirs.close()
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()
        ours.close()


def _pass_on(channel: Channel) -> None:
    """The thread. A task that is interrupted answers no more."""
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            _, said = channel.receive()
            channel.send(b"", _ask_owner(said))


def _asked_through(channel: Channel) -> Callable[[bytes], bytes]:
    def ask(said: bytes) -> bytes:
        channel.send(b"", said)
        return channel.receive()[1]

    return ask


@contextmanager
def _table_file(table: Table) -> Iterator[int]:
    file = os.memfd_create("kos-table")
    try:
        os.write(file, msgspec.msgpack.encode(table))
        yield file
    finally:
        os.close(file)


def _inherited(descriptors: str) -> Communicator:
    """The communicator of a program. Raises StateError when its descriptors are not there (any more)."""
    global _checkpointer
    from kos_cluster.tasks.comm.communicator import Communicator
    from kos_cluster.tasks.comm.endpoint import Endpoint, Listeners

    try:
        remote, local, held, asking, file = map(int, descriptors.split(","))
        table = msgspec.msgpack.decode(os.pread(file, os.fstat(file).st_size, 0), type=Table)
        listeners = Listeners(*(socket.socket(fileno=fd) for fd in (remote, local, held)))
        made = Communicator(Endpoint(int(os.environ["RANK"]), table, listeners, _own_credentials))
        channel = Channel(socket.socket(fileno=asking))
        _checkpointer = Checkpointer(made, table.checkpoint, _asked_through(channel))
    except (OSError, ValueError, KeyError, msgspec.MsgspecError) as error:
        raise StateError(
            f"This process cannot be a rank of its gang: {error}.",
            "Call kos.comm() in the program that 'kos run --gang' started itself, not in one that it starts.",
        ) from None
    _tell_when_gone()
    return made


def _tell_when_gone() -> None:
    """Let the end of another rank be told from an error of this one, by the exit code."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        shown(kind, error, frames)
        if isinstance(error, RankGoneError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(RANK_GONE_CODE)

    sys.excepthook = hook


def _own_credentials() -> Credentials:
    return Credentials.load(Home().cluster().client)
