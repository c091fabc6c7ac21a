"""A client's way to a Ray: the module `ray` connected, calls, and how it stands.

Theory of operation. How Ray stands and that workers are to go is asked of its control store (`raygcs`). What needs a
driver makes this process one, when it is first wanted. A driver shares memory with a raylet of its machine: where a
raylet of this engine runs here under this user, the process is connected to that, else through Ray Client to a process
on the head's node that does it in its stead.

Rules. A process has one Ray: connections to the same engine share it, one to another is refused while it is in use. The
environment of the process then has Ray's settings, which its children inherit. Ray's handler of SIGTERM is not kept.

Limits: `RETIRE_S` for a worker that is to go to end, `TEXTS_TIMEOUT_S` for the texts of a call that has ended.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from kos_cluster.errors import EngineError, KosError, TaskLostError
from kos_cluster.services.engines import raycalls, rayenvironment
from kos_cluster.services.engines.engine import Address, Credentials, Standing, Task, Write
from kos_cluster.services.engines.raygcs import Gcs, Node
from kos_cluster.services.engines.raynodes import client_of, store_of

log = logging.getLogger(__name__)

T = TypeVar("T")
RETIRE_S = 10.0
TEXTS_TIMEOUT_S = 5.0
CLIENT_TRIES = 3
LOOK_TIMEOUT_S = 2.0  # whether a head is there
WATCH_S = 1.0  # between two questions whether the head is there
LOST_S = 5.0  # without an answer, after which calls are lost


class RayConnection:
    """Implements `engine.Connection`."""

    def __init__(self, address: Address, credentials: Credentials) -> None:
        self._address = address
        self._credentials = credentials
        self._gcs = Gcs(store_of(address), credentials)
        self._gcs.check()
        self._lock = threading.Lock()
        self._driving = False
        self._texts: _Texts | None = None
        self._run: Any = None
        self._open: dict[str, concurrent.futures.Future[Any]] = {}  # calls that have not ended
        self._answers = True  # the head, as of the last look
        self._closed = threading.Event()

    @property
    def client(self) -> Any:
        import ray

        with self._lock:
            if not self._driving:
                _drive(self._address, self._credentials)
                self._driving = True
                threading.Thread(target=self._watch, name="kos-ray-watch", daemon=True).start()
        return ray

    @property
    def usable(self) -> bool:
        return self._answers and not self._closed.is_set()

    def submit(
        self, call: Callable[[Task], T], /, *, cpus: int = 1, retries: int = 0, write: Write | None = None
    ) -> concurrent.futures.Future[T]:
        ray = self.client
        id_ = secrets.token_hex(8)
        with self._lock:
            if self._run is None:
                self._run = ray.remote(raycalls.run)
            if write is not None and (self._texts is None or self._texts.ended):
                self._texts = _Texts(ray)
            texts = self._texts if write is not None else None
        outer: concurrent.futures.Future[T] = concurrent.futures.Future()
        relay = None
        if write is not None and texts is not None:
            relay = texts.expect(id_, write, lambda error: self._lose(id_, error))
        task = self._run.options(num_cpus=cpus, max_retries=retries, retry_exceptions=False, name="kos-call")
        self._open[id_] = outer
        outer.add_done_callback(lambda _: self._open.pop(id_, None))
        try:
            inner = task.remote(call, id_, relay)
        except BaseException:
            self._open.pop(id_, None)
            raise
        outer.add_done_callback(lambda done: _stop(ray, inner) if done.cancelled() else None)
        inner.future().add_done_callback(lambda done: self._ended(id_, done, texts))
        return outer

    def standing(self) -> Standing:
        return self._gcs.standing()

    def retire(self, count: int) -> list[str]:
        going = self._gcs.idlest(count)
        for node in going:
            self._gcs.drain(node, RETIRE_S)
        threading.Thread(target=self._see_off, args=(going,), name="kos-retiring", daemon=True).start()
        return [node.id for node in going]

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            driving, self._driving = self._driving, False
            texts, self._texts = self._texts, None
        if texts is not None:
            texts.close()
        if driving:
            _drive_no_more(store_of(self._address))
        self._gcs.close()

    # ---- inside

    def _ended(self, id_: str, done: concurrent.futures.Future[Any], texts: _Texts | None) -> None:
        """Settle a call's future with what its task has come to; a thread of Ray calls it."""
        error = done.exception()
        returned = raycalls.Returned(0, error=_told(error)) if error is not None else done.result()
        if returned.trace and returned.error is not None:
            returned.error.__cause__ = _Remote(returned.trace)
        if texts is not None:
            texts.when_heard(id_, returned.texts, lambda: self._settle(id_, returned))
        else:
            self._settle(id_, returned)

    def _lose(self, id_: str, error: Exception | None) -> None:
        told = "it was closed" if error is None else f"{error}".rstrip(".") or type(error).__name__
        lost = TaskLostError(f"A call was lost with the way to its engine: {told}.")
        self._settle(id_, raycalls.Returned(0, error=lost))

    def _settle(self, id_: str, returned: raycalls.Returned) -> None:
        """Once, as one that was given up may come back after all; and unless it was cancelled."""
        outer = self._open.pop(id_, None)
        if outer is None or not outer.set_running_or_notify_cancel():
            return
        if returned.error is not None:
            outer.set_exception(returned.error)
        else:
            outer.set_result(returned.value)

    def _watch(self) -> None:
        """Look whether the head is there. Fail what is open when it is gone: Ray itself would wait for it."""
        heard_s = time.monotonic()
        while not self._closed.wait(WATCH_S):
            try:
                self._gcs.check()
                heard_s, self._answers = time.monotonic(), True
            except (KosError, ValueError) as error:  # ValueError: it was closed meanwhile
                self._answers = False
                if time.monotonic() - heard_s > LOST_S:
                    lost = TaskLostError(f"A call was lost with the head of its engine: {error}")
                    for id_ in list(self._open):
                        self._settle(id_, raycalls.Returned(0, error=lost))

    def _see_off(self, going: list[Node]) -> None:
        """End those who have not ended by themselves: they hold results, or still run something."""
        until_s = time.monotonic() + RETIRE_S
        left = {node.id: node for node in going}
        try:
            while left and time.monotonic() < until_s:
                time.sleep(0.2)
                alive = {node.id for node in self._gcs.nodes() if node.alive}
                left = {id_: node for id_, node in left.items() if id_ in alive}
            for node in left.values():
                self._gcs.shut_down(node)
        except (KosError, ValueError) as error:  # the head is gone, or this connection was closed
            log.info("workers of Ray that were to go could not be seen off: %s", error)


