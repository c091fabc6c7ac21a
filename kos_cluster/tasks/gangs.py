"""A gang as its owner sees it: `cluster.gang(...)`, and the thread that drives it.

Theory of operation. `core.gang.epochs` decides; a thread of each gang feeds it and carries out what it says. An epoch
has a job, so output, stories and `kos ps` are those of any job; its tasks are the ranks. The coordinator is asked for
slots until it has reserved them all, then the ranks are sent to them, and when all have said where they listen, the
table of all is sent to each. With each question it is told where the jobs are now that the gang is to be near to or
apart from; slots that were reserved beside one of the latter, which has come meanwhile, are given back.

Rules. Results are those of one epoch, by rank; they are unpickled by whoever asks for them. The error of a failed gang
names the rank, its node, and what ended it, which is its cause. Checkpoints are kept here, from epoch to epoch; what a
rank of an epoch that is over says of them is not heard. A rank says one thing at a time, and says it again until it is
answered (`core.gang.stopandwait`), so one message of a rank waits for the thread at most; its repeats, what is older
than what was heard, and what is over the limit is dropped.
"""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from kos_cluster.core import ownership
from kos_cluster.core.gang import checkpoints, epochs
from kos_cluster.core.gang.assignment import RANKS_LIMIT
from kos_cluster.core.gang.scheduler import WANTED_AGAIN_S
from kos_cluster.core.quantities import check_whole
from kos_cluster.errors import (
    GangError,
    KosError,
    LimitError,
    PlacementError,
    ProtocolError,
    RankGoneError,
    TaskLostError,
    UnreachableError,
    UsageError,
)
from kos_cluster.net.gangs import GangStanding, GangWanted, GangWithdrawn
from kos_cluster.tasks import profiling
from kos_cluster.tasks.comm.checkpoints import MARK
from kos_cluster.tasks.comm.ranks import RankCall
from kos_cluster.tasks.comm.table import make_table
from kos_cluster.tasks.futures import Future, Outcome
from kos_cluster.tasks.job import Job, JobSpec
from kos_cluster.tasks.joblist import everybodys
from kos_cluster.tasks.options import Options, split_options
from kos_cluster.tasks.relating import find_related
from kos_cluster.tasks.streaming import yields
from kos_cluster.tasks.submission import new_job_id

if TYPE_CHECKING:
    from kos_cluster.tasks.mesh import Mesh

GANGS_LIMIT = 64  # of one process at once: each has a thread
ASK_PAUSE_S = 0.2  # after an answer that was none
CHAIN_LIMIT = 16  # links of an exception's chain that are looked at
LOOK_S = 1.0  # between two looks at the time, at most
HEARD_LIMIT = 256  # messages of a gang's ranks, each below 1 MiB, that wait for its thread; further ones are said again

_running: set[Gang] = set()
_running_lock = threading.Lock()


class _RankEnd(NamedTuple):
    """How a rank's task ended: by itself, with an error of the mesh, or (neither) cancelled."""

    epoch: int
    rank: int
    outcome: Outcome | None
    error: BaseException | None


@dataclass(frozen=True)
class _Whole:
    """What a gang is a future of."""

    id: str
    cancel: Callable[[], None]
    owner: None = None

    def cancel_task(self, index: int) -> None:
        self.cancel()

    def story(self, index: int) -> None:
        return None


class _RankSaid(NamedTuple):
    """Where a rank listens, or (after the mark) something of its checkpoints, under its number of this."""

    epoch: int
    rank: int
    serial: int
    said: bytes


