"""How often a checkpoint's pieces travel: a rank, its node and its gang's owner, over a link with delays and losses.

Time is counted, not waited for: the rank's `meet` runs the link until its answer is there.
"""

from __future__ import annotations

import heapq
import itertools
import queue
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kos_cluster.core.gang import checkpoints as core_checkpoints
from kos_cluster.core.gang.checkpoints import PIECE_LIMIT_BYTES, Checkpoints, Piece, PieceGiven
from kos_cluster.core.gang.epochs import Ready
from kos_cluster.net import local
from kos_cluster.net.gangs import RankReady
from kos_cluster.net.sizes import BULK_BYTES
from kos_cluster.node import batches
from kos_cluster.node.batch import Batch
from kos_cluster.node.batches import Batches
from kos_cluster.tasks.beat import BEAT_S
from kos_cluster.tasks.comm import checkpoints as comm_checkpoints
from kos_cluster.tasks.comm.checkpoints import MARK, Checkpointer
from kos_cluster.tasks.gangs import HEARD_LIMIT, Gang
from kos_cluster.tasks.job import JobSpec

FIRST_BEAT_S = 0.37
OWNER: Any = SimpleNamespace(owner="owner")
PIECES = 128
PATIENCE_S = 3600.0  # of the counted time


class Link:
    """One rank that is in place, its node, and its owner, which is `busy_s` late to look at what it has heard."""

    def __init__(self, round_trip_s: float, busy_s: float = 0.0) -> None:
        self.now = 0.0
        self.said: list[int] = []  # what the node has sent: serials
        self.answers: list[int] = []  # what the owner has sent
        self.lost_said: set[int] = set()  # which of these are lost: positions
        self.lost_answers: set[int] = set()
        self.queued = 0  # messages that the gang's thread has not looked at, at most
        self._delay_s = round_trip_s / 2
        self._busy_s = busy_s
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._meetings = 0
        self.told: list[bytes] = []  # to the rank
        self.node = self._make_node()
        self.gang, self._hear = self._make_gang()
        self._at(FIRST_BEAT_S, self._beat)

    def _make_node(self) -> Batches:
        sent: Any = SimpleNamespace(batch=1, job="j")
        record: Any = SimpleNamespace(arrived_s=0.0)
        node = Batches.__new__(Batches)
        node._batches = {("owner", 1): Batch(OWNER, sent, b"", record, [0], {0}, set(), worker=1)}  # type: ignore[dict-item]
        node._send = self._to_owner
        node._queue = SimpleNamespace(batch_of=lambda worker: ("owner", 1))  # type: ignore[assignment]
        tell = SimpleNamespace(send=lambda worker, message, payload: self.told.append(payload))
        node._workers = tell  # type: ignore[assignment]
        return node

    def _make_gang(self) -> tuple[Gang, Callable[[int, int, bytes], None]]:
        specs: list[JobSpec] = []
        task = SimpleNamespace(add_done_callback=lambda called: None)
        job: Any = SimpleNamespace(id="j", close=lambda: None, add=lambda payload: task)

        def launch(spec: JobSpec) -> Any:
            specs.append(spec)
            return job

        gang = Gang.__new__(Gang)
        gang._machine = SimpleNamespace(epoch=1, deadline_s=float("inf"))  # type: ignore[assignment]
        gang._checkpoints, gang._events, gang._heard = Checkpoints(1), queue.SimpleQueue(), set()
        gang._mesh = SimpleNamespace(tell_ranks=self._to_node)  # type: ignore[assignment]
        gang._launch, gang._spec, gang._payload, gang._ranks, gang.jobs = launch, JobSpec(b""), b"", 1, []
        gang._job = gang._open(1)
        assert specs[0].in_place is not None
        return gang, specs[0].in_place

    def rank(self) -> Checkpointer:
        comm: Any = SimpleNamespace(allgather=lambda value: [value])
        return Checkpointer(comm, self.gang._checkpoints.step, self._meet)

    def _meet(self, said: bytes) -> bytes:
        self.node.worker_said(1, local.RankReady(1, 0), said)
        self._meetings += 1
        while len(self.told) < self._meetings:
            self._step()
        return self.told[-1]

    def _step(self) -> None:
        self.now, _, what = heapq.heappop(self._due)
        assert self.now < PATIENCE_S, "the rank waits for ever"
        what()

    def quiet(self) -> None:
        """Let all arrive that is on the way, and a few beats more."""
        until = self.now + 60.0
        while self.now < until:
            self._step()

    def _at(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + delay_s, next(self._order), what))

    def _beat(self) -> None:
        self.node.ask_again(OWNER)
        self._at(BEAT_S, self._beat)

    def _to_owner(self, owner: Any, message: Any, payload: Any = b"") -> bool:
        assert isinstance(message, RankReady) and len(payload) < BULK_BYTES
        if len(self.said) not in self.lost_said:
            self._at(self._delay_s, lambda: self._heard(message.serial, payload))
        self.said.append(message.serial)
        return True

    def _heard(self, serial: int, said: bytes) -> None:
        self._hear(0, serial, said)
        self.queued = max(self.queued, self.gang._events.qsize())
        self._at(self._busy_s, self._look)

    def _look(self) -> None:
        while not self.gang._events.empty():
            self.gang._next()

    def _to_node(self, job: Any, ranks: Any, serial: int, answer: bytes) -> None:
        assert len(answer) < BULK_BYTES
        if len(self.answers) not in self.lost_answers:
            self._at(self._delay_s, lambda: self.node.table(OWNER, 1, serial, answer))
        self.answers.append(serial)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Link]:
    def make(round_trip_s: float, busy_s: float = 0.0) -> Link:
        made = Link(round_trip_s, busy_s)
        clock = SimpleNamespace(monotonic=lambda: made.now, time=lambda: made.now)
        monkeypatch.setattr(batches, "time", clock)
        return made

    return make


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """That travels in `PIECES` pieces, which are small so that this is quick."""
    monkeypatch.setattr(comm_checkpoints, "PIECE_LIMIT_BYTES", 64)
    monkeypatch.setattr(core_checkpoints, "PIECE_LIMIT_BYTES", 64)
    return bytes(64 * PIECES - 32)  # and what its pickle has around it


