"""One gang on its owner's side: a life of all its ranks after another, and what ended each.

Theory of operation. Each life is an epoch with a job of its own, whose task r is rank r; an epoch has its slots before
it has its job's first task sent. A rank reports when its worker is in place; once all have, each gets the table of all,
and only then runs user code. What ends one rank before its time ends the epoch: a lost member lets all start anew, as
long as restarts are left; an exception does not, as it would be raised again.

Cause and consequence. When a rank goes, its neighbours fail a moment later, and are heard of sooner, since a lost node
is silent. So a failure that only says that another rank has gone waits up to `SETTLE_S` for what took that one.

Vital ranks. Where only the ranks below `vital` are, the end of another one that runs user code is recorded in `gone`,
and the rest go on; the gang is over when each rank has returned or is gone. A vital rank that ends for the sake of one
that is gone ends the gang with that one's end as the cause. Before user code runs all ranks are vital.

Rules. Events carry their epoch, and those of another than the current one change nothing. An epoch in which no rank ran
user code does not count as a restart; `STARTS_LIMIT` of them in a row end the gang.

    state      event                                 next       effects
    -          begin                                 asking     Ask
    asking     Reserved                              starting   Launch
    asking     Refused                               over       Fail
    starting   every rank is Ready                   running    Tell
    starting   RankLost, or START_TIMEOUT_S          asking     End, Ask of the next epoch
    starting   the same, STARTS_LIMIT times in a row over       End, Fail
    running    every rank is Done or gone            over       Succeed
    running    RankLost or RankFailed, not vital     running
    running    RankFailed, of another's going        settling
    starting,  RankFailed                            over       End, Fail
    running,   RankLost, restarts left               asking     End, Ask of the next epoch
    settling   RankLost, none left                   over       End, Fail
    settling   quiet or SETTLE_S                     over       End, Fail with what was heard of first
    any        Cancelled                             over       End, Fail
"""

from __future__ import annotations

import enum

import msgspec

from kos_cluster.errors import GangError

START_TIMEOUT_S = 60.0  # from the reservation until every rank is in place: parts may have to travel first
STARTS_LIMIT = 8  # epochs in a row that did not get so far
SETTLE_S = 12.0  # for the cause to be heard after its consequences; a silent node is lost after less
RESTARTS_LIMIT = 1000


class State(enum.StrEnum):
    """What a gang does."""

    ASKING = "asking"
    STARTING = "starting"
    RUNNING = "running"
    SETTLING = "settling"
    OVER = "over"


# ---- events


class Reserved(msgspec.Struct, frozen=True):
    """Slots are held for all ranks of the epoch, on these nodes by rank."""

    epoch: int
    nodes: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True):
    """It never fits, or cannot be asked for; `error` says why."""

    epoch: int
    error: BaseException


class Ready(msgspec.Struct, frozen=True):
    """A rank is in place. `address` is what the others need to reach it. May come twice."""

    epoch: int
    rank: int
    address: bytes


class RankDone(msgspec.Struct, frozen=True):
    """A rank has returned."""

    epoch: int
    rank: int


class RankFailed(msgspec.Struct, frozen=True):
    """A rank has raised. `follows`: the error says no more than that another rank has gone, `of` which one."""

    epoch: int
    rank: int
    error: BaseException
    follows: bool
    of: int | None = None


class RankLost(msgspec.Struct, frozen=True):
    """A rank's worker or node is lost, or its node would not take it."""

    epoch: int
    rank: int
    error: BaseException


class Cancelled(msgspec.Struct, frozen=True):
    """The user ends it."""

    error: BaseException


# ---- effects


class Ask(msgspec.Struct, frozen=True):
    """Have slots reserved for an epoch, and repeat that until there is an answer."""

    epoch: int


class Launch(msgspec.Struct, frozen=True):
    """Send the ranks of an epoch to their slots."""

    epoch: int
    nodes: tuple[str, ...]


class Tell(msgspec.Struct, frozen=True):
    """Give these ranks the addresses of all: they may begin."""

    epoch: int
    ranks: tuple[int, ...]
    addresses: tuple[bytes, ...]


class End(msgspec.Struct, frozen=True):
    """Cancel what is left of an epoch, and its reservation."""

    epoch: int


class Succeed(msgspec.Struct, frozen=True):
    """Every rank of this epoch has returned."""

    epoch: int


class Fail(msgspec.Struct, frozen=True):
    """The gang is over. `rank` is None when no rank's end was the cause."""

    epoch: int
    rank: int | None
    error: BaseException


Event = Reserved | Refused | Ready | RankDone | RankFailed | RankLost | Cancelled
Effect = Ask | Launch | Tell | End | Succeed | Fail


