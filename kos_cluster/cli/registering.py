"""`kos register`: small texts that the whole cluster agrees on, read and written from a shell.

Exit codes: 0 when it was written, or is set; `EXIT_UNSET` when it is read and is not set; that of ConflictError when it
holds something else than `--if` expects.
"""

from __future__ import annotations

import argparse

import kos_cluster as kos
from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column
from kos_cluster.errors import ConflictError, UsageError

COLUMNS = (Column("REGISTER"), Column("VALUE"))
EXIT_UNSET = 1


def register_(parsed: argparse.Namespace, console: Console) -> int:
    """List all, read one, or write one."""
    writes = parsed.value is not None or parsed.unset
    conditional = parsed.expected is not None or parsed.if_unset
    if parsed.value is not None and parsed.unset:
        raise UsageError("A register is set to a value, or removed with --unset.", "Leave out one of the two.")
    if conditional and not writes:
        raise UsageError("--if and --if-unset are for writing.", "Give a VALUE, or --unset.")
    if parsed.name is None:
        return _list(parsed, console)
    register = kos.connect(parsed.cluster).register(parsed.name)
    if not writes:
        return _read(register, parsed, console)
    if not conditional:
        register.set(parsed.value)
    elif not register.compare_and_set(parsed.expected, parsed.value):
        wanted = "not set" if parsed.expected is None else repr(parsed.expected)
        raise ConflictError(
            f"The register {parsed.name} is not what --if expects ({wanted}); nothing was written.",
            f"Type 'kos register {parsed.name}' to see what it holds.",
        )
    return 0


def _list(parsed: argparse.Namespace, console: Console) -> int:
    held = kos.connect(parsed.cluster).registers()
    if parsed.json:
        console.json(held)
    else:
        rows = [{"register": name, "value": value} for name, value in held.items()]
        console.listing(rows, COLUMNS, [list(row.values()) for row in rows])
    return 0


def _read(register: kos.Register, parsed: argparse.Namespace, console: Console) -> int:
    value = register.get()
    if parsed.json:
        console.json({parsed.name: value})
    elif value is None:
        console.note(f"kos: The register {parsed.name} is not set.")
    else:
        console.answer(value)
    return EXIT_UNSET if value is None else 0
