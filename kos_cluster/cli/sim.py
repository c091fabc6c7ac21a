"""`kos sim`: run the machines of the control plane in a simulated cluster that fails.

Exit codes: 0 when every invariant held (with `--mutants`: every defect was caught; with `--membership` or `--workload`:
every aim was reached), `EXIT_VIOLATION` when not.
"""

from __future__ import annotations

import argparse
import random

from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column
from kos_cluster.errors import UsageError
from kos_cluster.sim.report import failure, is_notable, replay, story, summary
from kos_cluster.sim.run import Options, Result, run_many, run_seed
from kos_cluster.sim.trace import Trace

EXIT_VIOLATION = 1
FRESH_SEED_LIMIT = 1 << 31
TOLD_EVERY_SEEDS = 500
FAILURES_SHOWN = 10


def sim_(parsed: argparse.Namespace, console: Console) -> int:
    """Run one seed and tell its story, or many and sum them up, or the mutants, or measure membership or placement."""
    if parsed.trace and (parsed.mutants or parsed.seeds > 1):
        raise UsageError("A trace is of one seed.", "Leave out --trace, or --seeds and --mutants.")
    if parsed.mutants:
        return _mutants(parsed, console)
    seed = random.randrange(FRESH_SEED_LIMIT) if parsed.seed is None else parsed.seed
    if parsed.membership:
        from kos_cluster.cli.simmembership import show

        return 0 if show(seed, parsed.stall_hours, console) else EXIT_VIOLATION
    if parsed.workload:
        from kos_cluster.cli.simworkload import show as show_workload

        return 0 if show_workload(seed, parsed.tasks, console) else EXIT_VIOLATION
    options = Options(parsed.nodes, parsed.seconds)
    if parsed.faults is not None:
        options = Options(parsed.nodes, parsed.seconds, parsed.faults)
    if parsed.seeds > 1:
        return _many(parsed, seed, options, console)
    return _one(parsed, seed, options, console)


def _one(parsed: argparse.Namespace, seed: int, options: Options, console: Console) -> int:
    trace = Trace(lambda note, text: console.answer(text) if parsed.trace or is_notable(note) else None)
    result = run_seed(seed, options, trace)
    for text in story(result, options):
        console.answer(text)
    console.answer(f"trace: {trace.count} lines, sha256 {trace.digest()}")
    if not result.rule:
        return 0
    for text in failure(result, options, trace):
        console.answer(text)
    return EXIT_VIOLATION


def _many(parsed: argparse.Namespace, seed: int, options: Options, console: Console) -> int:
    console.answer(f"seeds {seed} to {seed + parsed.seeds - 1}, {options.seconds:g} virtual seconds each")
    results: list[Result] = []
    failed = 0
    for result in run_many(range(seed, seed + parsed.seeds), options, parsed.processes):
        results.append(result)
        if result.rule:
            failed += 1
            if failed <= FAILURES_SHOWN:
                console.answer(f"seed {result.seed}: {result.what}\n  {replay(result.seed, options)}")
        if len(results) % TOLD_EVERY_SEEDS == 0:
            console.note(f"{len(results)} of {parsed.seeds} seeds, {failed} failed")
    for text in summary(results):
        console.answer(text)
    return EXIT_VIOLATION if failed else 0


def _mutants(parsed: argparse.Namespace, console: Console) -> int:
    from kos_cluster.sim.mutants import MUTANTS, SEEDS_LIMIT, hunt_all

    rows = []
    missed = 0
    for catch in hunt_all(parsed.processes):
        missed += not catch.rule
        found = f"{catch.seeds}" if catch.rule else f"not in {SEEDS_LIMIT}"
        rows.append((catch.mutant, MUTANTS[catch.mutant].what, found, catch.rule))
        console.note(f"{len(rows)} of {len(MUTANTS)}: {catch.mutant}, {found}")
    console.table((Column("MUTANT"), Column("DEFECT"), Column("SEEDS", right=True), Column("CAUGHT BY")), sorted(rows))
    console.answer(f"{len(rows) - missed} of {len(rows)} defects were caught within {SEEDS_LIMIT} seeds.")
    return EXIT_VIOLATION if missed else 0