class Epochs:
    """The machine of one gang."""

    def __init__(self, ranks: int, restarts: int, vital: int | None = None) -> None:
        self.epoch = 1
        self.state = State.ASKING
        self.restarts_left = restarts
        self._ranks = ranks
        self._vital = ranks if vital is None else vital
        self._starts = 0  # epochs in a row that did not begin
        self._addresses: dict[int, bytes] = {}
        self._done: set[int] = set()
        self._cause: RankFailed | RankLost | None = None  # the best known of this epoch's end
        self._ends: dict[int, RankFailed | RankLost] = {}  # of this epoch, by rank; replaced, as others read it
        self._ended = False  # this epoch was ended
        self._until_s = float("inf")

    @property
    def deadline_s(self) -> float:
        """`tick` has nothing to do before."""
        return self._until_s

    @property
    def gone(self) -> dict[int, BaseException]:
        """The ranks of this epoch that are not vital and did not return, with what ended them. For any thread."""
        return {rank: end.error for rank, end in self._ends.items() if rank >= self._vital}

    @property
    def missing(self) -> list[int]:
        """The ranks that are not in place yet."""
        return [rank for rank in range(self._ranks) if rank not in self._addresses]

    def begin(self) -> list[Effect]:
        return [Ask(self.epoch)]

    def handle(self, event: Event, now: float) -> list[Effect]:
        if self.state is State.OVER:
            return []
        if isinstance(event, Cancelled):
            return self._fail(None, event.error)
        if event.epoch != self.epoch:
            return []
        match event:
            case Reserved(epoch, nodes) if self.state is State.ASKING:
                self.state, self._until_s = State.STARTING, now + START_TIMEOUT_S
                return [Launch(epoch, nodes)]
            case Refused(_, error) if self.state is State.ASKING:
                return self._fail(None, error)
            case Ready(_, rank, address):
                return self._ready(rank, address)
            case RankDone(_, rank):
                return self._rank_done(rank)
            case RankFailed() | RankLost():
                return self._rank_ended(event, now)
        return []

    def tick(self, now: float) -> list[Effect]:
        """What is due: the end of a start that takes too long, and of the wait for a cause."""
        if now < self._until_s:
            return []
        if self.state is State.STARTING:
            return self._next_epoch(counts=False)
        return self._settled() if self.state is State.SETTLING else []

    def _ready(self, rank: int, address: bytes) -> list[Effect]:
        if self.state is State.RUNNING:  # its table got lost on the way
            return [Tell(self.epoch, (rank,), self._table())] if rank in self._addresses else []
        if self.state is not State.STARTING or not 0 <= rank < self._ranks:
            return []
        self._addresses[rank] = address
        if self.missing:
            return []
        self.state, self._until_s, self._starts = State.RUNNING, float("inf"), 0
        return [Tell(self.epoch, tuple(range(self._ranks)), self._table())]

    def _table(self) -> tuple[bytes, ...]:
        return tuple(self._addresses[rank] for rank in range(self._ranks))

    def _rank_done(self, rank: int) -> list[Effect]:
        self._done.add(rank)
        if self.state is State.RUNNING:
            return self._succeeded()
        return self._settled() if self.state is State.SETTLING and self._quiet() else []

    def _succeeded(self) -> list[Effect]:
        if not self._quiet():
            return []
        self.state, self._until_s = State.OVER, float("inf")
        return [Succeed(self.epoch)]

    def _rank_ended(self, event: RankFailed | RankLost, now: float) -> list[Effect]:
        optional = self.state is State.RUNNING and event.rank >= self._vital
        if optional and event.rank in self._done:
            return []
        self._done.add(event.rank)
        self._ends = {**self._ends, event.rank: event}
        if self.state is State.STARTING and isinstance(event, RankLost):
            self._cause = event
            return self._next_epoch(counts=False)
        if optional:
            return self._succeeded()
        if self._cause is None or _weight(event) > _weight(self._cause):
            self._cause = event
        if self.state is not State.SETTLING:
            self.state, self._until_s = State.SETTLING, now + SETTLE_S
        effects: list[Effect] = [] if self._ended or _weight(self._origin()) == 0 else [End(self.epoch)]
        self._ended = self._ended or bool(effects)
        if self._ended or self._quiet():
            effects += self._settled()
        return effects

    def _quiet(self) -> bool:
        """Whether nothing more can be heard of this epoch."""
        return len(self._done) == self._ranks

    def _settled(self) -> list[Effect]:
        cause = self._origin()
        if isinstance(cause, RankLost) and self.restarts_left > 0:
            return self._next_epoch(counts=True)
        return self._fail(cause.rank, cause.error)

    def _origin(self) -> RankFailed | RankLost:
        """The cause; where it is a consequence, the end of the rank that it names, as far as that is known."""
        cause = self._cause
        assert cause is not None
        passed: set[int] = set()
        while isinstance(cause, RankFailed) and cause.of in self._ends and cause.rank not in passed:
            passed.add(cause.rank)
            cause = self._ends[cause.of]
        return cause

    def _next_epoch(self, *, counts: bool) -> list[Effect]:
        ended: list[Effect] = [] if self._ended else [End(self.epoch)]
        if counts:
            self.restarts_left -= 1
        else:
            self._starts += 1
        if self._starts >= STARTS_LIMIT and not counts:
            return self._fail(self._cause.rank if self._cause else None, self._never_started())
        self.epoch += 1
        self.state, self._until_s = State.ASKING, float("inf")
        self._addresses, self._done, self._cause, self._ends, self._ended = {}, set(), None, {}, False
        return [*ended, Ask(self.epoch)]

    def _never_started(self) -> BaseException:
        if self._cause is not None:
            return self._cause.error
        ranks = ", ".join(map(str, self.missing))
        return GangError(
            f"The gang did not start: of its {self._ranks} ranks, {ranks} were not in place within "
            f"{START_TIMEOUT_S:g} s, {STARTS_LIMIT} times in a row.",
            "Type 'kos nodes' to see which nodes answer.",
        )

    def _fail(self, rank: int | None, error: BaseException) -> list[Effect]:
        ended: list[Effect] = [] if self._ended else [End(self.epoch)]
        self.state, self._until_s, self._ended = State.OVER, float("inf"), True
        return [*ended, Fail(self.epoch, rank, error)]


def _weight(event: RankFailed | RankLost) -> int:
    """How much an end says of its cause: a loss most, an exception of the rank's own more than a consequence."""
    if isinstance(event, RankLost):
        return 2
    return 0 if event.follows else 1
