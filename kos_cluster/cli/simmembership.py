"""`kos sim --membership`: the figures of membership in a simulated cluster, beside what they are to reach."""

from __future__ import annotations

from collections.abc import Iterable

from kos_cluster.cli.console import Console
from kos_cluster.cli.tables import Column
from kos_cluster.sim import membership
from kos_cluster.sim.membership import Detection, Report, Spread, Stalls

RATIO_LIMIT = 1.5  # rounds of gossip to those of the model
FLAT_LIMIT = 1.3  # the most bytes a node a second in silence to the fewest, over all sizes
DETECTION_LIMITS_S = {"lan": (5.0, 8.0), "fast": (2.0, 2.0)}  # p50 and p99 by profile


def show(seed: int, hours: float, console: Console) -> bool:
    """Measure, and print all of it; whether every aim was reached."""
    console.note("Up to 5,000 nodes are simulated; this takes some minutes.")
    report = membership.measure(seed=seed, stall_hours=hours)
    for columns, rows in (_spread(report.spread), _detection(report.detection), _stalls(report.stalls)):
        console.table(columns, rows)
        console.answer("")
    missed = list(failures(report))
    for text in missed:
        console.answer(f"NOT reached: {text}")
    console.answer(f"seed {report.seed}: {'every aim was reached' if not missed else f'{len(missed)} aims missed'}")
    return not missed


def failures(report: Report) -> Iterable[str]:
    """The aims that were not reached."""
    for spread in report.spread:
        if spread.ratio > RATIO_LIMIT:
            yield f"an update takes {spread.ratio:.2f} times the model's rounds at {spread.nodes:,} nodes"
    quiet = [spread.quiet_bytes_s for spread in report.spread]
    if quiet and max(quiet) > FLAT_LIMIT * min(quiet):
        yield f"a node in silence sends from {min(quiet):.0f} to {max(quiet):.0f} bytes a second, by the cluster's size"
    for found in report.detection:
        p50_s, p99_s = DETECTION_LIMITS_S[found.profile]
        if found.p50_s > p50_s or found.p99_s > p99_s:
            yield f"a crash is seen after {found.p50_s:.2f} s (p50) and {found.p99_s:.2f} s (p99), {found.profile}"
    for stalls in report.stalls:
        if stalls.healthy_declared_dead:
            yield f"{stalls.healthy_declared_dead} healthy nodes were declared dead, {stalls.profile}"


Table = tuple[list[Column], list[list[str]]]


def _spread(found: Iterable[Spread]) -> Table:
    names = ("NODES", "ROUNDS", "OF THE MODEL", "RATIO", "BYTES AN UPDATE", "BYTES A SECOND, QUIET")
    return _right(names), [
        [
            f"{s.nodes:,}",
            f"{s.rounds:.1f}",
            f"{s.model_rounds:.1f}",
            f"{s.ratio:.2f}",
            f"{s.update_bytes:,.0f}",
            f"{s.quiet_bytes_s:.0f}",
        ]
        for s in found
    ]


def _detection(found: Iterable[Detection]) -> Table:
    names = ("PROFILE", "NODES", "CRASHES", "P50", "P99", "WORST")
    return _right(names), [
        [d.profile, str(d.nodes), str(d.crashes), f"{d.p50_s:.2f} s", f"{d.p99_s:.2f} s", f"{d.most_s:.2f} s"]
        for d in found
    ]


def _stalls(found: Iterable[Stalls]) -> Table:
    names = ("PROFILE", "HOURS", "STALLS", "HEALTHY DEAD", "STALLED DEAD", "BACK AFTER", "WORST")
    return _right(names), [
        [
            s.profile,
            f"{s.hours:g}",
            f"{s.stalls:,}",
            str(s.healthy_declared_dead),
            f"{s.stalled_declared_dead:,}",
            f"{s.back_s:.1f} s",
            f"{s.back_most_s:.1f} s",
        ]
        for s in found
    ]


def _right(names: Iterable[str]) -> list[Column]:
    first, *rest = names
    return [Column(first), *(Column(name, right=True) for name in rest)]
