"""The one grammar of KOS: what `kos` and the `%kos` magics understand.

Rules: building and parsing have no effect. A parser never prints and never ends the process: a mistake raises
UsageError, `--help` and `--version` raise `Shown` with the text to print. Parsed arguments carry `action`, the
command's one name whichever form was `typed` (`kos cluster nodes` and `kos nodes` are both "nodes").
Everything from the first word of a command to run onwards belongs to that command, options included.
"""

from __future__ import annotations

import argparse
import functools
import platform
from collections.abc import Sequence
from typing import Any, NoReturn

from kos_cluster import __version__
from kos_cluster.cli.enginegrammar import add_engine
from kos_cluster.cli.parser import Commands, Parser, Shown, add_cluster, add_json
from kos_cluster.cli.quantities import (
    address,
    count,
    count_or_zero,
    duration,
    label,
    memory,
    node_label,
    plain,
    priority,
    resource,
    variable,
)
from kos_cluster.errors import UsageError

TOKEN_TTL_LIMIT_S = 24 * 3600.0
ROLES = ("node", "client", "observer", "admin")
PEERS = ("dask", "dask-tls", "ray", "ipyparallel", "loky", "parsl", "mpi")
PARTS = ("overhead", "work", "gangs", "scaling")  # of `kos bench`
PROFILES = ("lan", "fast")
MEASURES = ("failover", "detection", "joining", "rates", "rest")  # of `kos bench control`


class _ShowVersion(argparse.Action):
    def __call__(self, *_: Any) -> NoReturn:
        from kos_cluster.net.wire import WIRE_VERSION

        raise Shown(f"kos {__version__} (wire {WIRE_VERSION}, Python {platform.python_version()})\n")


