"""The parts of the documentation that are made from the code: `make docs` writes them, a test holds them.

A document marks such a part with `<!-- begin NAME -->` and `<!-- end NAME -->`; what stands between is replaced.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from docs import figures
from docs.markdown import replaced, table
from kos_cluster import errors
from kos_cluster.cli import main as command
from kos_cluster.cli.grammar import build_parser
from kos_cluster.core.roles import Command, Role, may

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LIMIT_NAME = re.compile(r"[A-Z][A-Z_]*(LIMIT[A-Z_]*|_S|_MS|_BYTES|_MESSAGES|_TRIES|_RETRIES)")
COMMANDS = {
    Command.READ: "look: status, nodes, ps, logs, story, registers",
    Command.SUBMIT: "run work, and cancel one's own; take locks; write registers",
    Command.CANCEL_ANY: "cancel the work of others",
    Command.MINT_TOKEN: "make join tokens",
    Command.STOP_NODE: "stop a node's daemon",
    Command.BE_MEMBER: "be a node: membership, agreement, load",
    Command.REMOVE_SELF: "leave the cluster",
    Command.REMOVE_NODE: "remove a node or client, for good",
    Command.DRAIN_NODE: "give a node no more work, or work again",
    Command.ROTATE: "have a node renew its certificate",
}


def roles() -> str:
    """Role x command, as `core.roles` has it."""
    rows = [["command", "", *(f"`{role}`" for role in Role)]]
    rows += [[f"`{each}`", COMMANDS[each], *("yes" if may(role, each) else "no" for role in Role)] for each in Command]
    return table(rows)


def exit_codes() -> str:
    """Exit codes, as `errors` and the command have them."""
    classes = [
        value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    rows = [["exit code", "error", "meaning"], ["0", "", "done"]]
    for each in sorted(classes, key=lambda each: each.exit_code):
        meaning = "any other error of KOS" if each is errors.KosError else (each.__doc__ or "").split("\n")[0]
        rows.append([str(each.exit_code), f"`{each.__name__}`", meaning])
    rows.append([str(command.EXIT_INTERNAL), "", "an error in KOS itself; a report is written"])
    rows.append([str(command.EXIT_INTERRUPTED), "", "interrupted"])
    rows.append([str(command.EXIT_PIPE), "", "the reader of the output went away"])
    return table(rows)


def commands() -> str:
    """Every command with its arguments, as the grammar has them."""
    rows = [["command", "what it does"]]
    rows += [[f"`{usage}`", description.replace("|", "\\|")] for usage, description in _commands(build_parser())]
    return table(rows)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in children:
        for child in action.choices.values():
            yield from _commands(child)
    if not any(action.required for action in children):
        formatter = argparse.HelpFormatter(parser.prog, width=1000)
        left_out = ("help", "cluster", *(action.dest for action in children))
        actions = [action for action in parser._actions if action.dest not in left_out]
        formatter.add_usage(parser.usage, actions, [], prefix="")
        usage = formatter.format_help().strip().replace(" ...", " COMMAND...").replace("|", "\\|")
        yield usage.replace("%(prog)s", parser.prog), (parser.description or "") % {}


def limits() -> str:
    """Every named bound in the code, with its unit and what its comment says of it."""
    rows = [["module", "name", "value", "of what"]]
    for package in ("kos_cluster", "kos_kernel"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "bench" not in path.parts:
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                rows += [[f"`{module}`", f"`{name}`", value, comment] for name, value, comment in _limits_in(path)]
    return table(rows)


def _limits_in(path: Path) -> Iterator[tuple[str, str, str]]:
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if LIMIT_NAME.fullmatch(name):
                comment = lines[node.lineno - 1].partition("#")[2].strip().replace("|", "\\|")
                yield name, _value(name, node.value), comment


def _value(name: str, node: ast.expr) -> str:
    source = ast.unparse(node)
    if re.search(r"[A-Za-z]", source.replace("e-", "")):
        return f"`{source}`"
    value = eval(source)
    if not isinstance(value, int | float):
        return f"`{source}`"
    if name.endswith("_BYTES"):
        unit = next(((n, u) for n, u in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")) if value % n == 0), None)
        return f"{value // unit[0]} {unit[1]}" if unit else f"{value} bytes"
    if name.endswith("_BYTES_S"):
        return f"{value:,} bytes a second"
    if name.endswith(("_S", "_MS")):
        return f"{value:,} {name.rpartition('_')[2].lower()}"
    return f"{value:,}"


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "roles": ("security.md", roles),
    "commands": ("cli.md", commands),
    "exit codes": ("cli.md", exit_codes),
    "limits": ("limits.md", limits),
    "works": ("benchmarks.md", figures.works),
    "set-ups": ("benchmarks.md", figures.setups),
    "figures": ("benchmarks.md", figures.figures),
    "memory": ("benchmarks.md", figures.memory),
    "queued": ("benchmarks.md", figures.queued),
    "engines": ("benchmarks.md", figures.engines),
    "summary": ("../README.md", figures.summary),
}


def write() -> None:
    """Make all parts anew."""
    for name, (document, make) in PARTS.items():
        path = DOCS / document
        path.write_text(replaced(path.read_text(), name, make()))


if __name__ == "__main__":
    sys.exit(write())