class _Remote(Exception):
    """The traceback of a call, as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def _stop(ray: Any, inner: Any) -> None:
    ray.cancel(inner, force=False, recursive=False)


def _told(error: BaseException) -> BaseException:
    """What Ray says of a task that did not return."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):  # it could not be unpickled there, or its result not pickled
        return error.cause if isinstance(error.cause, BaseException) else error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return TaskLostError(f"A call was lost: {lines[0].rstrip('.')}.", "Give it more retries.")


@dataclass(eq=False)
class _Expected:
    write: Write
    lost: Callable[[Exception | None], None]  # called when no more can be heard and it has not ended
    heard: int = 0
    awaited: int = -1  # texts that there are, once the call has ended
    then: Callable[[], None] | None = None
    until_s: float = 0.0


class _Texts:
    """What calls say, taken from the relay by a thread."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._relay = ray.remote(raycalls.Relay).options(num_cpus=0, max_concurrency=1000).remote()
        self._lock = threading.Lock()
        self._expected: dict[str, _Expected] = {}
        self._closed = False
        self.ended = False  # nothing can be heard any more
        self._thread = threading.Thread(target=self._take, name="kos-ray-texts", daemon=True)
        self._thread.start()

    def expect(self, id_: str, write: Write, lost: Callable[[Exception | None], None]) -> Any:
        """The relay that this call is to be given."""
        with self._lock:
            self._expected[id_] = _Expected(write, lost)
        return self._relay

    def when_heard(self, id_: str, count: int, then: Callable[[], None]) -> None:
        """Call `then` when so many texts of this call have been written."""
        with self._lock:
            expected = self._expected.get(id_)  # None: it was given up
            if expected is not None:
                expected.awaited, expected.then = count, then
                expected.until_s = time.monotonic() + TEXTS_TIMEOUT_S
            done = expected is None or expected.heard >= count or self.ended
            if done:
                self._expected.pop(id_, None)
        if done:
            then()

    def close(self) -> None:
        self._closed = True
        self._ray.kill(self._relay)

    def _take(self) -> None:
        failure: Exception | None = None
        try:
            while not self._closed:
                self._hear()
        except Exception as error:  # the way is gone: Ray Client raises ConnectionError then
            failure = error
            if not self._closed:
                log.warning("What calls on Ray say is not heard any more: %r", error)
        self._end(failure)

    def _hear(self) -> None:
        try:
            texts = self._ray.get(self._relay.hear.remote())
        except self._ray.exceptions.RayError:
            texts = []
            time.sleep(raycalls.POLL_S)
        for id_, stream, text in texts:
            expected = self._expected.get(id_)
            if expected is not None:
                expected.write(stream, text)
                expected.heard += 1
        self._settle()

    def _end(self, failure: Exception | None) -> None:
        """Nobody waits for what will not come."""
        with self._lock:
            self.ended = True
            left = list(self._expected.values())
            self._expected.clear()
        for each in left:
            if each.then is not None:
                each.then()  # it has ended, and only what it said last is missing
            else:
                each.lost(failure)

    def _settle(self) -> None:
        now = time.monotonic()
        with self._lock:
            done = [
                id_
                for id_, each in self._expected.items()
                if each.then is not None and (each.heard >= each.awaited or now > each.until_s)
            ]
            thens = [self._expected.pop(id_).then for id_ in done]
        for then in thens:
            assert then is not None
            then()


# ---- this process's Ray

_process_lock = threading.Lock()
_store = ""  # of the engine that this process is connected to
_users = 0


def _drive(address: Address, credentials: Credentials) -> None:
    """Connect this process, or count one more who uses it. Raises EngineError."""
    global _store, _users
    import ray

    with _process_lock:
        store = store_of(address)
        if ray.is_initialized() and _store != store:
            if not _store or _listens(_store):
                raise EngineError("This program is connected to another Ray.", "Type ray.shutdown() first.")
            ray.shutdown()  # of an engine that is gone
        if not ray.is_initialized():
            _connect(ray, store, client_of(address), credentials)
            _users = 0
        _store = store
        _users += 1


def _drive_no_more(store: str) -> None:
    global _store, _users
    import ray

    with _process_lock:
        if _store != store:
            return
        _users -= 1
        if _users <= 0:
            ray.shutdown()
            _store = ""


def _listens(store: str) -> bool:
    host, _, port = store.rpartition(":")
    try:
        socket.create_connection((host, int(port)), LOOK_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _connect(ray: Any, store: str, client: str, credentials: Credentials) -> None:
    rayenvironment.enter(credentials)
    if rayenvironment.is_loopback(store):
        rayenvironment.keep_loopback()
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        if _raylet_is_here(store):
            ray.init(store, logging_level=logging.WARNING)
        else:
            _connect_from_afar(ray, client)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise EngineError(
            f"This program could not be connected to the Ray at {store}: {str(error).rstrip('.')}.",
            "Type 'kos engine status ray' to see how it is.",
        ) from error
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _connect_from_afar(ray: Any, client: str) -> None:
    """By Ray Client. The process that it starts on the head's node by a fork may end at once, for what gRPC's threads
    are at in that moment; so more than one is tried.
    """
    for left in reversed(range(CLIENT_TRIES)):
        try:
            ray.init(client, logging_level=logging.WARNING)
        except ConnectionAbortedError:
            if not left:
                raise
        else:
            return


def _raylet_is_here(store: str) -> bool:
    """Whether this machine has a raylet of that store, which this user's processes may share memory with."""
    wanted = f"--gcs-address={store}"
    for process in psutil.process_iter(["name", "uids", "cmdline"]):
        found = process.info
        if found["name"] == "raylet" and wanted in (found["cmdline"] or ()) and found["uids"].real == os.getuid():
            return True
    return False