class Gang(Future):
    """A gang that runs, or waits for its slots. `result()` gives what each rank returned, by rank."""

    def __init__(
        self,
        mesh: Mesh,
        launch: Callable[..., Job],
        spec: JobSpec,
        payload: bytes,
        ranks: int,
        restarts: int,
        vital: int | None = None,
    ) -> None:
        _check(ranks, restarts, vital)
        self._mesh = mesh
        self._spec = spec
        self._payload = payload
        self._ranks = ranks
        self._launch = launch
        self._machine = epochs.Epochs(ranks, restarts, vital)
        self._events: queue.SimpleQueue[epochs.Event | _RankEnd | _RankSaid] = queue.SimpleQueue()
        self._heard: set[int] = set()  # ranks of which a message is among them
        self._checkpoints = checkpoints.Checkpoints(ranks)
        self._nodes: list[tuple[str, str, str]] = []  # id, name, host, by rank
        self._outcomes: dict[int, Outcome] = {}
        self._table = b""  # of this epoch, once it was made
        self.jobs: list[str] = []  # of each epoch so far
        _enter(self)
        try:
            self._job = self._open(1)
        except BaseException:
            _leave(self)
            raise
        super().__init__(_Whole(self._job.id, self._cancel_all), 0)
        threading.Thread(target=self._run, name=f"kos-gang-{self.id}", daemon=True).start()

    @property
    def id(self) -> str:
        """As `kos ps` shows it: the job of its first epoch. `jobs` has those of all."""
        return self.job

    @property
    def task(self) -> str:
        """All of its ranks together have no number."""
        return self.job

    @property
    def epoch(self) -> int:
        """1, and 1 more after each start anew."""
        return self._machine.epoch

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes that the ranks of this epoch are on, by rank; empty while it has no slots."""
        return [name for _, name, _ in self._nodes]

    @property
    def gone(self) -> dict[int, BaseException]:
        """The ranks of this epoch that were lost or have raised while the rest went on, as not vital, and why."""
        return self._machine.gone

    def __repr__(self) -> str:
        return f"<kos Gang {self.id} of {self._ranks} ranks, epoch {self.epoch}, {self._machine.state.value}>"

    def result(self, timeout: float | None = None) -> list[Any]:
        """What each rank returned, None for one that is gone.

        Raises GangError, PlacementError if it never fits, CancelledError, TimeoutError.
        """
        value = self._await(timeout)
        if isinstance(value, tuple):
            value = self._result = [None if outcome is None else outcome.value() for outcome in value]
        assert isinstance(value, list)
        return value

    def _cancel_all(self) -> None:
        error = concurrent.futures.CancelledError(f"Gang {self.id} was cancelled.")
        self._events.put(epochs.Cancelled(error))

    # ---- the thread

    def _run(self) -> None:
        try:
            self._carry_out(self._machine.begin())
            while self._machine.state is not epochs.State.OVER:
                asking = self._machine.state is epochs.State.ASKING and self._events.empty()
                event = self._ask() if asking else self._next()
                if event is not None:
                    self._carry_out(self._machine.handle(event, time.monotonic()))
                self._carry_out(self._machine.tick(time.monotonic()))
        except BaseException as error:  # whatever it is, somebody waits for the gang
            self.settle(error)
            if not isinstance(error, KosError):
                raise
        finally:
            _leave(self)

    def _next(self) -> epochs.Event | None:
        wait_s = min(LOOK_S, max(0.0, self._machine.deadline_s - time.monotonic()))
        try:
            event = self._events.get(timeout=wait_s)
        except queue.Empty:
            return None
        if isinstance(event, _RankSaid):
            self._heard.discard(event.rank)  # first: what it says next is not to be taken for a repeat
            return self._answer(event)
        return self._understood(event) if isinstance(event, _RankEnd) else event

    def _answer(self, message: _RankSaid) -> epochs.Event | None:
        epoch, rank, serial, said = message
        if not said.startswith(MARK):
            return epochs.Ready(epoch, rank, said)
        if epoch != self._machine.epoch:
            return None
        try:
            ask = msgspec.msgpack.decode(said[len(MARK) :], type=checkpoints.Ask)
        except msgspec.DecodeError as error:
            return epochs.Cancelled(_not_understood(rank, error))
        answer = self._checkpoints.handle(rank, ask)
        if answer is not None:
            self._mesh.tell_ranks(self._job, (rank,), serial, msgspec.msgpack.encode(answer))
        return None

    def _understood(self, end: _RankEnd) -> epochs.Event | None:
        """What a rank's end means to its gang."""
        epoch, rank, outcome, error = end
        if epoch != self._machine.epoch:
            return None
        if outcome is not None and not outcome.failed:
            self._outcomes[rank] = outcome
            return epochs.RankDone(epoch, rank)
        if outcome is not None:
            error = outcome.error()
        if error is None:  # by somebody else than this gang, which goes on to another epoch first
            return epochs.Cancelled(concurrent.futures.CancelledError(f"Gang {self.id} was cancelled."))
        if isinstance(error, TaskLostError) and outcome is None:
            return epochs.RankLost(epoch, rank, error)
        gone = _gone(error)
        return epochs.RankFailed(epoch, rank, error, gone is not None, gone.rank if gone is not None else None)

    def _ask(self) -> epochs.Event | None:
        """Ask for slots once more."""
        epoch = self._machine.epoch
        try:
            wanted = self._wanted()
            standing = self._mesh.request(wanted, GangStanding)
        except UnreachableError as error:
            standing = GangStanding(waits=error.message, coordinates=False)
        except KosError as error:
            return epochs.Refused(epoch, error)
        if standing.refused:
            hint = "Ask for fewer ranks, or add nodes; 'kos nodes' shows what there is."
            return epochs.Refused(epoch, PlacementError(f"{standing.refused[:1].upper()}{standing.refused[1:]}.", hint))
        shunned = set(standing.nodes).intersection(self._mesh.placing.leaning(self._job).apart)
        if standing.nodes and not shunned:
            return epochs.Reserved(epoch, standing.nodes)
        if shunned:
            self._withdraw(standing.nodes)
            standing = GangStanding(waits="a job that it is to be apart from has come to the nodes of its slots")
        why = standing.waits or "the cluster has no coordinator at the moment"
        self._mesh.feed(ownership.RanksPlaced(self._job.id, waits_for=why))
        if not standing.coordinates:
            time.sleep(ASK_PAUSE_S)
        return None

    def _wanted(self) -> GangWanted:
        """The question, with what is known now. Raises UnreachableError."""
        job, needs = self._job, self._job.needs
        if needs.near or needs.apart:
            find_related(everybodys(self._mesh, WANTED_AGAIN_S), self._mesh, needs, driven=True)
        leaning = self._mesh.placing.leaning(job)
        return GangWanted(
            job.id,
            self._ranks,
            needs,
            WANTED_AGAIN_S,
            self._mesh.instance,
            tuple(sorted(leaning.near)),
            tuple(sorted(leaning.apart)),
            alone=self._spec.name in needs.apart,
        )

    def _withdraw(self, nodes: Collection[str]) -> None:
        """Let go what is reserved on these nodes, and ask as if for the first time."""
        for node in ("", *sorted(set(nodes))):  # who coordinates, first
            with suppress(KosError):  # the lease ends it
                self._mesh.request(GangWithdrawn(self._job.id), bool, node=node, timeout_s=WANTED_AGAIN_S)

    def _carry_out(self, effects: Sequence[epochs.Effect]) -> None:
        for effect in effects:
            match effect:
                case epochs.Ask(epoch):
                    if epoch > 1:
                        self._job = self._open(epoch)
                case epochs.Launch(_, nodes):
                    members = [(node, self._mesh.member(node)) for node in nodes]
                    self._nodes = [(m.id, m.name, m.host) if m else (node, node, "") for node, m in members]
                    self._mesh.feed(ownership.RanksPlaced(self._job.id, nodes))
                case epochs.Tell(epoch, ranks, addresses):
                    step = self._checkpoints.step
                    self._table = self._table or make_table(self.id, epoch, self._nodes, addresses, step)
                    self._mesh.tell_ranks(self._job, ranks, 0, self._table)
                case epochs.End(_):
                    self._end()
                case epochs.Succeed(_):
                    self.set_result(tuple(self._outcomes.get(rank) for rank in range(self._ranks)))
                case epochs.Fail(_, rank, error):
                    self.settle(self._error(rank, error))

    # ---- an epoch

    def _open(self, epoch: int) -> Job:
        """The job of an epoch; its ranks wait until their slots are reserved."""
        self._nodes, self._outcomes, self._table = [], {}, b""
        self._checkpoints.begin()
        spec = replace(self._spec, in_place=self._hears(epoch))
        # It goes on, as a job with an id of its own does, when a job that it is to be near to has ended meanwhile.
        job = self._launch(spec) if epoch == 1 else self._launch(spec, new_job_id())
        for rank in range(self._ranks):
            job.add(self._payload).add_done_callback(self._ended(epoch, rank))
        job.close()
        self.jobs.append(job.id)
        return job

    def _hears(self, epoch: int) -> Callable[[int, int, bytes], None]:
        """Called in the mesh thread, which waits for nothing. A job is remembered when nobody needs its gang any more,
        which has results and checkpoints: it must not keep that.
        """
        newest: dict[int, int] = {}  # serials, by rank
        told = weakref.ref(self)

        def hears(rank: int, serial: int, said: bytes) -> None:
            gang = told()
            if gang is None or rank in gang._heard or len(gang._heard) >= HEARD_LIMIT or serial < newest.get(rank, 0):
                return
            newest[rank] = serial
            gang._heard.add(rank)
            gang._events.put(_RankSaid(epoch, rank, serial, said))

        return hears

    def _ended(self, epoch: int, rank: int) -> Callable[[concurrent.futures.Future[Any]], None]:
        """Called in the mesh thread, so it unpickles nothing."""

        def ended(future: concurrent.futures.Future[Any]) -> None:
            assert isinstance(future, Future)
            settled = future.settled()
            outcome = settled if isinstance(settled, Outcome) else None
            self._events.put(_RankEnd(epoch, rank, outcome, settled if isinstance(settled, BaseException) else None))

        return ended

    def _end(self) -> None:
        self._job.cancel()
        if not self._nodes:
            with suppress(KosError):  # the gang has an outcome of its own, and is forgotten when it is not asked for
                self._mesh.request(GangWithdrawn(self._job.id), bool, timeout_s=WANTED_AGAIN_S)

    def _error(self, rank: int | None, error: BaseException) -> BaseException:
        if rank is None or isinstance(error, GangError | concurrent.futures.CancelledError):
            return error
        where = f" on {self._nodes[rank][1]}" if rank < len(self._nodes) else ""
        what = error.message if isinstance(error, KosError) else f"{type(error).__name__}: {error}"
        epoch = f" in epoch {self.epoch}" if self.epoch > 1 else ""
        failed = GangError(
            f"Rank {rank}{where} ended gang {self.id}{epoch}: {what.rstrip('.')}.",
            f"Type 'kos logs {self._job.id}.{rank}' for what it printed.",
        )
        failed.__cause__ = error
        return failed


