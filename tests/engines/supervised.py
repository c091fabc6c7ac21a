"""A cluster that is tables of this process: what a supervisor, and who scales or stops its engine, has of a cluster."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kos_cluster.core.jobrows import CANCELLED, DONE, FAILED, SENT
from kos_cluster.core.replicated.jobs import JobState
from kos_cluster.errors import KosError, TaskLostError, UnreachableError
from kos_cluster.services.engines import control, ledger, looking, supervisor
from kos_cluster.services.engines.engine import Address, Standing
from kos_cluster.services.engines.registers import decoded, encoded
from kos_cluster.services.engines.spec import Began, Record, Spec, State, head_of, record_of
from tests.mesh.conftest import until

ADDRESS = Address("tls://127.0.0.1:1")


class Registers:
    """A cluster's registers. `fails`: the next write gets no answer; "done" says that it was done all the same."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.fails = ""
        self.refuses: KosError | None = None  # what each write gets
        self.when_asked: dict[str, Callable[[], object]] = {}  # happens once, after a register was read
        self.when_set: dict[str, Callable[[], object]] = {}  # and after it was written
        self.writes = 0

    def register(self, name: str) -> _Register:
        return _Register(self, name)

    def registers(self, patience_s: float = 0.0) -> dict[str, str]:
        return dict(self.held)


class _Register:
    def __init__(self, registers: Registers, name: str) -> None:
        self.name = name
        self._all = registers

    def get(self) -> str | None:
        held = self._all.held.get(self.name)
        self._all.when_asked.pop(self.name, _nothing)()
        return held

    def set(self, value: str | None) -> None:
        if self._all.refuses is not None and value is not None:
            raise self._all.refuses
        self._all.writes += 1
        if value is None:
            self._all.held.pop(self.name, None)
        else:
            self._all.held[self.name] = value
        self._all.when_set.pop(self.name, _nothing)()

    def compare_and_set(self, expected: str | None, value: str | None) -> bool:
        fails, self._all.fails = self._all.fails, ""
        if fails != "lost":
            if self._all.held.get(self.name) != expected:
                return False
            self.set(value)
        if fails:
            raise UnreachableError("No node answered.")
        return True


def _nothing() -> None:
    pass


class Gang:
    """Has its slots when there are so many."""

    def __init__(self, cluster: StandIn, id_: str, ranks: int) -> None:
        self.id, self.jobs = id_, [id_]
        self.states = [SENT] * ranks
        self.gone: dict[int, BaseException] = {}
        self.placed = False
        self._cluster = cluster
        self._error: BaseException | None = None

    @property
    def nodes(self) -> list[str]:
        if not self.placed and not self.done() and self._cluster.free() >= len(self.states):
            self.placed = True
        return ["node1"] * len(self.states) if self.placed else []

    def live(self) -> int:
        return self.states.count(SENT) if self.placed else 0

    def done(self) -> bool:
        return SENT not in self.states

    def exception(self) -> BaseException | None:
        return self._error

    def cancel(self) -> None:
        self.states = [CANCELLED if state == SENT else state for state in self.states]

    def refuse(self, error: BaseException) -> None:
        self._error = error
        self.cancel()

    def end(self, state: int) -> None:
        """The last rank that there is ends."""
        rank = len(self.states) - 1 - self.states[::-1].index(SENT)
        self.states[rank] = state
        if state == FAILED:
            self.gone[rank] = TaskLostError(f"Worker of rank {rank} was lost.")


