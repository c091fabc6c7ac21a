"""What an engine is: what `services.engines.dask` and `services.engines.ray` implement, and a third would.

Theory of operation. An engine has one head (Dask's scheduler, Ray's head) and workers. Each is a rank: its process is
a KOS worker, which was placed as a gang's rank is, starts what the engine needs with `head` or `worker`, and serves
until it is stopped. Whoever uses the engine connects with `connect`, from any process that may submit; the supervisor
does too, to see how it stands and to let workers go.

Rules. Everything listens on the `host` of its `Place`, what a browser shows on the loopback alone; nothing on 0.0.0.0.
Every link has the mutual TLS of the place's `Credentials`; the links that an engine cannot encrypt are named in
`plaintext`, and it is started only where that is allowed. What the engine starts (processes, files) ends with its rank,
also when that is killed. How lost workers and tasks come back is the engine's own business.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import msgspec

from kos_cluster.tasks.enginekeys import Credentials as Credentials

T = TypeVar("T")
Write = Callable[[str, str], None]  # stream ("stdout", or what else the call names so) and text


class Place(msgspec.Struct, frozen=True):
    """What a head or worker has to itself."""

    engine: str  # the name of the engine that it belongs to
    host: str  # the address of its node, by which the others reach it
    cpus: int
    memory_bytes: int  # beyond which KOS stops it; 0: no limit
    folder: str  # of its own, for what it keeps in files; removed with its rank, however that ends
    credentials: Credentials


class Address(msgspec.Struct, frozen=True):
    """Where a head is found."""

    head: str  # as the engine writes addresses, "tls://10.0.0.1:8786"
    dashboard: int = 0  # its port on the loopback of the head's node; 0: it has none


class Standing(msgspec.Struct, frozen=True):
    """How an engine stands, as its head says."""

    workers: list[str]  # those that work, as the engine names them
    waiting: int  # tasks
    running: int
    held_bytes: int  # of results that the engine keeps


class Head(Protocol):
    """A head that accepts connections."""

    @property
    def address(self) -> Address: ...

    def serve(self, stop: threading.Event) -> None:
        """Return soon after `stop` was set, with everything ended. Raises EngineError when the head has died."""


class Worker(Protocol):
    """A worker that its head knows."""

    def serve(self, stop: threading.Event) -> None:
        """Return soon after `stop` was set, or when the head has let it go. Raises EngineError when it has died."""


class Task(Protocol):
    """What a call has of the engine that runs it. Any thread of its process may use it."""

    @property
    def stopped(self) -> threading.Event:
        """Set when the call's future was cancelled: the call is to return soon, whatever it returns."""

    def write(self, stream: str, text: str) -> None:
        """Send a text to whoever submitted the call: at once, or in pieces.

        Texts come in their order, all before the future is done.
        """


class Connection(Protocol):
    """An open way to an engine. Any thread may use it."""

    @property
    def client(self) -> Any:
        """The engine's own: a `distributed.Client`, the module `ray` connected. What `cluster.engine` returns."""

    @property
    def usable(self) -> bool:
        """Whether it leads to its head still, for all that is known here."""

    def submit(
        self, call: Callable[[Task], T], /, *, cpus: int = 1, retries: int = 0, write: Write | None = None
    ) -> concurrent.futures.Future[T]:
        """Run `call(task)` in a process of a worker, in any thread there; KOS's own calls are `calls.HostedCall`.

        Its exception is the future's; TaskLostError when its worker was lost more than `retries` times. What it says
        by `task.write` is passed to `write`, in one thread. The future stays pending until it is done, so that it can
        be cancelled at any time: one that waits is not run, in one that runs `task.stopped` is set.
        """

    def standing(self) -> Standing:
        """Raises UnreachableError when the head does not answer within 2 s."""

    def retire(self, count: int) -> list[str]:
        """Let so many workers go, with what they hold passed to the others first; the names of those."""

    def close(self) -> None:
        """Leave; the engine goes on."""


class Engine(Protocol):
    """One kind of engine. Its module has one, named ENGINE, and imports the engine's packages when they are used."""

    @property
    def kind(self) -> str:
        """As it is typed: "dask"."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The modules that nodes and clients need: ("distributed",)."""

    @property
    def plaintext(self) -> tuple[str, ...]:
        """The links that it cannot encrypt, each as the sentence of a refusal names it."""

    @property
    def dashboard_path(self) -> str:
        """Of its dashboard's first page: "/"."""

    @property
    def dashboard_asks(self) -> bool:
        """Whether its dashboard asks a browser for the engine's secret."""

    def head(self, place: Place) -> Head:
        """Start a head. Raises EngineError with what it said."""

    def worker(self, place: Place, address: Address) -> Worker:
        """Start a worker. Raises EngineError with what it said."""

    def connect(self, address: Address, credentials: Credentials) -> Connection:
        """Raises UnreachableError, AuthError."""
