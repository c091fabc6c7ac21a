"""From samples to figures, ratios and the printed report. Pure: no process, clock or file.

Rules: a figure is the median of its repeats; a ratio is always "how many times better KOS is", so above 1 is in favour
of KOS, whether the work is a rate or a duration. Only `BEST_OF` count as peers to beat; the other rows are references.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Sequence

import msgspec

KOS = "kos"
BARE = "bare"
BEST_OF = ("dask", "ray", "ipyparallel")  # peers that can use more than one machine


class Work(enum.StrEnum):
    """What is measured."""

    SYNC = "sync"
    SUBMITS = "submits"
    MAP = "map"
    MAP_CHUNKED = "map_chunked"
    FIRST_RESULT = "first_result"


RATE = "1/s"
SECONDS = "s"
UNITS = {work: SECONDS if work is Work.FIRST_RESULT else RATE for work in Work}

MEANINGS = {
    Work.SYNC: "round trips of a no-op, one after the other",
    Work.SUBMITS: "no-ops submitted one by one, then gathered",
    Work.MAP: "no-ops through the system's map, each element a task of its own",
    Work.MAP_CHUNKED: "no-ops through the system's map, as many elements to a task as its users choose",
    Work.FIRST_RESULT: "from a fresh interpreter without a cluster to the first result; lower is better",
}


class Sample(msgspec.Struct, frozen=True):
    """One measurement: `value` in the work's unit, over `items` tasks."""

    work: Work
    system: str
    value: float
    items: int


class Figure(msgspec.Struct, frozen=True):
    """All measurements of one work on one system."""

    work: Work
    system: str
    median: float
    unit: str
    repeats: list[float]
    items: int  # tasks in each repeat; for `sync` in the last


class Ratio(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many times better KOS is than the best peer; `None` where there is none to compare with.

    `bare_over_kos` (for `sync`) is how many round trips the bare path makes in the time of one of KOS's.
    """

    best_peer: str | None
    ratio: float | None
    bare_over_kos: float | None = None


class Report(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    figures: list[Figure]
    ratios: dict[str, Ratio]
    setups: dict[str, str]
    skipped: dict[str, str]  # system -> why it has no figures
    failures: list[str]  # runs that ended early, and what had to be cleared away after them
    machine: dict[str, str | int | list[float]]
    versions: dict[str, str]


def figures_of(samples: Iterable[Sample]) -> list[Figure]:
    """Group samples by work and system, in the order of `Work` and of first appearance."""
    groups: dict[tuple[Work, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.work, sample.system), []).append(sample)
    order = list(Work)
    return [
        Figure(
            work=work,
            system=system,
            median=statistics.median(sample.value for sample in group),
            unit=UNITS[work],
            repeats=[sample.value for sample in group],
            items=group[-1].items,
        )
        for (work, system), group in sorted(groups.items(), key=lambda entry: order.index(entry[0][0]))
    ]


def ratios_of(figures: Sequence[Figure]) -> dict[str, Ratio]:
    """The ratio of each work that KOS has a figure for."""
    medians = {(figure.work, figure.system): figure.median for figure in figures}
    return {
        work.value: _ratio(work, {system: value for (of, system), value in medians.items() if of is work})
        for work in Work
        if (work, KOS) in medians
    }


def _ratio(work: Work, medians: dict[str, float]) -> Ratio:
    lower_is_better = UNITS[work] == SECONDS
    own = medians[KOS]
    bare = medians.get(BARE)
    peers = {name: medians[name] for name in BEST_OF if name in medians}
    bare_over_kos = bare / own if work is Work.SYNC and bare is not None else None
    if not peers:
        return Ratio(None, None, bare_over_kos)
    best = min(peers, key=peers.__getitem__) if lower_is_better else max(peers, key=peers.__getitem__)
    return Ratio(best, peers[best] / own if lower_is_better else own / peers[best], bare_over_kos)


def rendered(report: Report) -> str:
    """The report as text for a terminal."""
    lines: list[str] = []
    for work in Work:
        rows = [figure for figure in report.figures if figure.work is work]
        if rows:
            lines += [f"{work}: {MEANINGS[work]}", *map(_row, rows)]
            if work in report.ratios:
                lines += ["  " + text for text in _comparison(report.ratios[work])]
            lines.append("")
    lines += ["Set-up:", *(f"  {name:<12} {text}" for name, text in report.setups.items())]
    if report.skipped:
        lines += ["Skipped:", *(f"  {name:<12} {reason}" for name, reason in report.skipped.items())]
    if report.failures:
        lines += ["Trouble:", *(f"  {text}" for text in report.failures)]
    lines.append("Machine: " + ", ".join(f"{key} {value}" for key, value in report.machine.items()))
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    return "\n".join(lines)


def _row(figure: Figure) -> str:
    low, high = min(figure.repeats), max(figure.repeats)
    spread = f"({_number(low)} to {_number(high)})"
    items = "" if figure.work is Work.FIRST_RESULT else f"{figure.items:,} tasks"
    return f"  {figure.system:<12} {_number(figure.median):>10} {figure.unit:<4} {spread:<22} {items}".rstrip()


def _comparison(ratio: Ratio) -> list[str]:
    lines = []
    if ratio.best_peer is not None and ratio.ratio is not None:
        lines.append(f"KOS is {ratio.ratio:.2f} times as fast as the best peer, {ratio.best_peer}.")
    if ratio.bare_over_kos is not None:
        lines.append(f"The bare path is {ratio.bare_over_kos:.2f} times as fast as KOS.")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
