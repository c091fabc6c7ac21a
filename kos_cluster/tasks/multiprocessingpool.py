"""A script's `multiprocessing.Pool`, in each of the forms in which it is made.

Theory of operation. `multiprocessing.Pool` and the method of each context look up `multiprocessing.pool.Pool` when they
are called, so one class in its place (`StandIn`) is all that it takes. Called, it gives a `ScriptPool`, which is a
`kos.Pool` whose calls go through a `ClusterPool`; so functions, files, initializers and globals are as with that. A
pool whose processes must share memory is the original. The script's globals are those of the moment when the pool is
made, as the original forks then.

Rules. Whoever derives a class from it gets the original, which classes of others reach into (joblib's do). A map is cut
into chunks as the original cuts it, as each chunk is a task, whose files come back. A lost worker or an initializer
that fails fails the calls concerned, and the pool goes on. The end of the script terminates what is not closed.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

import kos_cluster
from kos_cluster.tasks.jobgroup import Then, slots_of
from kos_cluster.tasks.pool import Came, Pool, check
from kos_cluster.tasks.scriptpool import ClusterPool, tell

_Original = multiprocessing.pool.Pool


class StandInType(type):
    """Makes a class that is called like the original, gives either kind of pool, and passes for the class of both."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **more: Any) -> Any:
        if not bases:
            return super().__new__(mcs, name, bases, namespace)
        originals = tuple(_Original if isinstance(base, mcs) else base for base in bases)
        return types.new_class(name, originals, more, lambda own: own.update(namespace))

    def __call__(
        cls,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> Any:
        initargs = tuple(initargs)
        check(processes, initializer, maxtasksperchild)
        calls = ScriptCalls(processes, context, initializer, initargs, max_tasks_per_child=maxtasksperchild)
        obstacle = calls.fork()
        if obstacle:
            tell(obstacle)
            return _Original(processes, initializer, initargs, maxtasksperchild, context)
        return ScriptPool(calls, processes)

    def __getattr__(cls, name: str) -> Any:
        """The original's own code calls parts of its class by this name."""
        return getattr(_Original, name)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (ScriptPool, _Original))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, (ScriptPool, _Original)) or super().__subclasscheck__(subclass)


class StandIn(metaclass=StandInType):
    """Stands for `multiprocessing.pool.Pool`."""

    __doc__ = _Original.__doc__
    __init__ = _Original.__init__  # called by that name for a `ThreadPool`, which derives from the original


class ScriptCalls(ClusterPool):
    """The calls of a pool: a lost worker is no concern of the others."""

    _ready: tuple[bytes, str]

    def fork(self) -> str:
        """The processes of the original would be forked now. Why they must be, as a clause; empty: they need not."""
        self._ready = super()._prepared()
        return self._ready[1]

    def _prepared(self) -> tuple[bytes, str]:
        return self._ready

    def end(self) -> None:
        self.cancel()
        super().end()

    def _judged(self, error: BaseException) -> BaseException:
        return error

    def _original(self) -> concurrent.futures.Executor:
        """What runs the calls that have to stay here. It cannot replace a child of `fork` after so many tasks."""
        self._serves = 0
        return super()._original()


class _Group:
    """Such calls as a pool wants them."""

    def __init__(self, calls: ClusterPool) -> None:
        self._calls = calls

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], then: Then = None
    ) -> concurrent.futures.Future[Any]:
        future = self._calls.submit(fn, *args, **kwargs)
        if then is not None:
            future.add_done_callback(then)
        return future

    def close(self) -> None:
        self._calls.shutdown(wait=False)

    def cancel(self) -> None:
        self._calls.cancel()

    def wait(self) -> None:
        self._calls.shutdown(wait=True)


class ScriptPool(Pool):
    """What the stand-in gives, where the pool need not stay on this machine."""

    def __init__(self, calls: ClusterPool, processes: int | None) -> None:
        cluster = kos_cluster.connect()
        self._begin(_Group(calls), processes or slots_of(cluster), chunks=True)

    def _send(
        self, func: Callable[..., Any], rows: list[tuple[Any, ...]], came: Came, *, alone: bool
    ) -> Callable[[], object]:
        futures = [self._group.submit(func, row, {}) for row in rows]

        def take() -> list[Any]:
            return [future.result() for future in futures]

        def cancel() -> None:
            for future in futures:
                future.cancel()

        _when_all(futures, lambda: came(take))
        return cancel


def _when_all(futures: list[concurrent.futures.Future[Any]], then: Callable[[], None]) -> None:
    """Call `then` once, when the last of them is done; at once if there are none."""
    lock = threading.Lock()
    left = len(futures) + 1

    def one_less(_: object = None) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then()

    for future in futures:
        future.add_done_callback(one_less)
    one_less()