@functools.cache
def build_parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    parser = Parser(prog="kos", description="Turns the machines on a desk, in a lab or in a rack into one computer.")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show the version")
    add_cluster(parser, None)
    commands = Commands(parser)
    _add_local(commands)
    _add_cluster_commands(Commands(commands.add("cluster", "form, join and look at a cluster, and run on it")))
    _add_run(commands)
    _add_dry_run(commands)
    _add_looking(commands)
    _add_work(commands)
    _add_watching(commands)
    add_engine(Commands(commands.add("engine", "run Dask or Ray on the cluster's nodes")))
    _add_memory(Commands(commands.add("mem", "look at the memory that nodes share")))
    _add_lock(commands)
    _add_register(commands)
    add_json(commands.add("doctor", "look for what is wrong on this machine and in its cluster", "doctor"))
    _add_kernel(Commands(commands.add("kernel", "give Jupyter the kernel 'Python 3 (KOS)'")))
    _add_bench(commands)
    _add_sim(commands)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line without the leading `kos`. Raises UsageError, or Shown for `--help` and `--version`."""
    parsed, unknown = build_parser().parse_known_args(argv)
    if unknown:
        raise UsageError(f"'{parsed.typed}' does not take {unknown[0]!r}.", f"Type '{parsed.typed} --help'.")
    if getattr(parsed, "argv", None) and parsed.argv[0] == "--" and parsed.action != "lock":
        del parsed.argv[0]
    return parsed


def _add_local(commands: Commands) -> None:
    up = commands.add("up", "start a cluster on this machine, or this machine's part of one that it is in", "up")
    up.add_argument("-n", dest="count", type=count, metavar="N", help="how many nodes (default: one a core, at most 4)")
    _add_profile(up, None)
    _add_declared(up)
    commands.add("down", "stop this machine's nodes and leave nothing of them behind", "down")
    node = commands.add("node", "run this machine's node in the foreground, for a service manager", "node")
    node.add_argument("--name", metavar="NODE", help="which one, when this machine has several")


def _add_cluster_commands(commands: Commands) -> None:
    create = commands.add("create", "found a cluster; this machine is its first node", "create")
    create.add_argument("name", metavar="NAME", help="the cluster's name")
    _add_placement(create)
    _add_profile(create, PROFILES[0])
    token = commands.add("token", "make a token with which one machine or user can join", "token")
    token.add_argument("--role", choices=ROLES, default="node", help="what the joiner may do (default: node)")
    token.add_argument("--ttl", type=_ttl, default=TOKEN_TTL_LIMIT_S, metavar="TIME", help="how long it is good (24h)")
    add_json(token)
    join = commands.add("join", "join a cluster with a token", "join")
    join.add_argument("name", metavar="NAME", help="the cluster's name")
    join.add_argument("host", metavar="HOST[:PORT]", type=address, nargs="?", help="a node of it (default: by beacon)")
    join.add_argument("--token", metavar="TOKEN", help="the token (default: KOS_TOKEN, else asked for)")
    _add_placement(join)
    commands.add("leave", "leave the cluster for good", "leave")
    _add_care(commands)
    _add_looking(commands)
    execute = commands.add("exec", "run a shell command on one node", "exec")
    _add_needs(execute)
    execute.add_argument("node", metavar="NODE", help="the node's name")
    execute.add_argument("argv", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command")
    _add_run(commands)


def _add_care(commands: Commands) -> None:
    drain = commands.add("drain", "give a node no more work; what runs there goes on", "drain")
    drain.add_argument("node", metavar="NODE", help="the node's name or id")
    drain.add_argument("--undo", action="store_true", help="let it work again")
    remove = commands.add("remove", "remove a node or a user for good, and refuse their certificates", "remove")
    remove.add_argument("node", metavar="NODE", help="the name or id of the node, or of the user")
    remove.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    rotate = commands.add("rotate", "renew certificates without interruption", "rotate")
    rotate.add_argument("nodes", metavar="NODE", nargs="*", help="which nodes' (default: all, and this machine's own)")


def _add_lock(commands: Commands) -> None:
    add_json(commands.add("locks", "list the locks that are held, by whom and for how long", "locks"))
    lock = commands.add("lock", "run a command while holding a lock of the whole cluster", "lock")
    lock.before_command = True
    lock.usage = "kos lock [--ttl TIME] [--wait TIME | --no-wait] NAME -- COMMAND..."
    lock.add_argument("name", metavar="NAME", help="the lock's name")
    lock.add_argument("--ttl", type=duration, default=30.0, metavar="TIME", help="how long it is leased (default: 30s)")
    waiting = lock.add_mutually_exclusive_group()
    waiting.add_argument("--wait", type=duration, metavar="TIME", help="wait so long (default: as long as it takes)")
    waiting.add_argument("--no-wait", action="store_true", help="give up when it is not free")


def _add_register(commands: Commands) -> None:
    register = commands.add("register", "read and write small texts that the whole cluster agrees on", "register")
    register.add_argument("name", metavar="NAME", nargs="?", help="which one (default: list all)")
    register.add_argument("value", metavar="VALUE", nargs="?", help="what to write (default: read it)")
    register.add_argument("--unset", action="store_true", help="remove it")
    expecting = register.add_mutually_exclusive_group()
    expecting.add_argument("--if", dest="expected", metavar="OLD", help="write only if it holds OLD")
    expecting.add_argument("--if-unset", action="store_true", help="write only if it is not set")
    add_json(register)


def _add_placement(parser: Parser) -> None:
    parser.add_argument("--listen", metavar="HOST[:PORT]", type=address, help="where to listen (default: 0.0.0.0:7567)")
    parser.add_argument("--name", dest="node", metavar="NODE", help="this node's name (default: the host's)")
    _add_declared(parser)


def _add_declared(parser: Parser) -> None:
    parser.add_argument(
        "--label",
        type=node_label,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a label that tasks can ask for, for example zone=a; may be repeated",
    )
    parser.add_argument(
        "--resource",
        type=resource,
        action="append",
        default=[],
        metavar="NAME=N",
        help="N of something that tasks can take, for example licence=2; may be repeated",
    )


def _add_profile(parser: Parser, default: str | None) -> None:
    text = "how soon a crash is seen: lan (in about 5 s, the default), or fast (in about 1 s)"
    parser.add_argument("--profile", choices=PROFILES, default=default, help=text)


def _add_looking(commands: Commands) -> None:
    add_json(commands.add("status", "show the cluster's state, and what a loss would mean", "status"))
    add_json(commands.add("nodes", "list the cluster's nodes", "nodes"))


def _add_run(commands: Commands) -> None:
    run = commands.add("run", "run a command on the cluster, or with --distribute a Python script across it", "run")
    run.add_argument("--distribute", action="store_true", help="run a Python script (or a cell) across the cluster")
    run.add_argument(
        "--detach", action="store_true", help="print its id and return: it goes on without this machine ('kos attach')"
    )
    run.add_argument(
        "--gang", type=count, metavar="N", help="run it (or a cell) as N ranks that start all together or not at all"
    )
    run.add_argument(
        "--restarts", type=count_or_zero, default=0, metavar="N", help="of a gang: start all anew after a lost rank"
    )
    _add_needs(run)
    _add_affinities(run)
    run.add_argument(
        "--priority",
        type=priority,
        default=0,
        metavar="P",
        help="its share beside your other jobs, from -10 to 10: each step doubles it (default: 0)",
    )
    run.add_argument("--timeout", type=duration, metavar="TIME", help="stop it after this time, for example 15m")
    run.add_argument("--retries", type=count_or_zero, metavar="N", help="run it again after a lost node or worker")
    run.add_argument(
        "--env",
        type=variable,
        action="append",
        default=[],
        metavar="NAME",
        help="take this environment variable along (NAME=VALUE sets it); may be repeated",
    )
    run.add_argument("--no-redirect", action="store_true", help="leave its pools and joblib's calls on its node")
    run.add_argument(
        "--engine", metavar="NAME", help="in %%%%kos run: run the cell on an engine ('kos engine') instead of the mesh"
    )
    run.add_argument("--over", metavar="NAME", help="in %%%%kos run: run the cell once for each element of NAME")
    run.add_argument("--out", metavar="NAME", help="in %%%%kos run: the list of the cell's last expressions")
    run.add_argument("--seed", type=count_or_zero, metavar="N", help="in %%%%kos run: make random numbers repeatable")
    run.add_argument(
        "argv", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command, or [python] script.py args"
    )


def _add_dry_run(commands: Commands) -> None:
    dry = commands.add("dry-run", "tell where 'kos run' with these options would go, and why; run nothing", "dry_run")
    dry.add_argument("--distribute", action="store_true", help="as for kos run: what the script imports counts too")
    _add_needs(dry)
    _add_affinities(dry)
    add_json(dry)
    dry.add_argument("argv", metavar="COMMAND", nargs=argparse.REMAINDER, help="what would be run, if anything")


def _add_needs(parser: Parser) -> None:
    parser.add_argument("--cpus", type=count, default=1, metavar="C", help="cores that it needs (default: 1)")
    parser.add_argument("--memory", type=memory, default=0, metavar="M", help="memory that it needs, for example 8G")
    parser.add_argument("--gpus", type=count_or_zero, default=0, metavar="G", help="GPUs that it needs")
    parser.add_argument(
        "--resource",
        type=resource,
        action="append",
        default=[],
        metavar="NAME=N",
        help="what it takes of a resource that nodes declare, for example licence=1; may be repeated",
    )


def _add_affinities(parser: Parser) -> None:
    parser.add_argument("--on", default="", metavar="NODE", help="run on this node")
    many: dict[str, Any] = {"action": "append", "default": []}
    parser.add_argument(
        "--label",
        type=label,
        **many,
        metavar="LABEL",
        help="a label of its node: zone=a; or zone!=a to be away from it",
    )
    parser.add_argument("--away-from", **many, metavar="NODE", help="not on this node; may be repeated")
    parser.add_argument("--near", **many, metavar="JOB", help="where there is room, on nodes with tasks of this job")
    parser.add_argument("--apart", **many, metavar="JOB", help="never on a node with tasks of this job")
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--spread", action="store_true", help="over as many nodes as there are")
    layout.add_argument("--pack", action="store_true", help="on as few nodes as will do")


def _add_work(commands: Commands) -> None:
    add_json(commands.add("ps", "list the jobs that run, and detached ones that have ended", "ps"))
    attach = commands.add("attach", "watch a detached job until it ends, and take its results", "attach")
    attach.add_argument("id", metavar="ID", help="the job, as 'kos run --detach' printed it")
    attach.add_argument("--files", metavar="FOLDER", help="bring what its script wrote into this folder")
    cancel = commands.add("cancel", "stop a job or a task everywhere", "cancel")
    _add_id(cancel)
    logs = commands.add("logs", "print the last output of a job or a task", "logs")
    _add_id(logs)
    add_json(logs)
    why = commands.add(
        "why", "tell where a job's tasks are and why: what they need, what each node does with them", "why"
    )
    _add_id(why)
    add_json(why)
    story = commands.add("story", "tell what happened to a job's tasks: attempts, nodes, causes", "story")
    _add_id(story)
    add_json(story)
    profile = commands.add("profile", "in %%%%kos profile: sample the cell's tasks in their workers", "profile")
    profile.add_argument("argv", metavar="run", nargs=argparse.REMAINDER, help="run --distribute: run the cell there")
    report = commands.add(
        "report", "write one file that shows what ran where and when: a gantt, transfers, failures", "report"
    )
    report.add_argument("file", metavar="FILE.html", help="the file; it needs no network to be read")


def _add_watching(commands: Commands) -> None:
    top = commands.add("top", "watch nodes, work and events live in the terminal; q ends it", "top")
    top.add_argument("--interval", type=duration, default=1.0, metavar="TIME", help="between two looks (default: 1s)")
    top.add_argument("--once", action="store_true", help="print what there is now, and end")
    commands.add("monitor", "in a notebook, as %%kos monitor: watch nodes, work and events live", "monitor")
    metrics = commands.add("metrics", "serve the cluster's metrics for Prometheus", "metrics")
    metrics.add_argument(
        "--listen", metavar="HOST[:PORT]", type=address, help="where (default: 127.0.0.1:7566, for this machine alone)"
    )
    metrics.add_argument("--token-file", metavar="FILE", help="a bearer token that is asked for; made if missing")


def _add_memory(commands: Commands) -> None:
    add_json(commands.add("status", "show how full the arena of each node is, and with what", "mem_status"))


def _add_id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="a job, or one task of it as JOB.INDEX")


def _add_kernel(commands: Commands) -> None:
    install = commands.add("install", "install the kernel, for this Python, where Jupyter looks", "kernel_install")
    where = install.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user (the default outside virtual environments)")
    where.add_argument("--sys-prefix", action="store_true", help="in this Python's environment (the default in one)")
    where.add_argument("--prefix", metavar="P", help="beneath P/share/jupyter")
    install.add_argument("--remote", action="store_true", help="the kernel runs on a node of the cluster")
    install.add_argument("--cpus", type=count, metavar="C", help="with --remote: cores that it needs (default: 1)")
    install.add_argument("--memory", type=memory, metavar="M", help="with --remote: memory that it needs, as 8G")
    install.add_argument("--on", metavar="NODE", help="with --remote: the node (default: any)")
    add_json(commands.add("list", "list the kernels of KOS that Jupyter finds", "kernel_list"))
    remove = commands.add("remove", "remove a kernel that 'kos kernel install' made", "kernel_remove")
    remove.add_argument("name", metavar="KERNEL", nargs="?", default="", help="as listed (default: kos)")


def _add_bench(commands: Commands) -> None:
    bench = commands.add("bench", "measure KOS and its peers on this machine, on the same work", "bench")
    bench.add_argument("--peers", type=_peers, default=PEERS, metavar="LIST", help=f"any of {','.join(PEERS)}; or none")
    bench.add_argument(
        "--only", type=_parts, default=PARTS, metavar="LIST", help=f"any of {','.join(PARTS)} (default: all)"
    )
    bench.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    bench.add_argument("--picture", metavar="FILE", help="draw the figures into FILE, such as figures.svg")
    bench.add_argument("--repeats", type=count, default=5, metavar="N", help="how often to measure each (default: 5)")
    bench.add_argument("--quick", action="store_true", help="less work, for a first look")
    kinds = Commands(bench, required=False)
    _add_bench_control(kinds)
    notebook = kinds.add("notebook", "measure what the notebook's side costs, on this machine", "bench_notebook")
    notebook.add_argument("--repeats", type=count, default=30, metavar="N", help="of each measure (default: 30)")
    notebook.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    memory = kinds.add("memory", "measure what moving large values costs, on this machine", "bench_memory")
    memory.add_argument("--repeats", type=count, default=5, metavar="N", help="of each measure (default: 5)")
    memory.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    queued = kinds.add("queued", "measure the memory that queued tasks take of their program", "bench_queued")
    queued.add_argument("--tasks", type=count, default=1_000_000, metavar="N", help="how many (default: 1000000)")
    queued.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    engines = kinds.add("engines", "measure Dask on KOS's nodes, beside plain Dask", "bench_engines")
    engines.add_argument("--repeats", type=count, default=5, metavar="N", help="of each measure (default: 5)")
    engines.add_argument("--json", metavar="FILE", help="write the figures to FILE")


def _add_bench_control(commands: Commands) -> None:
    control = commands.add("control", "measure the control plane of real daemons on this machine", "bench_control")
    control.add_argument(
        "--only", type=_measures, default=MEASURES, metavar="LIST", help=f"any of {','.join(MEASURES)} (default: all)"
    )
    control.add_argument("--kills", type=count, default=100, metavar="N", help="of the coordinator (default: 100)")
    control.add_argument("--nodes", type=count, default=50, metavar="N", help="daemons that rest (default: 50)")
    control.add_argument(
        "--minutes", dest="rest_s", type=_minutes, default=600.0, metavar="M", help="of their rest (default: 10)"
    )
    control.add_argument("--json", metavar="FILE", help="write the figures to FILE")


def _add_sim(commands: Commands) -> None:
    sim = commands.add("sim", "run the machines of the control plane in a simulated cluster that fails", "sim")
    sim.add_argument("--nodes", type=_nodes, default=5, metavar="N", help="how many hosts (default: 5)")
    sim.add_argument("--seed", type=count_or_zero, metavar="S", help="the first seed (default: a fresh one)")
    sim.add_argument("--seeds", type=count, default=1, metavar="N", help="how many seeds to run (default: 1)")
    sim.add_argument("--faults", type=_faults, metavar="LIST", help="all (the default), none, or such as crash,loss")
    sim.add_argument(
        "--minutes",
        dest="seconds",
        type=_minutes,
        default=60.0,
        metavar="M",
        help="virtual time until all faults end (default: 1)",
    )
    sim.add_argument("--processes", type=count, default=1, metavar="P", help="how many run the seeds (default: 1)")
    sim.add_argument("--trace", action="store_true", help="print everything that happens, not only what matters")
    sim.add_argument("--mutants", action="store_true", help="plant known defects, and show how soon each is caught")
    sim.add_argument("--membership", action="store_true", help="measure membership: rounds, bytes, detection, stalls")
    sim.add_argument(
        "--hours",
        dest="stall_hours",
        type=_hours,
        default=4.0,
        metavar="H",
        help="with --membership: virtual hours in which nodes stall, of each profile (default: 4)",
    )
    sim.add_argument("--workload", action="store_true", help="measure what placing tasks costs, on 10 to 1,000 nodes")
    sim.add_argument(
        "--tasks", type=count, default=1_000_000, metavar="N", help="with --workload: how many (default: 1000000)"
    )


def _ttl(text: str) -> float:
    seconds = duration(text)
    if seconds > TOKEN_TTL_LIMIT_S:
        raise argparse.ArgumentTypeError(f"a token is good for at most 24h, not {text}")
    return seconds


def _measures(text: str) -> tuple[str, ...]:
    return _some_of(MEASURES, text)


def _parts(text: str) -> tuple[str, ...]:
    return _some_of(PARTS, text)


def _some_of(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a measure; choose from {', '.join(known)}")
    return names


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name and name != "none")
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a known peer; choose from {', '.join(PEERS)}")
    return names


def _nodes(text: str) -> int:
    from kos_cluster.sim.world import NODES_LIMIT  # here, or the grammar would load the simulator

    number = count(text)
    if number > NODES_LIMIT:
        raise argparse.ArgumentTypeError(f"{number} hosts are too many to simulate; the limit is {NODES_LIMIT}")
    return number


def _minutes(text: str) -> float:
    return plain(text, "minutes") * 60


def _hours(text: str) -> float:
    return plain(text, "hours")


def _faults(text: str) -> tuple[str, ...]:
    from kos_cluster.sim.faults import KINDS  # as above

    if text in ("all", "none"):
        return tuple(KINDS) if text == "all" else ()
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a known fault; choose from {', '.join(KINDS)}")
    return names
