"""`kos cluster exec` and `kos run`: a command on one node, a program on the cluster, a script across it.

Rules: output streams as it comes, the program's exit code is ours. The first interrupt stops the remote program,
the second one stops waiting for that.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kos_cluster.cli.console import Console
from kos_cluster.core.records import MemberState
from kos_cluster.errors import NoSuchNodeError, PlacementError, UnreachableError, UsageError

if TYPE_CHECKING:
    from kos_cluster import Cluster
    from kos_cluster.cli.progress import TerminalSink


EXIT_CANCELLED = 130  # by `kos cancel`: as if it had been interrupted here


def exec_(parsed: argparse.Namespace, console: Console) -> int:
    """Run a shell command on one node."""
    if not parsed.argv:
        raise UsageError("No command was given.", "Type: kos cluster exec NODE 'command'.")
    import kos_cluster as kos
    from kos_cluster.tasks import launching

    command = parsed.argv[0] if len(parsed.argv) == 1 else parsed.argv
    cluster = kos.connect(parsed.cluster)
    _check_node(cluster, parsed.node)
    options = needs_of(parsed) | {"on": parsed.node}
    report = _reporting(console)
    return _streamed(console, lambda sink: launching.run_command(cluster, command, report=report, sink=sink, **options))


def run_(parsed: argparse.Namespace, console: Console) -> int:
    """Run a command somewhere, or with --distribute a script across the cluster."""
    _check(parsed)
    env = environment(parsed.env)
    import kos_cluster as kos
    from kos_cluster.tasks import launching

    cluster = kos.connect(parsed.cluster)
    _check_node(cluster, parsed.on)
    # By default it runs once, since its output would repeat.
    options = placing(parsed) | {"timeout": parsed.timeout, "priority": parsed.priority, "env": env}
    options |= {"retries": parsed.retries or 0}
    if parsed.detach:
        return _detached(cluster, parsed, console, options)
    if parsed.gang:
        return _gang(cluster, parsed, console, options)

    options["report"] = _reporting(console)

    def work(sink: TerminalSink) -> int:
        if not parsed.distribute:
            return launching.run_command(cluster, parsed.argv, sink=sink, **options)
        return launching.run_script(
            cluster, parsed.argv, folder(), redirect=not parsed.no_redirect, sink=sink, **options
        )

    return _streamed(console, work)


def _detached(cluster: Cluster, parsed: argparse.Namespace, console: Console, options: dict[str, Any]) -> int:
    """Submit it and print its id. A program that is driven on after a loss runs again, unless --retries 0 was said."""
    from kos_cluster.core.driving import Kind
    from kos_cluster.tasks import launching
    from kos_cluster.tasks.options import PLAIN

    options |= {"retries": PLAIN.retries if parsed.retries is None else parsed.retries}
    if parsed.distribute:
        options |= {"redirect": not parsed.no_redirect, "report": _reporting(console)}
        job = cluster.detach_program(launching.script_program(parsed.argv, folder(), **options), Kind.SCRIPT)
    else:
        job = cluster.detach_program(launching.command_program(parsed.argv, **options), Kind.COMMAND)
    console.answer(job.id)
    console.note(f"kos: it goes on without this machine; 'kos attach {job.id}' shows it from any.")
    return 0


def _gang(cluster: Cluster, parsed: argparse.Namespace, console: Console, options: dict[str, Any]) -> int:
    """Run the command as each rank of a gang; a Python script with a copy of the folder."""
    from kos_cluster.tasks import launching

    report = _reporting(console)

    def work(sink: TerminalSink) -> int:
        if launching.is_script(parsed.argv):
            program = launching.script_program(
                parsed.argv, folder(), redirect=False, report=report, sink=sink, **options
            )
        else:
            program = launching.command_program(parsed.argv, sink=sink, **options)
        return launching.run_gang(cluster, program, parsed.gang, parsed.restarts, report)

    return _streamed(console, work)


def needs_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """What a task takes of its node, as options of `Cluster.submit`."""
    return {
        "cpus": parsed.cpus,
        "memory": parsed.memory,
        "gpus": parsed.gpus,
        "resources": dict(parsed.resource),
    }


def placing(parsed: argparse.Namespace) -> dict[str, Any]:
    """What a task takes of its node and where it is to be, as options of `Cluster.submit`."""
    names = ("on", "away_from", "spread", "pack", "near", "apart")
    return needs_of(parsed) | {"labels": parsed.label} | {name: getattr(parsed, name) for name in names}


def environment(variables: Sequence[tuple[str, str | None]]) -> dict[str, str]:
    """The variables to take along, with their values. Raises UsageError for one that is not set here."""
    chosen = {}
    for name, value in variables:
        taken = os.environ.get(name) if value is None else value
        if taken is None:
            raise UsageError(f"The environment variable {name} is not set.", f"Set it, or give it: --env {name}=VALUE.")
        chosen[name] = taken
    return chosen


def _check(parsed: argparse.Namespace) -> None:
    for option in ("engine", "over", "out", "seed"):
        if getattr(parsed, option) is not None:
            raise UsageError(
                f"--{option} belongs to a notebook's cell, '%%kos run --distribute --{option} ...'.",
                "Leave it out on the command line.",
            )
    check_gang(parsed)
    if not parsed.argv:
        raise UsageError("Nothing to run was given.", "Type for example: kos run --distribute script.py")
    if parsed.no_redirect and not parsed.distribute:
        raise UsageError("--no-redirect only means something with --distribute.", "Leave it out, or add --distribute.")


def check_gang(parsed: argparse.Namespace) -> None:
    """Raises UsageError for what does not go with --gang, or not without it."""
    if not parsed.gang and parsed.restarts:
        raise UsageError("--restarts only means something with --gang.", "Leave it out, or add --gang N.")
    for option in ("detach", "distribute", "retries"):
        if parsed.gang and getattr(parsed, option):
            raise UsageError(
                f"--{option} does not go with --gang.",
                "A gang starts anew as a whole: --restarts N." if option == "retries" else "Leave out one of the two.",
            )


def _check_node(cluster: Cluster, name: str) -> None:
    """Raises NoSuchNodeError, UnreachableError for one that is dead or has left, PlacementError for a drained one,
    before anything is sent."""
    nodes = sorted(cluster.nodes(), key=lambda node: node["state"] != MemberState.LEFT) if name else []
    states = {node["name"]: node["state"] for node in nodes}  # of two of one name, that which has not left
    if name and name not in states:
        raise NoSuchNodeError(f"No node {name!r} is in cluster {cluster.name!r}.", f"Its nodes: {', '.join(states)}.")
    if states.get(name) in (MemberState.DEAD, MemberState.LEFT):
        raise UnreachableError(f"Node {name} is {states[name]}.", "Type 'kos nodes' for those that are alive.")
    if any(node["drained"] for node in nodes if node["name"] == name and node["state"] != MemberState.LEFT):
        raise PlacementError(
            f"Node {name} is drained, so it takes no more work.", f"Type 'kos cluster drain --undo {name}' first."
        )


def _reporting(console: Console) -> Callable[[str], None]:
    """Takes what KOS itself has to say of a program, a sentence at a time."""
    return lambda sentence: console.note(f"kos: {sentence}")


def _streamed(console: Console, work: Callable[[TerminalSink], int]) -> int:
    """Run something with its output on the console; its exit code."""
    from kos_cluster.cli.progress import TerminalSink

    sink = TerminalSink(console, time.monotonic)
    try:
        return work(sink)
    except CancelledError:
        console.note("kos: the job was cancelled.")
        return EXIT_CANCELLED
    except KeyboardInterrupt:
        if sink.broken:
            raise BrokenPipeError from None
        raise
    finally:
        sink.close()


def folder() -> Path:
    """The folder that a script is sent with. Raises UsageError when it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("The current folder does not exist any more.", "Change to the script's folder.") from None
