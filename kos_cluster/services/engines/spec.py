"""The values of an engine: what is wanted of it, how it stands, and where that is written down.

Theory of operation. Two registers of the cluster hold all that anybody needs to know of an engine: `engine.NAME` says
how it stands, and only its supervisor writes it; `engine.NAME.wanted` says what a user wants of it, and only those who
scale or stop it write that. A third, `engine.NAME.head`, is how the head of one life tells the supervisor where it is.
So an engine is found from anywhere, and outlives whoever has started it.

Rules. All three are JSON, below the limit of a register. A name has no dot, so that no engine's register is another's.
"""

from __future__ import annotations

import enum
import re

import msgspec

from kos_cluster.core.gang.assignment import RANKS_LIMIT
from kos_cluster.core.gang.epochs import RESTARTS_LIMIT
from kos_cluster.core.quantities import check_whole
from kos_cluster.errors import UsageError
from kos_cluster.services.engines.engine import Address

NAME_LIMIT_CHARACTERS = 32
WORKERS_LIMIT = RANKS_LIMIT - 1  # of one engine: its first gang has a rank for the head too
CPUS_LIMIT = 1024  # of one worker
MEMORY_LEAST_BYTES = 256 << 20  # of a head or worker: less does not hold the engine's own libraries
WHY_LIMIT_CHARACTERS = 400  # of a reason in a record, which has two; a register holds 4,096 bytes
PREFIX = "engine."
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_LIMIT_CHARACTERS - 1}}}")


class Spec(msgspec.Struct, frozen=True):
    """What is to be started. The head has what a worker has: both are ranks of one gang."""

    name: str
    kind: str
    id: str  # of this engine alone: another of the same name later has another
    workers: int
    cpus: int = 1
    memory_bytes: int = 0  # of each; 0: no limit
    restarts: int = 0  # times that it is started anew when its head is lost
    plaintext: bool = False  # links that it cannot encrypt are allowed


class State(enum.StrEnum):
    """How far an engine is."""

    STARTING = "starting"
    SERVING = "serving"
    LOST = "lost"  # its head is, and its supervisor has not said yet what comes next; seen, and in no record
    FAILED = "failed"


class Record(msgspec.Struct, frozen=True):
    """How an engine stands, as `kos engine status` tells it."""

    name: str
    kind: str
    id: str
    job: str  # the detached job that supervises it
    state: State
    wanted: int  # workers
    cpus: int
    memory_bytes: int
    restarts_left: int
    plaintext: bool
    since_s: float  # when it was started
    life: int = 1  # 1 more with each start anew
    address: Address = Address("")
    node: str = ""  # where the head is, by name
    workers: int = 0  # that the head knows
    waiting: int = 0  # tasks, as of the last look
    running: int = 0
    held_bytes: int = 0  # of results, as of the last look
    why: str = ""  # what went wrong last, and what was lost by it
    why_s: float = 0.0  # when that was
    silent: bool = False  # its head does not answer, for now
    until_s: float = 0.0  # when the first of this life's certificates ends; 0: it has not begun to serve
    answered: str = ""  # the newest wish that was carried out or refused
    refusal: str = ""  # of that wish


class Wanted(msgspec.Struct, frozen=True):
    """What a user wants of an engine that runs."""

    id: str  # of this wish
    engine: str  # the id of the engine that it is meant for
    workers: int = 0
    stop: bool = False


class Began(msgspec.Struct, frozen=True):
    """A head and all workers of its gang serve."""

    engine: str
    life: int
    address: Address
    until_s: float = 0.0  # when its certificates end


def record_of(name: str) -> str:
    """The name of the register that says how an engine stands."""
    return PREFIX + name


def wanted_of(name: str) -> str:
    """The name of the register that says what is wanted of it."""
    return f"{PREFIX}{name}.wanted"


def head_of(name: str) -> str:
    """The name of the register in which its head says where it is."""
    return f"{PREFIX}{name}.head"


def check(spec: Spec) -> None:
    """Raises UsageError for what no engine can be."""
    if not _NAME.fullmatch(spec.name):
        raise UsageError(
            f"{spec.name[:NAME_LIMIT_CHARACTERS]!r} cannot be the name of an engine.",
            f"Use up to {NAME_LIMIT_CHARACTERS} letters, digits and _ -, beginning with a letter or digit.",
        )
    check_whole("workers", spec.workers, 1, WORKERS_LIMIT)
    check_whole("cpus", spec.cpus, 1, CPUS_LIMIT)
    check_whole("restarts", spec.restarts, 0, RESTARTS_LIMIT)
    if spec.memory_bytes and spec.memory_bytes < MEMORY_LEAST_BYTES:
        raise UsageError(
            f"memory={spec.memory_bytes} bytes is too little for a worker of an engine: its own libraries take more.",
            f"Give it {MEMORY_LEAST_BYTES >> 20}M or more, or none for no limit.",
        )


def name_taken(record: Record) -> UsageError:
    """That an engine has the name that another one was to have."""
    return UsageError(
        f"There is an engine {record.name!r} already ({record.kind}, {record.state}).",
        f"Give this one another --name, or type 'kos engine stop {record.name}' first.",
    )


def lost_with(record: Record) -> str:
    """What is lost with a head, as of the last look at it."""
    tasks = record.waiting + record.running
    held = f"{record.held_bytes / (1 << 20):.1f} MiB of results"
    return f"{tasks} task{'s' * (tasks != 1)} that waited or ran, and {held}"


def shortened(why: str) -> str:
    """A reason that fits into a record."""
    return why if len(why) <= WHY_LIMIT_CHARACTERS else why[: WHY_LIMIT_CHARACTERS - 1] + "…"