def _not_understood(rank: int, error: Exception) -> ProtocolError:
    return ProtocolError(f"Rank {rank} spoke of its checkpoint in words that this version does not know: {error}.")


def _gone(error: BaseException | None) -> RankGoneError | None:
    """That another rank has gone, if it was raised for that, be it in so many words or while that was handled."""
    for _ in range(CHAIN_LIMIT):
        if error is None or isinstance(error, RankGoneError):
            return error
        error = error.__cause__ or error.__context__
    return None


def prepared(fn: Any, keywords: dict[str, Any]) -> tuple[RankCall, Options, dict[str, Any]]:
    """A function as each rank's task, how that is run, and the keywords that are the function's own."""
    if not callable(fn) or yields(fn):
        raise UsageError(
            f"A gang cannot run {fn!r} as its ranks: that is no function which returns.", "Give a function."
        )
    if keywords.get("retries") is not None:
        raise UsageError("Ranks of a gang are not tried again one by one.", "Give restarts=N: then all start anew.")
    options, own = split_options(keywords)
    return RankCall(profiling.applied(fn)), replace(options, retries=0, fresh=True), own


def _check(ranks: object, restarts: object, vital: object) -> None:
    check_whole("n", ranks, 1, RANKS_LIMIT)
    check_whole("restarts", restarts, 0, epochs.RESTARTS_LIMIT)
    if vital is not None:
        assert isinstance(ranks, int)
        check_whole("vital", vital, 0, ranks)


def _enter(gang: Gang) -> None:
    with _running_lock:
        if len(_running) >= GANGS_LIMIT:
            raise LimitError(f"This process has {GANGS_LIMIT} gangs already, which is the limit.", "Wait for some.")
        _running.add(gang)


def _leave(gang: Gang) -> None:
    with _running_lock:
        _running.discard(gang)
