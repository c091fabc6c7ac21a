"""The values that travel between cores, daemons and clients: members, needs, run lists, stories.

All are frozen msgspec structs, so one definition serves the cores, the wire and `--json`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

import msgspec

# A run list stands for task indices compactly: [(start, count), ...], ascending and disjoint.
Runs = list[tuple[int, int]]


def runs_of(indices: Iterable[int]) -> Runs:
    """Compress ascending indices: `runs_of([0, 1, 2, 7]) == [(0, 3), (7, 1)]`."""
    runs: Runs = []
    for index in indices:
        if runs and runs[-1][0] + runs[-1][1] == index:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1))
    return runs


def indices_of(runs: Runs) -> Iterator[int]:
    """The indices that a run list stands for, in order."""
    for start, count in runs:
        yield from range(start, start + count)


def count_of(runs: Runs) -> int:
    """How many indices a run list stands for."""
    return sum([count for _, count in runs])  # for the one run that there mostly is, faster than a generator


def attempted(attempt: str) -> tuple[str, int]:
    """The task, JOB.INDEX, and the number of an attempt that is named OWNER/JOB.INDEX#ATTEMPT; of "", none."""
    task, _, number = attempt.partition("/")[2].rpartition("#")
    return task, int(number or 0)


def are_runs(runs: Runs, limit: int) -> bool:
    """Whether a run list from outside is sound: ascending, disjoint, and of at most `limit` indices."""
    end, total = 0, 0
    for start, count in runs:
        if start < end or count < 1:
            return False
        end, total = start + count, total + count
    return total <= limit


class MemberState(enum.StrEnum):
    """What the cluster believes of a node."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Versions(msgspec.Struct, frozen=True):
    """What must agree, or be known, before code can travel between two machines. Empty string: not installed."""

    kos: str
    wire: int
    python: str  # "3.11.7"
    numpy: str
    cloudpickle: str
    log_format: int = 1  # the newest of the cluster's log that it reads; see `core.replicated.formats`


class Load(msgspec.Struct, frozen=True):
    """A node's gossiped load. Counts are of slots and tasks; percentages are of the whole machine."""

    running: int = 0
    queued: int = 0
    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    memory_available_bytes: int = 0
    dropped_frames: int = 0  # malformed, oversized or unauthenticated frames since the start
    received_bytes_s: int = 0  # over the machine's network interfaces, lately
    sent_bytes_s: int = 0
    memory_declared_bytes: int = 0  # by the work that runs
    gpus_in_use: int = 0
    resources_in_use: tuple[int, ...] = ()  # of each resource that the node declares, by name
    over_memory: bool = False  # the machine's memory is past the node's high-water mark: it takes no more work


class Member(msgspec.Struct, frozen=True):
    """One node of the cluster. The control port is `port`; the bulk port is always the next one."""

    id: str
    name: str
    host: str
    port: int
    slots: int
    versions: Versions
    incarnation: int  # grows with each start, and with each refutation; an older one's messages are stale
    state: MemberState = MemberState.ALIVE
    started_ns: int = 0  # when this daemon was started: names this life of it, which a refutation does not change
    pid: int = 0
    boot_id: str = ""  # the machine's boot, to tell whether `pid` is on this machine
    memory_bytes: int = 0
    drained: bool = False  # it is to be given no more work
    labels: dict[str, str] = {}
    resources: dict[str, int] = {}  # named ones, with how many there are
    gpus: int = 0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class LabelTerm(msgspec.Struct, frozen=True, array_like=True):
    """The node must have this label with this value; with `away` it must not."""

    name: str
    value: str
    away: bool = False


class Layout(enum.StrEnum):
    """How a job's tasks come to lie on the nodes that could take the next one."""

    ANY = "any"
    SPREAD = "spread"  # where the fewest of the job are
    PACK = "pack"  # on as few nodes as will do


class Needs(msgspec.Struct, frozen=True):
    """What one task needs of a node, and where its job's tasks are to be."""

    cpus: int = 1
    memory_bytes: int = 0
    on: str = ""  # a node's name; empty: any
    modules: tuple[str, ...] = ()  # top-level installed packages that its code imports; preferred, not required
    gpus: int = 0
    resources: tuple[tuple[str, int], ...] = ()  # named ones, with how many; each name once
    labels: tuple[LabelTerm, ...] = ()
    away_from: tuple[str, ...] = ()  # nodes' names
    layout: Layout = Layout.ANY
    near: tuple[str, ...] = ()  # jobs, by id or name, with whose tasks it shares nodes where it can
    apart: tuple[str, ...] = ()  # jobs, by id or name, with whose tasks it never shares a node


