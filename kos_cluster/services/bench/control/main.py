"""The `kos bench control` command: which measures, in which order, and the report.

Rules: what can be refused is refused before anything starts. A measure that fails is told, and the others go on. Data
goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from kos_cluster.errors import KosError
from kos_cluster.services.bench import machine, reports
from kos_cluster.services.bench.control import detection, failover, joining, rates, rest
from kos_cluster.services.bench.control.figures import Figure, Report, rendered, verdicts
from kos_cluster.services.bench.reports import target_of

Measure = Callable[[], Awaitable[list[Figure]]]


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench control`: `args` has only (names of measures), kills, nodes, rest_s and json.

    Raises KosError when nothing could be measured.
    """
    target = target_of(args.json)
    measures = {name: measure for name, measure in _measures(args).items() if name in args.only}
    try:
        report = uvloop.run(_measured(measures))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    print(rendered(report))
    reports.write(report, target)
    if not report.figures:
        raise KosError("Nothing could be measured.", f"What happened: {'; '.join(report.failures)}")
    return 0


def _measures(args: argparse.Namespace) -> dict[str, Measure]:
    """By name, those first that need the machine's attention."""
    crashes = min(args.kills, detection.KILLS)
    return {
        "failover": lambda: failover.measure(kills=args.kills),
        "detection": lambda: _detections(crashes),
        "joining": lambda: asyncio.to_thread(joining.measure),
        "rates": lambda: rates.measure(),
        "rest": lambda: rest.measure(args.nodes, args.rest_s),
    }


async def _detections(kills: int) -> list[Figure]:
    return [each for profile in detection.WORKS for each in await detection.measure(profile, kills=kills)]


async def _measured(measures: dict[str, Measure]) -> Report:
    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)  # so that no daemon stays
    about, versions = machine.machine(), machine.versions()
    figures: list[Figure] = []
    failures: list[str] = []
    for name, measure in measures.items():
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            figures += await measure()
        except KosError as error:
            failures.append(f"{name}: {error}")
    return Report(figures, verdicts(figures), failures, about, versions)
