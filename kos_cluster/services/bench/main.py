"""The `kos bench` command: which parts on which systems, in which order, and the report.

Rules: what can be refused is refused before anything starts. Repeat 1 of all systems comes before repeat 2 of any, so
that a disturbance of the machine meets all of them. Data goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable

from kos_cluster.errors import KosError, UsageError
from kos_cluster.services.bench import machine, picture, reports
from kos_cluster.services.bench.conduct import run_once
from kos_cluster.services.bench.figures import BARE, KOS, Part, Report, Sample, figures_of, ratios_of, rendered
from kos_cluster.services.bench.plan import FULL, QUICK, Plan
from kos_cluster.services.bench.reports import target_of
from kos_cluster.services.bench.systems import ENTRIES

INSTALL_HINT = "pip install 'kos-cluster[bench]'"


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench`: `args` has peers (names in `ENTRIES`), only (parts), json, picture, repeats and quick.

    Raises KosError when KOS itself could not be measured.
    """
    if args.repeats < 1:
        raise UsageError(f"{args.repeats} repeats measure nothing.", "Give --repeats a number of at least 1.")
    target, drawing = target_of(args.json), target_of(args.picture)
    if drawing is not None:
        picture.check(drawing)
    skipped = missing_peers(args.peers)
    systems = [KOS, BARE, *(name for name in args.peers if name not in skipped)]
    parts = [Part(part) for part in args.only]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended, too
    try:
        report = measured(systems, parts, args.repeats, QUICK if args.quick else FULL, skipped)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(rendered(report))
    reports.write(report, target)
    if drawing is not None and report.figures:
        picture.draw(report, drawing)
    if not any(figure.system == KOS for figure in report.figures):
        raise KosError("KOS itself could not be measured.", f"What happened: {report.skipped[KOS]}")
    return 0


def missing_peers(names: Iterable[str]) -> dict[str, str]:
    """The peers that cannot be measured here, with the reason."""
    lacking = {name: ENTRIES[name].missing() for name in names}
    return {name: f"not installed: {', '.join(gone)} ({INSTALL_HINT})" for name, gone in lacking.items() if gone}


def measured(systems: list[str], parts: list[Part], repeats: int, plan: Plan, skipped: dict[str, str]) -> Report:
    """Run every part on every system `repeats` times, interleaved. A part that fails on a system is not tried again."""
    about, versions = machine.machine(), machine.versions()
    samples: list[Sample] = []
    failures: dict[tuple[str, Part], str] = {}
    notes: list[str] = []
    for repeat in range(1, repeats + 1):
        for part in parts:
            for system in systems:
                if part not in ENTRIES[system].opens or (system, part) in failures:
                    continue
                print(f"repeat {repeat} of {repeats}: {part} on {system}", file=sys.stderr, flush=True)
                result = run_once(system, part, plan)
                samples += result.samples
                if result.failure:
                    failures[system, part] = f"{part}, repeat {repeat} {result.failure}"
                if result.left:
                    notes.append(f"{system}, repeat {repeat}: had to end what it left: {', '.join(result.left)}")
    figures = figures_of(samples)
    with_figures = {figure.system for figure in figures}
    empty = {name: why for (name, _), why in failures.items() if name not in with_figures}
    notes += [f"{name}, {why}" for (name, _), why in failures.items() if name in with_figures]
    return Report(
        figures=figures,
        ratios=ratios_of(figures),
        setups={name: ENTRIES[name].setup for name in systems if name in with_figures},
        skipped=skipped | empty,
        failures=notes,
        machine=about,
        versions=versions,
        plan=plan,
    )