@pytest.mark.parametrize("round_trip_s", [0.05, 0.2, 1.2, 1.9])
def test_each_piece_travels_once_each_way(link: Callable[..., Link], state: bytes, round_trip_s: float) -> None:
    over = link(round_trip_s)
    assert over.rank().checkpoint(state) == 1
    over.quiet()
    assert over.said == over.answers == list(range(PIECES))
    assert over.gang._checkpoints.step == 1
    over.said.clear()
    over.answers.clear()
    assert over.rank().restored() == state
    assert len(over.said) == len(over.answers) == PIECES


@pytest.mark.parametrize("round_trip_s", [0.05, 1.2])
def test_a_lost_piece_costs_one_message_and_a_lost_answer_two(
    link: Callable[..., Link], state: bytes, round_trip_s: float
) -> None:
    for lost_said, lost_answers, answers in (({9}, set(), PIECES), (set(), {9}, PIECES + 1)):
        over = link(round_trip_s)
        over.lost_said, over.lost_answers = lost_said, lost_answers
        assert over.rank().checkpoint(state) == 1
        over.quiet()
        assert (len(over.said), len(over.answers)) == (PIECES + 1, answers)
        assert over.said.count(9) == 2
        assert over.rank().restored() == state


def test_a_way_that_is_slower_than_the_first_repeats_is_learnt(link: Callable[..., Link], state: bytes) -> None:
    over = link(5.0)
    assert over.rank().checkpoint(state) == 1
    over.quiet()
    assert over.said == [0, 0, 0, 1, 1, 2, 2, *range(3, PIECES)]
    assert over.rank().restored() == state


def test_an_owner_that_is_busy_holds_one_message_of_a_rank(link: Callable[..., Link], state: bytes) -> None:
    over = link(0.05, busy_s=60.0)
    assert over.rank().checkpoint(state[:100]) == 1
    assert over.said.count(0) > 3
    assert over.queued == 1
    assert over.answers == [0, 1]


def test_what_waits_for_the_gangs_thread_is_bounded_and_said_again(link: Callable[..., Link]) -> None:
    over = link(0.05)
    hear = over.gang._hears(1)
    for _ in range(2):
        for rank in range(2 * HEARD_LIMIT):
            hear(rank, 0, b"where it listens")
    assert over.gang._events.qsize() == HEARD_LIMIT
    assert over.gang._next() == Ready(1, 0, b"where it listens")
    hear(HEARD_LIMIT, 0, b"again")
    assert over.gang._events.qsize() == HEARD_LIMIT
    heard = [over.gang._next() for _ in range(HEARD_LIMIT)]
    assert heard[-1] == Ready(1, HEARD_LIMIT, b"again")


def test_what_is_older_than_what_was_heard_is_dropped(link: Callable[..., Link]) -> None:
    over = link(0.05)
    hear = over.gang._hears(1)
    for serial, events in ((3, 1), (2, 0), (3, 1), (4, 1)):
        hear(0, serial, b"said")
        assert over.gang._events.qsize() == events
        if events:
            over.gang._next()
    over.gang._hears(2)(0, 0, b"of another epoch")
    assert over.gang._events.qsize() == 1


def test_a_piece_is_below_what_goes_over_the_bulk_port() -> None:
    largest = 2**40
    piece = bytes(PIECE_LIMIT_BYTES)
    for message in (Piece(largest, largest, largest, piece), PieceGiven(largest, largest, largest, piece)):
        assert len(MARK + msgspec.msgpack.encode(message)) < BULK_BYTES