class StandIn(Registers):
    """The cluster, and an engine in it whose head is rank 0 of the first gang."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots  # that are free
        self.holds = 16
        self.gangs: list[Gang] = []
        self.job = JobState.DRIVEN  # the state of the supervisor's job
        self.connected = 0
        self.closed = 0
        self.fault: Exception | None = None  # what the head's next answer is
        self.mute = False  # the head is
        self.retiring = threading.Event()  # it has begun to let workers go
        self.lets_go = threading.Event()
        self.lets_go.set()

    # ---- what a cluster has

    def gang(self, fn: Callable[..., None], count: int, spec: Spec, *args: Any, vital: int, **_: Any) -> Gang:
        gang = Gang(self, f"g{len(self.gangs)}", count)
        self.gangs.append(gang)
        if vital and gang.nodes:
            self.held[head_of(spec.name)] = encoded(Began(spec.id, args[0], ADDRESS))
        return gang

    def states(self, job: str) -> list[int]:
        return next(gang.states for gang in self.gangs if gang.id == job)

    def engine_keys(self, engine: str, host: str) -> None:
        return None

    def _cancel(self) -> bool:
        self.job = JobState.CANCELLED
        return True

    def why(self, job: str) -> list[Any]:
        return [SimpleNamespace(why="it waits")]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"name": "node1", "state": "alive", "slots": self.holds}]

    def heard(self) -> Any:
        return SimpleNamespace(members=())

    def packages(self) -> dict[str, dict[str, str]]:
        return {"node1": {"distributed": "1"}}

    def detach(self, fn: Callable[..., None], args: list[Spec], name: str) -> Any:
        """The supervisor serves at once."""
        (spec,) = args
        made = Record(spec.name, spec.kind, spec.id, "j2", State.SERVING, 1, 1, 0, 0, False, 0.0)
        assert self.register(record_of(spec.name)).compare_and_set(None, encoded(made))
        return self.attach("j2")

    def attach(self, job: str) -> Any:
        return SimpleNamespace(state=lambda: SimpleNamespace(state=self.job), cancel=self._cancel)

    def leave_engine(self, *_: str) -> None:
        pass

    # ---- what happens to it

    def free(self) -> int:
        return self.slots - sum(gang.live() for gang in self.gangs)

    def live(self) -> int:
        """Workers."""
        return sum(gang.live() for gang in self.gangs) - 1

    def lose(self) -> None:
        """A worker and its slot, for good."""
        self.slots -= 1
        self._newest().end(FAILED)

    def _newest(self) -> Gang:
        return next(gang for gang in reversed(self.gangs) if gang.live())

    # ---- a connection to the head

    usable = True

    def connect(self, address: Address, credentials: object) -> StandIn:
        self.connected += 1
        self.usable = True
        return self

    def standing(self) -> Standing:
        fault, self.fault = self.fault, None
        if self.mute:
            raise UnreachableError("It does not answer.")
        if fault is not None:
            raise fault
        return Standing([str(number) for number in range(self.live())], 0, 0, 0)

    def retire(self, count: int) -> list[str]:
        self.retiring.set()
        assert self.lets_go.wait(30)
        for _ in range(count):
            self._newest().end(DONE)
        return ["worker"] * count

    def close(self) -> None:
        self.closed += 1
        self.usable = False


def record(cluster: StandIn, name: str = "dask") -> Record:
    return decoded("", cluster.held[record_of(name)], Record)


class Supervisor(threading.Thread):
    """Of an engine. `ended`: what it has raised."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.ended: list[BaseException] = []
        self._run_it = run

    def run(self) -> None:
        try:
            self._run_it()
        except BaseException as error:
            self.ended.append(error)


@contextmanager
def supervised(cluster: StandIn, workers: int, restarts: int = 0) -> Iterator[Supervisor]:
    """An engine that serves, with its supervisor; it is stopped at the end."""
    spec = Spec("dask", "dask", "e1", workers, restarts=restarts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "LOOK_S", 0.005)
        patch.setattr(supervisor, "START_LOOK_S", 0.005)
        patch.setattr(looking, "LOOK_S", 0.005)
        patch.setattr(looking, "engine_of", lambda kind: cluster)
        patch.setattr(control, "POLL_S", 0.005)
        patch.setattr(ledger, "CHECKED_AGAIN_S", 0.05)
        patch.setenv("KOS_TASK", "j1.0")
        thread = Supervisor(supervisor._Supervisor(cast(Any, cluster), spec).run)
        thread.start()
        until(lambda: record_of("dask") in cluster.held and record(cluster).state is State.SERVING, "it serves")
        until(lambda: cluster.connected, "its head is looked at")
        try:
            yield thread
        finally:
            if thread.is_alive():
                cluster.refuses = None
                control.stop(cast(Any, cluster), "dask")
                thread.join()
