"""Messages between a daemon and its own processes: the fork server and the workers.

Rules: these never leave the machine. The daemon never unpickles a payload frame. All structs are tagged, so each
direction is one union and one decoder. Both sockets are pairs that were inherited or passed: nobody else can connect.

Fork server: a SOCK_SEQPACKET pair, one MessagePack struct a packet. `Spawn` carries five descriptors (SCM_RIGHTS):
the worker's stdout, its stderr, the memfd of its scoreboard (`net.scoreboard`), its end of the channel, and a pipe of
claims.

Claims: for each task of a batch but the first the daemon puts one byte into the pipe before it sends `Run`. Whoever
takes a byte has a task: the worker the next one in order, before it starts it; the daemon, which holds the pipe's both
ends, the last one, to give it back to its owner. So the kernel decides which of the two has a task, whatever the worker
is doing. A batch is over when the pipe is empty.

Workers: a stream pair with the messages of `net.channel`. The header frame is the struct, the payload frame what each
struct says.
"""

from __future__ import annotations

import msgspec

from kos_cluster.core.records import Runs

CLAIMS_LIMIT = 1 << 16  # tasks of one batch that can be claimed: what a pipe holds
HOST_VARIABLE = "KOS_HOST"  # in the workers' environment: the address that their node listens on

# ---- daemon -> fork server


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """Fork a worker."""

    worker: int
    spool: str  # the folder where it writes results of 1 MiB and more
    cwd: str


class Preload(msgspec.Struct, frozen=True, tag=True):
    """Import these modules in the fork server, when idle, so that later workers have them warm. Failure is reported."""

    modules: list[str]


# ---- fork server -> daemon


class Forked(msgspec.Struct, frozen=True, tag=True):
    worker: int
    pid: int


class Exited(msgspec.Struct, frozen=True, tag=True):
    """A worker ended. `status` is os.waitpid's; `out_of_memory` is true only where the kernel's counters moved."""

    worker: int
    status: int
    out_of_memory: bool


class Warm(msgspec.Struct, frozen=True, tag=True):
    """The fork server is ready (no modules), or has tried these; `failed` maps a module to why it did not import."""

    modules: list[str]
    failed: dict[str, str]


# ---- daemon -> worker


class Part(msgspec.Struct, frozen=True, tag=True):
    """A content-addressed part (function, environment, module, workspace, large argument).

    Its bytes are the payload, or the file at `path`, which stays for the worker's life, when `path` is not empty.
    """

    hash: str
    path: str = ""


class Run(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Run tasks. The payload is a MessagePack list of pickled `(args, kwargs)`, one a task, in the order of `runs`.

    A task whose index is in `large` has an empty entry there; its pickle is the part of that hash.
    """

    batch: int
    job: str
    runs: Runs
    attempt: int
    fn: str  # part hash: cloudpickled callable
    env: str  # part hash: msgpack `Environment`, or empty for the plain one
    node: str  # this node's name, for KOS_NODE
    owner: str = ""  # identity of the task's owner, for KOS_OWNER
    large: dict[int, str] = {}
    seed: int | None = None
    gpus: str = ""  # for CUDA_VISIBLE_DEVICES: those that the worker was given; empty when it was given none
    stream: tuple[int, int] | None = None  # its task yields: the owner has so many items, and wants those until there
    stays: dict[int, str] | None = None  # large results stay here, those of these tasks as blocks of these names
    hold_s: float = 0.0  # for which the worker holds what it has laid, should nobody keep it sooner


class ItemsWanted(msgspec.Struct, frozen=True, tag=True):
    """The task of this batch may yield up to this position. Late ones, of a batch that is over, mean nothing."""

    batch: int
    until: int


class Displayed(msgspec.Struct, frozen=True, tag=True):
    """The daemon has taken a `Display`, and all output before it; the worker may go on."""


class RankTable(msgspec.Struct, frozen=True, tag=True):
    """The owner's answer to a `RankReady`: every rank of the gang is in place, and where; or of a checkpoint."""

    batch: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End: no more work will come."""


# ---- worker -> daemon


class Ready(msgspec.Struct, frozen=True, tag=True):
    pid: int


class Done(msgspec.Struct, frozen=True, omit_defaults=True, tag=True):
    """Outcomes of some tasks of the batch. Payload: MessagePack list of pickles, in the order of `runs`.

    An index in `failed` has a pickled `tasks.failures.Failure` as its outcome. An index in `large` has an empty
    entry; its outcome is the file of that name in the spool, of that many bytes. `elapsed_s` is the time spent in
    user code on these. `last` is true when the batch is finished and the worker is idle again. `retire`: the worker
    must not be used again. `peak_memory_bytes`: the most that the worker's process has held. `items`: how many a task
    that yields has yielded. `blocks`: those that these outcomes refer to. An index in `stayed` has a pickle that names
    a block as its outcome, which has so many bytes. One in `lost` has failed before it began, as these blocks that it
    reads are nowhere. `causes`: what some of the failed raised, a line each.
    """

    batch: int
    runs: Runs
    failed: list[int]
    large: dict[int, tuple[str, int]]
    elapsed_s: float
    last: bool
    retire: bool = False
    peak_memory_bytes: int = 0
    items: int = 0
    blocks: list[str] = []
    causes: dict[int, str] = {}
    stayed: dict[int, int] = {}
    lost: dict[int, list[str]] = {}


class Item(msgspec.Struct, frozen=True, tag=True):
    """What the running task has yielded. Payload: its pickle; when it is large the file of that name and size."""

    batch: int
    position: int
    large: tuple[str, int] | None = None


class Display(msgspec.Struct, frozen=True, tag=True):
    """A rich display made by the running task. Payload: JSON of the sink's `display` call. Wait for `Displayed`."""

    batch: int
    index: int


class RankReady(msgspec.Struct, frozen=True, tag=True):
    """A rank of a gang has something for its owner: where it listens, or a checkpoint. `RankTable` follows."""

    batch: int
    index: int


ToForkServer = Spawn | Preload
FromForkServer = Forked | Exited | Warm
ToWorker = Part | Run | ItemsWanted | Displayed | RankTable | Stop
FromTask = Done | Item | Display | RankReady
FromWorker = Ready | FromTask


class Environment(msgspec.Struct, frozen=True):
    """How a worker must be set up before it may run a task; part of the worker's identity, by content hash.

    A worker takes one environment in its life; work for another goes to another worker.
    """

    modules: dict[str, str] = {}  # local module name -> part hash of msgpack [relative path, is_package, source]
    main: str = ""  # path, relative to the workspace, of the script to load once as __mp_main__
    argv: list[str] = []  # the script's arguments
    workspace: str = ""  # part hash of a workspace archive to unpack and work in
    environ: dict[str, str] = {}
    threads: int = 1  # OMP_NUM_THREADS and its kin
    initializer: str = ""  # part hash: cloudpickled (callable, args)
    cwd: str = ""  # used when there is no workspace and the folder exists on the node
    sys_path: list[str] = []  # put in front of sys.path
    fresh: bool = False  # the worker serves one batch and retires
    serves: int = 0  # tasks that a worker serves before it retires; 0: no limit
    token: str = ""  # makes two otherwise equal environments distinct (one executor's workers from another's)
