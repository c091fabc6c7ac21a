"""Dask as an engine: the head is a `distributed.Scheduler`, each worker a `distributed.Nanny` with one worker process.

Theory of operation. Scheduler and nannies run on event loops of their own in the processes of their ranks; the nanny
starts the worker process, and starts it anew by Dask's own rules when it dies. All links are Dask's TLS, for which the
place's PEM texts go into a `Security`. Calls are plain Dask tasks. What a call says, and that it is to stop, travel as
Dask's events and by `Client.run`; how often it may be lost is noted at the scheduler, see `daskcalls`.

Memory. KOS kills a rank that holds more than was declared, with all that it has started. Dask has rules of its own:
from 60 % of a worker's limit it spills, from 80 % it pauses, at 95 % the nanny starts the worker anew. These must act
first, as they lose less. So Dask's limit lies below what was declared: by what the nanny's own process holds, and by a
share for what a worker takes between two looks, of which both make ten a second.

Rules. Nothing listens but on the place's host, and what serves HTTP on the loopback. Files lie in the place's folder.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import secrets
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from kos_cluster.errors import AuthError, EngineError, KosError, TaskLostError, UnreachableError
from kos_cluster.services.engines.engine import Address, Credentials, Place, Standing, Write

if TYPE_CHECKING:
    from kos_cluster.services.engines.engine import Connection, Head, Task, Worker

START_TIMEOUT_S = 60.0  # for a head or a worker
CONNECT_TIMEOUT_S = 10.0
STANDING_TIMEOUT_S = 2.0
RETIRE_TIMEOUT_S = 60.0  # for workers to pass on what they hold
POLL_S = 0.1  # between two looks at a head or worker
CLOSE_TIMEOUT_S = 0.25
NANNY_BYTES = 96 << 20  # that a nanny's own process holds
LIMIT_PERCENT = 90  # of the rest, as Dask's limit of a worker
LOOPBACK = "127.0.0.1"

T = TypeVar("T")


class Dask:
    """The engine."""

    kind = "dask"
    packages = ("distributed",)
    plaintext = ()
    dashboard_path = "/status"
    dashboard_asks = False

    def head(self, place: Place) -> Head:
        return _Head(place)

    def worker(self, place: Place, address: Address) -> Worker:
        return _Worker(place, address)

    def connect(self, address: Address, credentials: Credentials) -> Connection:
        return _Connection(address, credentials)


ENGINE = Dask()


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="kos-dask", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def soon(self, act: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(act)


class _Server:
    """A scheduler or nanny, and the loop that it runs on."""

    def __init__(self, what: str, made: Callable[[], Any]) -> None:
        async def started() -> Any:
            return await made()

        self._loop = _Loop()
        try:
            self.dask = self._loop.run(started(), START_TIMEOUT_S)
        except Exception as error:
            raise EngineError(f"The {what} of Dask did not start: {error or type(error).__name__}.") from error

    def later(self, act: Callable[[Any], None]) -> None:
        """Do something with it on its loop, soon."""
        self._loop.soon(lambda: act(self.dask))

    def serve(self, stop: threading.Event) -> None:
        """Until it has ended, or is to."""
        from distributed.core import Status

        while not stop.wait(POLL_S):
            if self.dask.status in (Status.closed, Status.failed):
                return
        self._loop.run(self.dask.close(), CLOSE_TIMEOUT_S)


class _Head:
    def __init__(self, place: Place) -> None:
        from distributed import Scheduler

        from kos_cluster.services.engines.daskcalls import AtHead

        self._shows = importlib.util.find_spec("bokeh") is not None
        self._server = _Server(
            "scheduler",
            lambda: Scheduler(
                host=place.host,
                port=0,
                protocol="tls",
                security=_security(place.credentials),
                dashboard=False if self._shows else None,  # None: one page, which says that bokeh is missing
                dashboard_address=f"{LOOPBACK}:0",
                plugins=[AtHead()],
            ),
        )

    @property
    def address(self) -> Address:
        return Address(self._server.dask.address, self._server.dask.http_server.port)

    def serve(self, stop: threading.Event) -> None:
        if self._shows:
            self._server.later(_show_dashboard)
        self._server.serve(stop)
        if not stop.is_set():
            raise EngineError("Dask's scheduler has ended by itself.", "See its rank's output with 'kos logs'.")


def _show_dashboard(scheduler: Any) -> None:
    """Only now, as to load it takes a second, for which workers and clients would have to wait."""
    import distributed.dashboard.scheduler as shown

    shown.connect(scheduler.http_application, scheduler.http_server, scheduler, prefix="/")


class _Worker:
    def __init__(self, place: Place, address: Address) -> None:
        from distributed import Nanny

        self._server = _Server(
            "worker",
            lambda: Nanny(
                address.head,
                host=place.host,
                security=_security(place.credentials),
                nthreads=place.cpus,
                resources={CPUS: place.cpus},
                memory_limit=memory_limit(place.memory_bytes),
                local_directory=place.folder,
                dashboard_address=f"{LOOPBACK}:0",  # else its HTTP server listens on the place's host
            ),
        )

    def serve(self, stop: threading.Event) -> None:
        from distributed.core import Status

        self._server.serve(stop)
        if self._server.dask.status == Status.failed:
            raise EngineError("Dask's nanny could not start its worker anew.", "See its rank's output with 'kos logs'.")


CPUS = "kos-cpus"  # a resource of Dask's workers


def memory_limit(memory_bytes: int) -> int | str:
    """Dask's limit of a worker whose rank may hold so much; "auto" is Dask's own share of the machine."""
    return (memory_bytes - NANNY_BYTES) * LIMIT_PERCENT // 100 if memory_bytes else "auto"


def _security(credentials: Credentials) -> Any:
    from distributed import Security

    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=credentials.authority,
        **{f"tls_{role}_cert": credentials.certificate for role in roles},
        **{f"tls_{role}_key": credentials.key for role in roles},
    )


class _Connection:
    def __init__(self, address: Address, credentials: Credentials) -> None:
        import distributed

        from kos_cluster.services.engines.daskcalls import TOPIC

        self._address = address
        self._writes: dict[str, Write] = {}  # of calls that have not ended
        self._cancelled: list[str] = []  # calls that are to be stopped
        try:
            self.client = distributed.Client(address.head, security=_security(credentials), timeout=CONNECT_TIMEOUT_S)
        except OSError as error:
            raise _refusal(address, error) from error
        self._topic = TOPIC + self.client.id
        self.client.subscribe_topic(self._topic, self._said)

    @property
    def usable(self) -> bool:
        return bool(self.client.status == "running")

    def submit(
        self, call: Callable[[Task], T], /, *, cpus: int = 1, retries: int = 0, write: Write | None = None
    ) -> concurrent.futures.Future[T]:
        import dask

        from kos_cluster.services.engines.daskcalls import RETRIES, Call

        id_ = secrets.token_hex(8)
        if write is not None:
            self._writes[id_] = write
        outer: concurrent.futures.Future[T] = concurrent.futures.Future()
        with dask.annotate(**{RETRIES: retries}):
            inner = self.client.submit(
                Call(call, id_, self._topic),
                key=f"kos-call-{id_}",
                pure=False,
                resources={CPUS: cpus} if cpus > 1 else None,
            )
        outer.add_done_callback(lambda done: self._ended(id_, inner, done.cancelled()))
        self.client.loop.add_callback(self._follow, inner, outer)
        return outer

    def standing(self) -> Standing:
        from kos_cluster.services.engines.daskcalls import COUNTED

        ask = getattr(self.client.scheduler, COUNTED)
        workers, waiting, running, held_bytes = self._asked(ask, timeout_s=STANDING_TIMEOUT_S)
        return Standing(list(workers), waiting, running, held_bytes)

    def retire(self, count: int) -> list[str]:
        let_go = self._asked(
            self.client.scheduler.retire_workers, n=count, close_workers=True, timeout_s=RETIRE_TIMEOUT_S
        )
        return sorted(let_go)

    def close(self) -> None:
        self.client.close()

    # ---- inside

    def _asked(self, ask: Callable[..., Any], *args: Any, timeout_s: float, **keywords: Any) -> Any:
        try:
            return self.client.sync(ask, *args, callback_timeout=timeout_s, **keywords)
        except (OSError, TimeoutError, RuntimeError) as error:
            raise UnreachableError(
                f"The head of the engine at {self._address.head} does not answer: {error or 'no answer in time'}.",
                "Type 'kos engine list' to see how it is.",
            ) from error

    def _said(self, event: tuple[float, Any]) -> None:
        """An event of a call; Dask's thread calls it."""
        id_, stream, text = event[1]
        write = self._writes.get(id_)
        if write is not None:
            write(stream, text)

    async def _follow(self, inner: Any, outer: concurrent.futures.Future[Any]) -> None:
        """Settle a call's future with what has become of its task."""
        from distributed import KilledWorker

        try:
            value = await inner._result()
        except KilledWorker as error:
            _settle(outer, error=TaskLostError(f"A call was lost with its worker: {error}", "Give it more retries."))
        except (concurrent.futures.CancelledError, asyncio.CancelledError):  # not ours: `_ended` is for those
            _settle(outer, error=TaskLostError("A call was lost with the head of its engine, or the way to it."))
        except BaseException as error:
            _settle(outer, error=error)
        else:
            _settle(outer, value)

    def _ended(self, id_: str, inner: Any, cancelled: bool) -> None:
        self._writes.pop(id_, None)
        if not cancelled:
            return
        if self.client.asynchronous:  # this is Dask's own thread, which cannot wait for itself
            self.client.loop.add_callback(inner.cancel)
        else:
            inner.cancel()  # the scheduler has heard of it then
        self._cancelled.append(id_)
        self.client.loop.add_callback(self._stop_cancelled)

    async def _stop_cancelled(self) -> None:
        """Those that were cancelled together are stopped together."""
        from kos_cluster.services.engines.daskcalls import stop

        cancelled, self._cancelled = self._cancelled, []
        if cancelled:
            await self.client.run(stop, cancelled, on_error="ignore")


def _settle(outer: concurrent.futures.Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    """Unless it was cancelled."""
    if not outer.set_running_or_notify_cancel():
        return
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(value)


def _refusal(address: Address, error: OSError) -> KosError:
    """Why there is no connection: TLS refuses strangers, all else is a matter of the way there."""
    cause: BaseException | None = error
    while cause is not None:
        if "SSL" in f"{type(cause).__name__} {cause}" or "certificate" in str(cause):
            return AuthError(
                f"The engine at {address.head} and this program refuse each other's certificates: {cause}.",
                "It is another engine's, or a certificate has ended: see 'kos engine list'.",
            )
        cause = cause.__cause__ or cause.__context__
    return UnreachableError(
        f"The engine at {address.head} cannot be reached: {error}.", "Type 'kos engine list' to see how it is."
    )