class TaskState(enum.StrEnum):
    """Where a task is in its life. The last three are final."""

    WAITING = "waiting"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptEnd(enum.StrEnum):
    """How one attempt at a task ended."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"  # the task raised
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker-lost"
    NODE_LOST = "node-lost"
    OUT_OF_MEMORY = "out-of-memory"
    MEMORY_LIMIT = "memory-limit"  # it held more than it had declared
    RETURNED = "returned"  # came back without having started
    RESULT_LOST = "result-lost"  # it was done, and what it had made was lost since
    INPUT_LOST = "input-lost"  # it did not begin: what it reads was lost


class Cause(enum.StrEnum):
    """Why a node lost or stopped a task."""

    WORKER_DIED = "worker-died"
    OUT_OF_MEMORY = "out-of-memory"
    MEMORY_LIMIT = "memory-limit"  # it held more than it had declared
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    STOPPING = "stopping"  # the node is being shut down
    SET_UP = "set-up"  # the worker could not be set up for it; not retried


# How an attempt ended that the node lost or stopped for this cause.
END_OF_CAUSE = {
    Cause.WORKER_DIED: AttemptEnd.WORKER_LOST,
    Cause.OUT_OF_MEMORY: AttemptEnd.OUT_OF_MEMORY,
    Cause.MEMORY_LIMIT: AttemptEnd.MEMORY_LIMIT,
    Cause.CANCELLED: AttemptEnd.CANCELLED,
    Cause.TIMEOUT: AttemptEnd.TIMEOUT,
    Cause.STOPPING: AttemptEnd.NODE_LOST,
    Cause.SET_UP: AttemptEnd.FAILED,
}


class Attempt(msgspec.Struct, frozen=True):
    """One try at one task. `started_s` is None when it is not known to have started. Times are Unix seconds. What spoke
    for its node (`chosen`) is as its owner judged it then.

    Bytes are known to the node alone: the task's share of what its batch brought there and gave back, and the most
    memory that its worker's process has held by then.
    """

    number: int
    node: str
    sent_s: float
    started_s: float | None = None
    ended_s: float | None = None
    end: AttemptEnd = AttemptEnd.OPEN
    cause: str = ""
    received_bytes: int = 0
    returned_bytes: int = 0
    peak_memory_bytes: int = 0
    chosen: str = ""


INPUTS_TOLD_LIMIT = 16  # of one task in its story


class Story(msgspec.Struct, frozen=True):
    """A task's history: every attempt, in order."""

    task: str  # "JOB.INDEX"
    name: str
    state: TaskState
    attempts: tuple[Attempt, ...]
    inputs: tuple[str, ...] = ()  # the tasks whose results it takes, the first `INPUTS_TOLD_LIMIT`


class HeldTasks(msgspec.Struct, frozen=True):
    """Tasks of a job, `count` from `start` on, that wait for the results of the same others, and of `more`."""

    start: int
    count: int
    waits_for: tuple[str, ...]
    more: int = 0


class JobSummary(msgspec.Struct, frozen=True):
    """One job as `kos ps` lists it."""

    job: str
    name: str
    user: str
    total: int
    done: int
    failed: int
    running: int
    since_s: float
    nodes: tuple[str, ...] = ()
    parent: str = ""  # the task that submitted it, JOB.INDEX, or empty
    reruns: int = 0  # tasks that were sent again because an attempt was lost
    state: str = ""  # of a detached job: a `core.replicated.jobs.JobState`
    driver: str = ""  # the name of the node that drives it, or did last
    epoch: int = 0  # the number of drivers that it has had
    cancelled: int = 0  # how many of `failed` were cancelled
    held: tuple[HeldTasks, ...] = ()  # those that wait for results of others, the first groups of them
    program: str = ""  # the process that submitted it, in words; as the nodes tell it
    engine: str = ""  # the name of the engine that it runs on; empty: the mesh
